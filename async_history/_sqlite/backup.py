"""Backup: a consistent copy of a SQLite file that is in use.

SQLite's online backup copies page by page, and starts over whenever another connection writes,
unless its own connection reads in an open transaction. In that case it copies that snapshot, and no
writer waits. (`VACUUM INTO` makes a smaller file, but may renumber rows, which breaks the memory
index and cursors.)
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import Event
from typing import Final

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.operations.progress import Progress
from async_history._sqlite.connecting.errors import connect, typed_errors, wait_for_lock
from async_history._sqlite.connecting.files import remove, sync_folder
from async_history._sqlite.connecting.readonly import ReadOnlyFile
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.index import mark_copied
from async_history.errors import InvalidInput

PAGES_AT_ONCE: Final = 1_000
"""Pages copied between two checks whether to stop: 4 MB, in some milliseconds."""
PageProgress = Callable[[int, int], None]
"""Called with the pages copied and the total; raises `_Stopped` to end the copy."""


async def run(work: Callable[[PageProgress], None], on_progress: Progress | None) -> None:
    """Run a copy in a thread, and stop it if the caller is cancelled."""
    loop = asyncio.get_running_loop()
    stop = Event()

    def watch(done: int, total: int) -> None:
        if stop.is_set():
            raise _Stopped
        if on_progress is not None:
            loop.call_soon_threadsafe(on_progress, done, total)

    await to_the_end(run_in_thread(partial(work, watch)), stop.set)


class _Stopped(Exception):
    """The copy was told to stop."""


def back_up_file(
    path: Path, lock_timeout_s: float, target: Path, pages: int, watch: PageProgress
) -> None:
    """Copy a file as it is now, waiting while another connection holds its lock."""
    with (
        typed_errors(str(path)),
        wait_for_lock(partial(_snapshot, path), lock_timeout_s) as source,
    ):
        back_up(source.connection, target, pages, watch, source.require_unchanged)


def _snapshot(path: Path) -> ReadOnlyFile:
    """Open a connection in a transaction that reads a snapshot of the file as it is now."""
    source = ReadOnlyFile(path)
    try:
        source.connection.execute("BEGIN")
        source.connection.execute("PRAGMA schema_version").fetchone()  # takes the snapshot
    except BaseException:
        source.close()
        raise
    return source


def back_up(
    source: sqlite3.Connection,
    target: Path,
    pages: int,
    watch: PageProgress,
    require_unchanged: Callable[[], None] = lambda: None,
) -> None:
    """Copy the database that a connection reads, which must not change meanwhile.

    `pages` is the number of pages between two checks whether to stop. `require_unchanged` is called
    after the copy, and raises if the database has changed.

    Raises:
        InvalidInput: `target` exists.
        StorageError: the copy could not be written.
    """
    unfinished = target.with_name(f"{target.name}.{token_hex(8)}.unfinished")
    with typed_errors(str(target), written=target):
        _require_absent(target)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            _copy(source, unfinished, pages, watch)
            require_unchanged()
            _publish(unfinished, target)
            sync_folder(target.resolve().parent)
        except _Stopped:
            pass
        finally:
            remove(unfinished)


def _copy(source: sqlite3.Connection, unfinished: Path, pages: int, watch: PageProgress) -> None:
    copied = 0

    def step(_: int, left: int, of: int) -> None:
        nonlocal copied
        copied = of
        watch(of - left, of)

    (version,) = source.execute("PRAGMA schema_version").fetchone()
    with closing(connect(unfinished, "rw")) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # synced once, below
        source.backup(copy, pages=pages, progress=step)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, readable anywhere
        mark_copied(copy, version)
    watch(copied, copied)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())


def _publish(unfinished: Path, target: Path) -> None:
    """Rename the finished copy to its target, unless a file has appeared there."""
    try:
        os.link(unfinished, target)
    except FileExistsError:
        _require_absent(target)
    except OSError:  # a file system without hard links
        _require_absent(target)
        unfinished.rename(target)


def _require_absent(target: Path) -> None:
    if os.path.lexists(target):
        raise InvalidInput(f"path names {target}, which exists; a backup is a new file")
