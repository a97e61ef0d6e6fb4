"""Opening connections to a SQLite file: with its folder, log, settings, adoption and index.

All but `connected` block. What may take long, `glance` and `prepare_file`, is for a worker
thread; the `open_` functions are quick, and run on the thread the connection is going to live on.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from async_history._core.cancellation import to_the_end
from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._sqlite.commit import WRITE_PROGRAM
from async_history._sqlite.connection import ThreadConnection
from async_history._sqlite.errors import connect, file_size, typed_errors, wait_for_lock
from async_history._sqlite.exit import stop_at_exit
from async_history._sqlite.fork import pause_at_fork, require_usable, using_sqlite
from async_history._sqlite.index import add_functions
from async_history._sqlite.journal import synchronous, use_journal
from async_history._sqlite.readonly import Look, looked, require_writable
from async_history._sqlite.schema.adopt import as_is_view, is_prepared, prepare
from async_history._sqlite.times import add_time_function
from async_history._sqlite.worker_thread import run_in_thread
from async_history.errors import StorageMissing

_log = logging.getLogger("async_history")

_WRITER_CACHE_KIB: Final = 64 * 1024
_LOG_PAGES: Final = 1_000
"""Pages of log before it is copied into the file: 4 MB, as SQLite has it. As long as the log still
grows each commit also writes how long the file is, which took half as long again: who writes one by
one should soon be past that."""
_LONG_LOG_PAGES: Final = 4_000
"""The same for batches: 16 MB. At 3 million rows it was faster than 1,000, and than 16,000, where
the worst commit took 70 ms instead of 30."""
LENGTHEN_LOG: Final = f"PRAGMA wal_autocheckpoint = {_LONG_LOG_PAGES}"
"""For a connection that writes, once it has batches to write."""
_LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
LONGEST_LOG_BYTES: Final = 2 * _LOG_BYTES_KEPT
"""A longer log is not copied into the file any more, for somebody goes on reading what is in it."""
_THREAD_ENDS_S: Final = 0.001
"""Pause between two looks whether the thread of a connection that was not opened has ended."""


async def connected(open_: Callable[[], sqlite3.Connection]) -> ThreadConnection:
    """Open a connection on a thread of its own, which ends with the connection or the program.

    Raises:
        StorageError: no thread could be started.
    """
    opened: list[sqlite3.Connection] = []

    def connector() -> sqlite3.Connection:
        with using_sqlite():
            pause_at_fork(connection.pause)
            opened.append(open_())
        return opened[0]

    connection = ThreadConnection(connector)
    stop_at_exit(connection)
    try:
        return await connection.opened()
    except BaseException:
        await to_the_end(_discard(connection, opened))
        raise


async def _discard(connection: ThreadConnection, opened: list[sqlite3.Connection]) -> None:
    """Wait for the end of a connection's thread, which must not report to a loop that has gone, and
    close what it has opened."""
    while connection.has_thread:
        with contextlib.suppress(asyncio.CancelledError):  # an `asyncio.run` that ends
            await asyncio.sleep(_THREAD_ENDS_S)
    for abandoned in opened:
        await run_in_thread(abandoned.close)


def long_log_warning(path: Path, log_bytes: int) -> StoreWarning:
    """Return what to say of a log that only grows."""
    return StoreWarning(
        "log-grows",
        "warning",
        f"the log of {path} has {log_bytes / 1e6:,.0f} MB and only grows: a reader that stays in "
        "one transaction, or a backup, keeps it from being copied into the file. End that",
    )


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at a file told: whether it is ready to be written, and whether it has a log."""

    is_prepared: bool
    has_log: bool


def glance(path: Path, *, lock_timeout_s: float) -> Glance:
    """Look, without changing it, whether a file must be adopted or indexed to be written.

    Raises:
        MigrationError: the file's layout can't be used.
    """

    def told(looking: Look) -> Glance:
        return Glance(is_prepared(looking.connection), not looking.has_rollback_journal)

    with typed_errors(str(path)):
        return looked(lambda: look(path), told, lock_timeout_s)


def is_there(path: Path, create: bool) -> bool:
    """Return whether there is a file with something in it (an empty one is no history yet)."""
    with typed_errors(str(path)):
        is_there = path.exists() and file_size(path) > 0
    if not is_there and not create:
        raise StorageMissing(f"{path} does not exist, or is empty, and create=False")
    return is_there


def prepare_file(
    path: Path, journal: Journal | None, *, create: bool, lock_timeout_s: float
) -> None:
    """Make the file if need be, give it its journal, adopt it, index it. Done already, it is quick.

    Without a journal to give it keeps the one it has.

    Raises:
        StorageMissing: there is no file, or an empty one, and `create` is False.
        MigrationError: the file's layout can't be used; it was not changed.
        StorageError: the file can't be opened for writing, or can't have this journal.
    """
    with typed_errors(str(path)):
        require_usable(path)
        if not is_there(path, create):
            _make_file(path)
        require_writable(path, journal)
        with contextlib.closing(connect(path, "rw")) as connection:
            # Refuses what can't be adopted before the journal changes the file's first page.
            wait_for_lock(lambda: as_is_view(connection), lock_timeout_s)
            if journal is not None:
                use_journal(connection, path, journal, lock_timeout_s)
            prepare(connection, path, lock_timeout_s=lock_timeout_s)


def open_writing(
    path: Path | None, durability: Durability, say_begun: Callable[[], None]
) -> sqlite3.Connection:
    """Open the connection that writes to a prepared file, or to a new database in memory.

    It calls `say_begun` on its thread whenever it has the lock and begins to add a batch.
    """

    def begun() -> bool:
        say_begun()
        return True

    with typed_errors(str(path or "the history in memory")):
        connection = connect(path, "rw")
        try:
            connection.execute(f"PRAGMA synchronous = {synchronous(connection, durability)}")
            connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_KEPT}")
            if path is None:
                prepare(connection, None)
            add_functions(connection)
            add_time_function(connection)
            connection.create_function("async_history_begun", 0, begun, deterministic=True)
            connection.executescript(WRITE_PROGRAM)
        except BaseException:
            connection.close()
            raise
        return connection


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a connection that reads a file someone of ours has prepared."""
    with typed_errors(str(path)):
        connection = connect(path, "ro")
        try:
            add_functions(connection)  # SQLite opens the file at the first look
            add_time_function(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def look(path: Path) -> Look:
    """Open a connection that reads a file of any age as if it had today's layout.

    The file is not changed, and nothing is left beside it.

    Raises:
        MigrationError: the file's layout is not known, or newer than this library.
    """
    with typed_errors(str(path)):
        looking = Look(path)
        connection = looking.connection
        try:
            view = as_is_view(connection)
            if view is not None:
                connection.execute("PRAGMA query_only = OFF")
                connection.execute(f"CREATE TEMP VIEW history AS {view}")
                connection.execute("PRAGMA query_only = ON")
            add_functions(connection)
            add_time_function(connection)
        except BaseException:
            looking.close()
            raise
        return looking


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never open and close a file that is there: closing would drop the locks this process holds
    # on it (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
