"""A consistent copy of a SQLite file that is in use.

SQLite's online backup copies page by page, and begins again whenever another connection writes,
unless its own connection reads in an open transaction: then it copies that snapshot, whatever is
written meanwhile, and no writer waits. (`VACUUM INTO` makes a smaller file, but may renumber rows,
on which the memory index and cursors rest.)
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

from async_history._core.cancellation import to_the_end
from async_history._core.progress import Progress
from async_history._sqlite.errors import connect, typed_errors, wait_for_lock
from async_history._sqlite.files import remove, sync_folder
from async_history._sqlite.index import note_copied
from async_history._sqlite.readonly import Look
from async_history._sqlite.worker_thread import run_in_thread
from async_history.errors import InvalidInput

Watch = Callable[[int, int], None]
"""Hear how many of how many pages are copied; raise `_Stopped` to end it."""


async def run(work: Callable[[Watch], None], on_progress: Progress | None) -> None:
    """Run work in a thread, and ask it to stop where the caller is cancelled."""
    loop = asyncio.get_running_loop()
    stop = Event()

    def watch(done: int, total: int) -> None:
        if stop.is_set():
            raise _Stopped
        if on_progress is not None:
            loop.call_soon_threadsafe(on_progress, done, total)

    await to_the_end(run_in_thread(partial(work, watch)), stop.set)


class _Stopped(Exception):
    """The copy was asked to stop."""


def back_up_file(path: Path, lock_timeout_s: float, target: Path, pages: int, watch: Watch) -> None:
    """Copy a file as it is now, waiting while others hold its lock."""
    with (
        typed_errors(str(path)),
        wait_for_lock(partial(_snapshot, path), lock_timeout_s) as source,
    ):
        back_up(source.connection, target, pages, watch, source.require_sound)


def _snapshot(path: Path) -> Look:
    """Open a connection that sees the file as it is now, whatever is written later."""
    source = Look(path)
    try:
        source.connection.execute("BEGIN")
        source.connection.execute("PRAGMA schema_version").fetchone()  # it is taken here
    except BaseException:
        source.close()
        raise
    return source


def back_up(
    source: sqlite3.Connection,
    target: Path,
    pages: int,
    watch: Watch,
    require_sound: Callable[[], None] = lambda: None,
) -> None:
    """Copy a connection's database, of which nobody else changes what it sees.

    `pages` are copied between two looks whether to stop. `require_sound` is asked once all is
    copied, and raises where somebody did.

    Raises:
        InvalidInput: there is a file of that name.
        StorageError: the copy could not be written.
    """
    unfinished = target.with_name(f"{target.name}.{token_hex(8)}.unfinished")
    with typed_errors(str(target)):
        _require_none(target)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            _copy(source, unfinished, pages, watch)
            require_sound()
            _give_name(unfinished, target)
            sync_folder(target.resolve().parent)
        except _Stopped:
            pass
        finally:
            remove(unfinished)


def _copy(source: sqlite3.Connection, unfinished: Path, pages: int, watch: Watch) -> None:
    copied = 0

    def step(_: int, left: int, of: int) -> None:
        nonlocal copied
        copied = of
        watch(of - left, of)

    (version,) = source.execute("PRAGMA schema_version").fetchone()
    with closing(connect(unfinished, "rw")) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # it is synced below, once
        source.backup(copy, pages=pages, progress=step)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, readable anywhere
        note_copied(copy, version)
    watch(copied, copied)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())


def _give_name(unfinished: Path, target: Path) -> None:
    """Let the copy appear under its name, unless there is a file by now."""
    try:
        os.link(unfinished, target)
    except FileExistsError:
        _require_none(target)
    except OSError:  # a file system without hard links
        _require_none(target)
        unfinished.rename(target)


def _require_none(target: Path) -> None:
    if os.path.lexists(target):
        raise InvalidInput(f"path names {target}, which exists; a backup is a new file")
