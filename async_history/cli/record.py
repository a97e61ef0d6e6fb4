"""`async-history record`: records JSON lines, many at once, in order for each memory.

The lines are submitted to the manager in order, each by a separate task, without waiting for the
previous line's ack. One manager's calls for one memory keep their order.
"""

import asyncio
import io
import json
import os
import stat
import sys
from contextlib import closing
from functools import partial
from typing import Any, Final

from async_history import (
    CommitUnknown,
    Erased,
    HistoryError,
    HistoryManager,
    IdConflict,
    InvalidInput,
    OwnerConflict,
    StorageRefused,
)
from async_history._core.records.new_records import record_from_mapping
from async_history._core.wording import counted
from async_history._opening import without_secrets
from async_history.cli import stores
from async_history.cli.line_reader import LINE_BYTES, Lines, open_lines
from async_history.cli.terminal import print_error, show_progress
from async_history.cli.termination import early_end, run

_LINES_AT_ONCE: Final = 2_000
_BYTES_AT_ONCE: Final = 32 * 1024 * 1024
"""Bytes of pending lines: enough to fill batches, and independent of the file's size."""
SETTLE_S: Final = 2.0
"""Seconds for pending lines after recording has stopped, by Ctrl-C or an error."""


def record(url: str, file: str) -> int:
    """Record a file's lines, `-` for stdin's; return the exit status."""
    source = open_lines(file)
    if source.isatty():
        print_error("reading JSON lines from the terminal, until Ctrl-D")
    with closing(source):
        recording = run(_record(url, source, "stdin" if file == "-" else file))
    sys.stdout.write(f"{recording.summary()} in {without_secrets(url)}\n")
    if recording.is_interrupted:
        word, status = early_end()
        print_error(word)
        return status
    return 1 if recording.refused or recording.has_failed else 0


async def _record(url: str, source: io.FileIO, name: str) -> "Recording":
    async with stores.opened(url, close_timeout_s=SETTLE_S) as history:
        lines = Lines(source)
        recording = Recording(history, lines, name)
        async with show_progress(
            _size(source),
            lambda: lines.bytes_read,
            "lines",
            lambda: recording.recorded,
            is_wanted=not source.isatty(),
        ):
            await recording.run()
    # Closing has acked or failed the lines that were pending when recording stopped.
    await recording.wait_settled()
    return recording


def _size(source: io.FileIO) -> int | None:
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class Recording:
    """Records lines in a history, and counts them."""

    def __init__(self, history: HistoryManager, lines: Lines, name: str) -> None:
        self.recorded = 0
        self.refused = 0
        self.unknown = 0
        self.has_failed = False
        self.is_interrupted = False
        self._history = history
        self._lines = lines
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._has_finished = asyncio.Event()

    async def run(self) -> None:
        """Record all lines; return early on Ctrl-C or an error of the file or the store."""
        try:
            async for number, line in self._lines:
                await self._take(number, line)
            if not self.has_failed:
                await self.wait_settled()
        except asyncio.CancelledError:
            self.is_interrupted = True
        except OSError as error:
            self._fail(f"{self._name}: {error.strerror}")

    async def wait_settled(self) -> None:
        """Wait until every submitted line is acked or has failed."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def summary(self) -> str:
        """Return a sentence with the numbers of recorded and refused lines."""
        text = f"recorded {counted(self.recorded, 'line')}"
        if self.unknown:
            text += f", perhaps {self.unknown:,} more"
        if self.refused:
            text += f", refused {self.refused:,}"
        return text

    async def _take(self, number: int, line: bytes | None) -> None:
        try:
            fields = _fields(line)
        except InvalidInput as error:
            self._refuse(number, error)
            return
        if line is None or fields is None:
            return
        while self._tasks and (
            len(self._tasks) >= _LINES_AT_ONCE or self._bytes + len(line) > _BYTES_AT_ONCE
        ):
            self._has_finished.clear()
            await self._has_finished.wait()
        if not self.has_failed:
            self._bytes += len(line)
            task = asyncio.create_task(self._add(number, fields))
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_done, len(line)))

    def _on_done(self, size: int, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._bytes -= size
        self._has_finished.set()

    async def _add(self, number: int, fields: dict[str, Any]) -> None:
        try:
            await self._history.add_history(**{"old_memory": None, "new_memory": None, **fields})
            self.recorded += 1
        except (Erased, IdConflict, InvalidInput, OwnerConflict, StorageRefused) as error:
            self._refuse(number, error)
        except HistoryError as error:
            self.unknown += isinstance(error, CommitUnknown)
            self._fail(f"{self._name}: recording ended at line {number}: {error}")

    def _refuse(self, number: int, error: HistoryError) -> None:
        self.refused += 1
        print_error(f"{self._name}: line {number}: {error}")

    def _fail(self, reason: str) -> None:
        if not self.has_failed and not self.is_interrupted:
            print_error(reason)
        self.has_failed = True
        self._lines.stop()


def _fields(line: bytes | None) -> dict[str, Any] | None:
    """Return a line's fields, checked; None for an empty line.

    Raises:
        InvalidInput: the line cannot be recorded. The message says why.
    """
    if line is None:
        raise InvalidInput(f"longer than {LINE_BYTES >> 20} MiB")
    try:
        text = line.decode("utf-8-sig")
        if not text.strip():
            return None
        fields = json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise InvalidInput(f"not JSON at character {error.colno}: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise InvalidInput(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput("not a JSON object with a record's fields")
    record_from_mapping(fields)
    return fields
