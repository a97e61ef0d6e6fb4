"""The lines of a file or pipe, read as they come by a thread of their own.

A thread of its own, and a daemon: reading a terminal or pipe can't be interrupted, and neither the
event loop, nor its executor, nor the program's exit shall wait for it.
"""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator
from typing import Final

LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest line: two texts of 16 MB, also where JSON escapes double them. Longer ones are skipped
without being kept."""
CHUNK_BYTES: Final = 256 * 1024
_CHUNKS_AHEAD: Final = 4


class Lines:
    """The numbered lines of an unbuffered file, without their ends; None for one too long.

    `stop` ends them early, from the loop, and so does closing the file. `bytes_read` tells how far
    they are.

    Args:
        line_bytes: the longest line.
        chunk_bytes: most that is read at once.
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
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        self._stopped = False
        threading.Thread(target=self._read, name="async-history lines", daemon=True).start()

    def stop(self) -> None:
        """End the lines, also for who waits for the next one."""
        self._stopped = True
        self._chunks.put_nowait(b"")

    def _read(self) -> None:
        chunk: bytes | OSError = b"-"
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            while chunk and not isinstance(chunk, OSError):
                self._room.acquire()
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
            self._room.release()
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
    """A line as its parts come in. What is too long is counted, not kept."""

    def __init__(self, most_bytes: int) -> None:
        self.size = 0
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []

    def append(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= self._most_bytes:
            self._parts.append(part)
        else:
            self._parts.clear()

    def whole(self) -> bytes | None:
        return b"".join(self._parts) if self.size <= self._most_bytes else None
