"""The connections to one SQLite database: one for writing and two for reading."""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._sqlite.connecting.connection import ThreadConnection, fetch_rows
from async_history._sqlite.connecting.errors import (
    LOCK_PAUSE_S,
    LOG_RESET_WARNING,
    has_log_reset_fault,
    is_commit_unknown,
    is_locked,
    is_schema_mismatch,
    is_write_refused,
    may_be_of_system,
    storage_error,
    system_refusal,
    typed_errors,
)
from async_history._sqlite.connecting.file_watch import OpenFile, has_log_open, is_used_elsewhere
from async_history._sqlite.connecting.journal import location_of
from async_history._sqlite.connecting.lock_waits import run_waiting
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.index import IndexOutdated
from async_history._sqlite.opening import (
    LENGTHEN_LOG,
    connect_with_retry,
    inspect_file,
    is_there,
    open_connection,
    open_writing,
    prepare_file,
)
from async_history._sqlite.read_connections import ReadConnections
from async_history.errors import HistoryClosed, StorageError, StorageLocked

_log = logging.getLogger("async_history")

T = TypeVar("T")

MAX_REOPENS: Final = 20
"""Times that one call may reopen the file because its schema changed. With 5, one call in some
hundreds failed during frequent resets."""


@lru_cache(maxsize=1024)
def warn_of_use(path: Path, where: str) -> None:
    """Log that a file is in use elsewhere, once in a process: some open it for each request."""
    _log.warning("%s is in use elsewhere, %s. %s", path, where, LOG_RESET_WARNING)


def _do_nothing() -> None: ...


class ConnectionPool:
    """The connections to a file, or to a database in memory.

    With a write-ahead log, readers have their own connections. In memory and with a rollback
    journal, one connection does everything, in the order of calls: in memory a reader would see the
    open transaction, and with a rollback journal readers and the writer block each other anyway.

    Args:
        path: the file, or None for memory.
        journal: the journal to give the file.
        lock_timeout_s: seconds to wait while another process holds the file's lock.
        ledger: whether to create a ledger in the file.

    Attributes:
        readers: the connections that only read; none if one connection does everything.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        journal: Journal,
        durability: Durability,
        lock_timeout_s: float,
        ledger: bool,
    ) -> None:
        self.path = path
        self.where = "the history in memory" if path is None else str(path)
        self.location_warnings: tuple[StoreWarning, ...] = ()
        self.lock_timeout_s = lock_timeout_s
        self._journal: Journal | None = journal
        self._durability = durability
        self._ledger = ledger
        self._has_begun: Callable[[], None] = _do_nothing
        self._writer: ThreadConnection | None = None
        self._with_long_log: ThreadConnection | None = None
        self.readers = ReadConnections(lock_timeout_s)
        self._is_closed = False
        self._file: OpenFile | None = None
        self._is_single = path is None
        self.has_log = path is not None
        self.lock: AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        """A lock held during each read and write if one connection does everything; otherwise it
        does nothing."""

    # Opening

    async def open(self, *, create: bool) -> None:
        """Adopt and index the file, then open all connections."""
        await self._resolve_location()
        await self._open(create=create)

    async def open_unchanged(self, *, create: bool) -> bool:
        """Open the reading connections without changing the file.

        A missing file is created if `create` is true.

        Returns:
            Whether the file can be written without adopting or indexing it first.
        """
        await self._resolve_location()
        if self.path is None or not await run_in_thread(partial(is_there, self.path, create)):
            await self._open(create=create)
            return True
        ask = partial(inspect_file, self.path, lock_timeout_s=self.lock_timeout_s)
        inspection = await run_in_thread(ask)
        self._journal = None
        self.has_log = inspection.has_log
        if not self.has_log:
            self.lock = asyncio.Lock()
        await self.readers.open_read_only(self.path)
        return inspection.is_prepared

    async def _resolve_location(self) -> None:
        """Resolve the file's links and set the journal and warnings that its location requires."""
        if self.path is None or self._journal is None:
            return
        with typed_errors(self.where):
            location = await run_in_thread(partial(location_of, self.path, self._journal))
        self.path, self._journal, self.location_warnings = (
            location.file,
            location.journal,
            location.warnings,
        )
        for warning in self.location_warnings:
            _log.warning(warning)

    async def _open(self, *, create: bool) -> None:
        self.has_log = self.path is not None and self._journal != "delete"
        self._is_single = not self.has_log
        if self._is_single:
            self.lock = asyncio.Lock()
        if self.path is None:
            self._writer = await open_connection(self._open_writing())
            return
        with typed_errors(self.where):
            is_open_here = await run_in_thread(partial(has_log_open, self.path))
        self._writer = await self._prepare_and_connect(self.path, create=create)
        if self.has_log and has_log_reset_fault(sqlite3.sqlite_version_info):
            where = "in this process" if is_open_here else "by another process"
            if is_open_here or await run_in_thread(partial(is_used_elsewhere, self.path)):
                warn_of_use(self.path, where)
        if not self._is_single:
            await self.readers.open(self.path)

    async def _prepare_and_connect(self, path: Path, *, create: bool) -> ThreadConnection:
        """Adopt and index the file, and return a connection that writes."""
        prepare = partial(
            prepare_file, path, self._journal, create=create, lock_timeout_s=self.lock_timeout_s
        )
        await run_in_thread(prepare)
        connection = await connect_with_retry(self._open_writing(), self.lock_timeout_s)
        try:
            self._file = await connection.run(lambda _: OpenFile(path))
            connection.check = self._file.require_present
        except BaseException:
            await to_the_end(connection.close())
            raise
        return connection

    def _open_writing(self) -> Callable[[], sqlite3.Connection]:
        return partial(
            open_writing,
            self.path,
            self._durability,
            lambda: self._has_begun(),
            ledger=self._ledger,
        )

    # Writing

    async def write(
        self,
        work: Callable[[ThreadConnection], Awaitable[T]],
        has_begun: Callable[[], None] = _do_nothing,
    ) -> T:
        """Run work on the writing connection.

        Waits while another process holds the lock, and reopens the connection if another process
        replaced tables.

        Args:
            has_begun: called on the connection's thread when it begins to add a batch.

        Raises:
            OutcomeUnknown: the storage failed, and the transaction may still take effect.
            TryAgain: the system refused to write.
            StorageError: nothing was written.
        """
        deadline = monotonic() + self.lock_timeout_s
        self._has_begun = has_begun
        reopened = 0
        while True:
            try:
                async with self.lock:
                    return await work(self._writer or await self._writer_connection())
            except IndexOutdated as error:
                await self._close_writer()
                reason: Exception = error
            except StorageError as error:  # opening a connection that writes failed
                opening = error.__cause__
                if not isinstance(opening, sqlite3.Error) or not is_schema_mismatch(opening):
                    raise
                if reopened == MAX_REOPENS:
                    raise
                reopened += 1
                await self._close_writer()
                reason = error
            except sqlite3.Error as error:
                if is_commit_unknown(error):
                    raise OutcomeUnknown(str(storage_error(error, self.where))) from error
                if self.path is not None and may_be_of_system(error):
                    refusal = await run_in_thread(partial(system_refusal, error, self.path))
                    if refusal is not None:
                        raise refusal from error
                if is_write_refused(error):
                    raise TryAgain(storage_error(error, self.where)) from error
                if self.path is not None and is_schema_mismatch(error) and reopened < MAX_REOPENS:
                    reopened += 1
                    await self._close_writer()
                elif not is_locked(error):
                    raise storage_error(error, self.where) from error
                reason = error
            if monotonic() > deadline:
                raise _final_error(reason, self.where) from reason
            await asyncio.sleep(LOCK_PAUSE_S)

    def require_file(self) -> None:
        """Check that the open file is still at its path. This takes one or two calls of `stat`.

        Raises:
            StorageMissing: the file or its log was removed, or the open file was replaced.
            StorageError: `stat` failed.
        """
        if self.path is None:
            return
        with typed_errors(self.where):
            if self._writer is None:
                os.stat(self.path)
            elif self._file is not None:
                self._file.require_present()

    async def lengthen_log(self, connection: ThreadConnection) -> None:
        """Raise the checkpoint threshold of the writing connection."""
        if self._with_long_log is not connection:
            await connection.run(partial(fetch_rows, sql=LENGTHEN_LOG))
            self._with_long_log = connection

    async def reopen_writer(self) -> None:
        """Close and reopen the writing connection, which prepares the file as it is now."""
        await self._close_writer()

        async def nothing_more(connection: ThreadConnection) -> None: ...

        await self.write(nothing_more)

    async def vacuum(self) -> None:
        """Rewrite the file without free space, and index it again.

        Raises:
            StorageError, OutcomeUnknown: as `write`.
        """
        # If another process replaced the history, its index must be dropped before VACUUM.
        await self.reopen_writer()
        await self.write(partial(run_waiting, _vacuum))
        # VACUUM may have given the records other positions.
        await self.reopen_writer()

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another, which must not be used elsewhere meanwhile."""
        async with self.lock:
            await (await self._writer_connection()).backup(target)

    async def _writer_connection(self) -> ThreadConnection:
        """Return the writing connection; reopen it if it was closed because others made changes."""
        if self._writer is None:
            if self.path is None or self._is_closed:
                raise HistoryClosed("the manager was closed before this was written")
            self._writer = await self._prepare_and_connect(self.path, create=False)
        return self._writer

    async def _close_writer(self) -> None:
        if self._writer is not None:
            connection, self._writer = self._writer, None
            await to_the_end(connection.close())

    # Reading

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the least busy reading connection.

        Raises:
            sqlite3.Error, StorageLocked: as `read`.
        """
        return await self.read(partial(fetch_rows, sql=sql, parameters=parameters))

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function that only reads with the least busy reading connection, on its thread.

        Raises:
            sqlite3.Error: the driver's error, for the caller to convert to a typed one.
            StorageLocked: the file was changed during each attempt.
        """
        deadline = monotonic() + self.lock_timeout_s
        while True:
            async with self.lock:
                connection = await self._reader_connection()
                if not await self.readers.leaves_no_files(connection):
                    continue
                try:
                    found = await connection.read(read)
                    if await self.readers.is_unchanged(connection):
                        return found
                except sqlite3.Error as error:
                    is_final = not is_locked(error) or monotonic() > deadline
                    if await self.readers.is_unchanged(connection) and is_final:
                        raise
            if monotonic() > deadline:
                raise StorageLocked(f"{self.where} was changed whenever it was read; try again")
            await asyncio.sleep(LOCK_PAUSE_S)

    async def _reader_connection(self) -> ThreadConnection:
        """Return the least busy reading connection."""
        if self._is_single and not self._is_closed:
            return await self._writer_connection()
        return self.readers.least_busy()

    def warnings(self) -> list[StoreWarning]:
        """Return warnings about the file's location and about its removal or replacement. It may
        block."""
        gone = None if self._file is None else self._file.warning()
        return [*self.location_warnings, *([gone] if gone is not None else [])]

    # Closing

    async def close(self) -> None:
        """Close all connections, the writing one last: it copies the log into the file."""
        await self.readers.close()
        if self._writer is not None:
            self._writer.refuse_reads()
        await self._close_writer()
        self._is_closed = True

    def abandon(self) -> None:
        """Stop all connections without waiting for their work, and open none again."""
        self._is_closed = True
        self.readers.stop()
        connection, self._writer = self._writer, None
        if connection is not None:
            connection.stop()


def _vacuum(connection: ThreadConnection) -> Awaitable[Any]:
    return connection.execute_fetchall("VACUUM")


def _final_error(reason: Exception, where: str) -> StorageError:
    if isinstance(reason, sqlite3.Error):
        return storage_error(reason, where)
    return StorageLocked(f"other processes keep changing {where}; nothing was written, try again")
