"""Opening connections to a SQLite file, and preparing the file: folder, journal, adoption, index.

All functions except `open_connection` block. `inspect_file` and `prepare_file` may take long
and are for a worker thread. The others are quick and run on the connection's own thread.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.running_loop import running_loop
from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.connecting.errors import (
    LOCK_PAUSE_S,
    connect,
    file_size,
    typed_errors,
    wait_for_lock,
)
from async_history._sqlite.connecting.exit import stop_at_exit
from async_history._sqlite.connecting.fork import pause_at_fork, require_usable, using_sqlite
from async_history._sqlite.connecting.journal import synchronous, use_journal
from async_history._sqlite.connecting.readonly import (
    ReadOnlyFile,
    read_with_retry,
    require_writable,
)
from async_history._sqlite.connecting.worker_thread import run_in_thread, serve
from async_history._sqlite.index import add_functions, create_missing_views
from async_history._sqlite.ledger import make_tables, write_program
from async_history._sqlite.operations import create_missing_log
from async_history._sqlite.schema.adopt import compatibility_view, is_prepared, prepare
from async_history._sqlite.times import add_time_function
from async_history.errors import StorageLocked, StorageMissing

_log = logging.getLogger("async_history")

_WRITER_CACHE_KIB: Final = 64 * 1024
_LOG_PAGES: Final = 1_000
"""Pages in the log at which it is checkpointed: 4 MB, SQLite's default. While the log file grows,
each commit also writes the file's length, which took half as long again. A small log reaches its
full size soon, which suits single writes."""
_LONG_LOG_PAGES: Final = 4_000
"""The same for batches: 16 MB. At 3 million rows it was faster than 1,000 pages. With 16,000 pages,
the slowest commit took 70 ms instead of 30."""
LENGTHEN_LOG: Final = f"PRAGMA wal_autocheckpoint = {_LONG_LOG_PAGES}"
"""Run on a writing connection when it gets its first large batch."""
_LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
LONGEST_LOG_BYTES: Final = 2 * _LOG_BYTES_KEPT
"""A log longer than this is no longer checkpointed completely, because a reader holds it."""
_THREAD_ENDS_S: Final = 0.001
"""Seconds between two checks whether the thread of a connection that failed to open has ended."""


async def open_connection(open_: Callable[[], sqlite3.Connection]) -> ThreadConnection:
    """Open a connection on its own thread, which ends with the connection or with the program.

    Raises:
        StorageError: no thread could be started.
    """
    opened: list[sqlite3.Connection] = []
    loop = running_loop()

    def connector() -> sqlite3.Connection:
        serve(loop)
        with using_sqlite():
            pause_at_fork(connection.pause)
            opened.append(open_())
        return opened[0]

    connection = ThreadConnection(connector)
    stop_at_exit(connection, loop)
    try:
        return await connection.opened()
    except BaseException:
        await to_the_end(_discard(connection, opened))
        raise


async def connect_with_retry(
    open_: Callable[[], sqlite3.Connection], lock_timeout_s: float
) -> ThreadConnection:
    """Open a connection on its own thread, waiting while another connection holds the lock.

    Raises:
        StorageLocked: it is still held after `lock_timeout_s`.
        StorageError: as `open_connection`, or the file can't be opened.
    """
    deadline = monotonic() + lock_timeout_s
    while True:
        try:
            return await open_connection(open_)
        except StorageLocked:
            if monotonic() > deadline:
                raise
        await asyncio.sleep(LOCK_PAUSE_S)


async def _discard(connection: ThreadConnection, opened: list[sqlite3.Connection]) -> None:
    """Wait until a connection's thread has ended, then close what it opened.

    The thread must not outlive the event loop that it reports to.
    """
    while connection.has_thread:
        with contextlib.suppress(asyncio.CancelledError):  # an `asyncio.run` that ends
            await asyncio.sleep(_THREAD_ENDS_S)
    for abandoned in opened:
        await run_in_thread(abandoned.close)


def long_log_warning(path: Path, log_bytes: int) -> StoreWarning:
    """Return the warning about a log that only grows."""
    return StoreWarning(
        "log-grows",
        "warning",
        f"the log of {path} has {log_bytes / 1e6:,.0f} MB and only grows: a reader with a long "
        "transaction, or a backup, keeps it from being copied into the file. End that reader",
    )


@dataclass(frozen=True, slots=True)
class Inspection:
    """A file's state: whether it is ready to be written, and whether it has a write-ahead log."""

    is_prepared: bool
    has_log: bool


def inspect_file(path: Path, *, lock_timeout_s: float) -> Inspection:
    """Inspect a file without changing it: must it be adopted or indexed before a write?

    Raises:
        MigrationError: the file's layout can't be used.
    """

    def inspect(looking: ReadOnlyFile) -> Inspection:
        return Inspection(is_prepared(looking.connection), not looking.has_rollback_journal)

    with typed_errors(str(path)):
        return read_with_retry(lambda: open_read_only(path), inspect, lock_timeout_s)


def is_there(path: Path, create: bool) -> bool:
    """Return whether the file exists and is not empty.

    Raises:
        StorageMissing: it does not exist, or is empty, and `create` is False.
    """
    with typed_errors(str(path)):
        is_there = path.exists() and file_size(path) > 0
    if not is_there and not create:
        raise StorageMissing(f"{path} does not exist, or is empty, and create=False")
    return is_there


def prepare_file(
    path: Path, journal: Journal | None, *, create: bool, lock_timeout_s: float
) -> None:
    """Create the file if it is missing, set its journal, adopt it and index it.

    This is quick if nothing is left to do. With `journal=None` the file keeps its journal.

    Raises:
        StorageMissing: there is no file, or an empty one, and `create` is False.
        MigrationError: the file's layout can't be used; it was not changed.
        StorageError: the file can't be opened for writing, or can't have this journal.
    """
    with typed_errors(str(path), written=path):
        require_usable(path)
        if not is_there(path, create):
            _make_file(path)
        require_writable(path, journal)
        with contextlib.closing(connect(path, "rw")) as connection:
            # Refuse what can't be adopted before changing the journal, which writes the first page.
            wait_for_lock(lambda: compatibility_view(connection), lock_timeout_s)
            if journal is not None:
                use_journal(connection, path, journal, lock_timeout_s)
            prepare(connection, path, lock_timeout_s=lock_timeout_s)


def open_writing(
    path: Path | None,
    durability: Durability,
    say_begun: Callable[[], None],
    *,
    ledger: bool,
) -> sqlite3.Connection:
    """Open the writing connection to a prepared file, or to a new database in memory.

    It calls `say_begun` on its thread each time it has the lock and begins to add a batch. With
    `ledger`, a ledger is created if the file has none.
    """

    def begun() -> bool:
        say_begun()
        return True

    with typed_errors(str(path or "the history in memory"), written=path):
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
            if ledger:
                make_tables(connection)
            connection.executescript(write_program(connection))
        except BaseException:
            connection.close()
            raise
        return connection


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a reading connection to a prepared file."""
    with typed_errors(str(path)):
        connection = connect(path, "ro")
        try:
            add_functions(connection)  # this reads the file, so SQLite opens it now
            add_time_function(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def open_read_only(path: Path) -> ReadOnlyFile:
    """Open a connection that reads a file of any layout as if it had the current one.

    The file is not changed, and no files are left next to it.

    Raises:
        MigrationError: the file's layout is not known, or newer than this library.
    """
    with typed_errors(str(path)):
        looking = ReadOnlyFile(path)
        connection = looking.connection
        try:
            view = compatibility_view(connection)
            connection.execute("PRAGMA query_only = OFF")
            if view is not None:
                connection.execute(f"CREATE TEMP VIEW history AS {view}")
            create_missing_views(connection)
            create_missing_log(connection)
            connection.execute("PRAGMA query_only = ON")
            add_functions(connection)
            add_time_function(connection)
        except BaseException:
            looking.close()
            raise
        return looking


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never open and close an existing file: closing it would drop this process's locks on it
    # (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
