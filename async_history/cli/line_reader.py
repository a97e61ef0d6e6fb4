"""Reading the lines of a file or pipe in a separate thread.

The thread is a daemon: reading a terminal or pipe cannot be interrupted, and neither the event
loop, nor its executor, nor the program's exit may wait for it.
"""

import asyncio
import contextlib
import errno
import io
import sys
import threading
from collections.abc import AsyncIterator
from typing import Final

LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest line in bytes: two texts of 16 MB, doubled by JSON escapes. Longer lines are skipped."""
CHUNK_BYTES: Final = 256 * 1024
_CHUNKS_AHEAD: Final = 4


def open_lines(name: str) -> io.FileIO:
    """Open a file to read its lines; `-` is stdin.

    Raises:
        OSError: it cannot be opened, or stdin is closed (its number may belong to another file
            then).
    """
    if name != "-":
        return io.FileIO(name)
    if sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed", "stdin")
    return io.FileIO(0, closefd=False)


class Lines:
    """The numbered lines of an unbuffered file, without line ends; None for one that is too long.

    `stop`, called on the loop, ends them early, and so does closing the file. `bytes_read` is the
    number of bytes read so far.

    Args:
        line_bytes: the longest line.
        chunk_bytes: most bytes read at once.
    """

    def __init__(
        self,
        file: io.RawIOBase,
        *,
        line_bytes: int = LINE_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.bytes_read = 0
        self._file = file
        self._line_bytes = line_bytes
        self._chunk_bytes = chunk_bytes
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._chunks_allowed = threading.Semaphore(_CHUNKS_AHEAD)
        self._stopped = False
        threading.Thread(target=self._read, name="async-history lines", daemon=True).start()

    def stop(self) -> None:
        """End the lines, also for a caller that waits for the next one."""
        self._stopped = True
        self._chunks.put_nowait(b"")

    def _read(self) -> None:
        chunk: bytes | OSError = b"-"
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while chunk and not isinstance(chunk, OSError):
                self._chunks_allowed.acquire()
                try:
                    chunk = self._file.read(self._chunk_bytes) or b""
                except OSError as error:
                    chunk = error
                except ValueError:  # it was closed
                    chunk = b""
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes | None]]:
        number, line = 1, _Line(self._line_bytes)
        while chunk := await self._chunks.get():
            if isinstance(chunk, OSError):
                raise chunk
            self._chunks_allowed.release()
            self.bytes_read += len(chunk)
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                line.append(end)
                if self._stopped:
                    return
                yield number, line.whole()
                number, line = number + 1, _Line(self._line_bytes)
            line.append(rest)
        if line.size and not self._stopped:
            yield number, line.whole()


class _Line:
    """A line, collected in parts. A line that is too long is counted and not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.size = 0
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []

    def append(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= self._max_bytes:
            self._parts.append(part)
        else:
            self._parts.clear()

    def whole(self) -> bytes | None:
        return b"".join(self._parts) if self.size <= self._max_bytes else None
