"""An open SQLite file, wired from a pool, a writer, a reader, a follower and an eraser."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from async_history._core.backend import Reader, Writer
from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.key_statements import KeyTable
from async_history._core.encryption.sealed_reader import SealedFollowReader, SealedReader
from async_history._core.encryption.store_encryption import StoreEncryption
from async_history._core.ledger.ledger_store import LedgerStore, place_all
from async_history._core.operations.operation_log import (
    OperationLog,
    OperationLogInTurn,
    StatementOperationLog,
)
from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.follow_reads import FollowReader as FollowReaderOf
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune import PruneCursor, PruneStep
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import PruneTries
from async_history._core.stats import Measured, StoreWarning, clear_warning
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import Submission
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from async_history._sqlite.backup import PAGES_AT_ONCE, back_up, back_up_file, run
from async_history._sqlite.check import faults_of, faults_of_file, faults_of_indexed
from async_history._sqlite.connecting.connection import ThreadConnection, transaction
from async_history._sqlite.connecting.errors import (
    LOG_RESET_WARNING,
    connect,
    has_log_reset_fault,
    is_schema_mismatch,
    storage_error,
    typed_errors,
)
from async_history._sqlite.connecting.lock_waits import run_waiting
from async_history._sqlite.connecting.readonly import side_file
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.encrypting import FileTexts
from async_history._sqlite.index import THROUGH_INDEX, WITHOUT_INDEX, IndexOutdated
from async_history._sqlite.key_statements import (
    COUNT_CLEAR,
    create_tables,
    in_transaction,
    table_read,
)
from async_history._sqlite.keys import EncryptedFileKeys, FileKeys, Sealing
from async_history._sqlite.ledger import LedgerFile
from async_history._sqlite.opening import LONGEST_LOG_BYTES, long_log_warning
from async_history._sqlite.operations import OPERATIONS, file_log
from async_history._sqlite.pool import MAX_REOPENS, ConnectionPool
from async_history._sqlite.read_connections import READERS
from async_history._sqlite.reading.follow import FollowReader
from async_history._sqlite.reading.read import HistoryReader
from async_history._sqlite.reading.recent import RecentCommits
from async_history._sqlite.removing.erase import FileErasure
from async_history._sqlite.removing.prune import prune
from async_history._sqlite.removing.reset import reset
from async_history._sqlite.writing.commit import BatchCommitter
from async_history._sqlite.writing.encoding import check_parameters
from async_history._sqlite.writing.known_owners import KnownOwners
from async_history._sqlite.writing.writers import UnpreparedWriter, UTF16Writer, unprepared_error
from async_history.errors import HistoryError, StorageError

T = TypeVar("T")

_LONG_LOG_BATCH: Final = 10
"""A batch of this many submissions raises the log's checkpoint threshold."""


class SQLiteStore:
    """An open SQLite file, wired from a pool, a writer, a reader, a follower and an eraser.

    Args:
        pool: the open connections.
        committed: notified after each commit.
        ended: called when the writer has ended.
        writer_options: None if the file must be adopted or indexed before it can be written.
        is_utf16: whether the file's encoding is UTF-16, which can't hold every text.
        keys: the master keys, if the file is encrypted.
        has_ledger: whether the file has a ledger.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        committed: CommitSignal,
        ended: Callable[[], None],
        writer_options: WriterOptions | None,
        *,
        is_utf16: bool,
        keys: KeyRing | None = None,
        has_ledger: bool = False,
    ) -> None:
        self.pool = pool
        data_keys = None if keys is None else DataKeys(keys)
        self._keys = FileKeys() if data_keys is None else EncryptedFileKeys(data_keys)
        self._committed = committed
        self._ended = ended
        self._is_utf16 = is_utf16
        self._recent = RecentCommits()
        self._known_owners = KnownOwners()
        self._committer: BatchCommitter | None = None
        self._group_writer: GroupCommitWriter[Submission] | None = None
        self.writer: Writer = UnpreparedWriter(pool.where)
        if writer_options is not None:
            self.writer = self._group_writer = GroupCommitWriter(
                self._commit,
                finish=self._finish,
                options=writer_options,
                commit_timeout_s=pool.lock_timeout_s,
                check_storage=pool.require_file,
            )
            if is_utf16:
                self.writer = UTF16Writer(self._group_writer)
        lookup = WITHOUT_INDEX if writer_options is None else THROUGH_INDEX
        self.stored_reader = reader = HistoryReader(self.fetch, lookup, READERS)
        self.reader: Reader = reader
        self.name_reader: Reader = reader
        self.follower: FollowReaderOf[Any] = FollowReader(self.fetch, reader, self._recent)
        self.operations: OperationLog = OperationLogInTurn(
            self._change_log, StatementOperationLog(OPERATIONS, self._read_log)
        )
        self.ledger: LedgerStore | None = None
        if has_ledger:
            self.ledger = LedgerFile(self.run_exclusively, self._read, self._keys.seal)
        self.eraser = FileErasure(
            self.run_exclusively,
            self._vacuum,
            pool.path,
            pool.lock_timeout_s,
            self._keys,
            self.ledger,
        )
        self.encryption: StoreEncryption | None = None
        if data_keys is not None:
            self.encryption = StoreEncryption(
                data_keys,
                table_read(self.fetch),
                self._with_keys,
                FileTexts(self.run_exclusively, Sealing(data_keys), self.eraser.overwrite),
            )
            self.reader = SealedReader(reader, self.encryption)
            # Recent records are in clear, and this follower would open them again.
            none_kept = FollowReader(self.fetch, reader, RecentCommits())
            self.follower = SealedFollowReader(none_kept, self.encryption)

    # Writing

    async def _commit(
        self, batch: Sequence[Submission], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        async def commit(connection: ThreadConnection) -> Mapping[int, HistoryError]:
            if len(batch) >= _LONG_LOG_BATCH:
                await self.pool.lengthen_log(connection)
            committer = self._committer_of(connection)
            return await committer.commit(batch, is_repeated=this.is_repeated)

        refused = await self._write(commit, this.has_begun)
        self._committed.notify()
        return refused

    def _committer_of(self, connection: ThreadConnection) -> BatchCommitter:
        if self._committer is None or self._committer.connection is not connection:
            self._committer = BatchCommitter(
                connection,
                self._recent,
                self._known_owners,
                self._keys.seal,
                self._require_group_writer().count_lock_wait,
                measures_waits=self.pool.has_log,
            )
        return self._committer

    def _write(
        self,
        work: Callable[[ThreadConnection], Awaitable[T]],
        has_begun: Callable[[], None] = lambda: None,
    ) -> Coroutine[Any, Any, T]:
        """Run work on the writing connection, with the file's current keys."""
        if self.encryption is None:
            return self.pool.write(work, has_begun)
        return self.encryption.with_current_keys(lambda: self.pool.write(work, has_begun))

    async def _with_keys(self, work: Callable[[KeyTable], Coroutine[Any, Any, T]]) -> T:
        """Do work on the key tables in one transaction, queued with the writes."""
        step = partial(in_transaction, work)
        return await self.run_exclusively(lambda connection: connection.run(step))

    async def create_key_tables(self) -> None:
        """Create the missing tables and indexes of an encrypted file."""
        await self.run_exclusively(lambda connection: connection.run(create_tables))

    async def _change_log(self, work: Callable[[OperationLog], Coroutine[Any, Any, T]]) -> T:
        step = partial(_in_log, work)
        return await self.run_exclusively(lambda connection: connection.run(step))

    def run_exclusively(
        self, work: Callable[[ThreadConnection], Awaitable[T]]
    ) -> "asyncio.Future[T]":
        """Run work on the writer's connection, alone, in the order of calls with all other
        writes."""

        async def alone() -> T:
            self._recent.forget()
            return await self._write(partial(run_waiting, work))

        return self._require_group_writer().run_alone(alone)

    def _reopen_writer(self) -> "asyncio.Future[None]":
        return self._require_group_writer().run_alone(self.pool.reopen_writer)

    def _vacuum(self) -> "asyncio.Future[None]":
        async def alone() -> None:
            self._recent.forget()
            await self.pool.vacuum()

        # One turn, which a cancelled caller does not end: VACUUM alone outdates the index.
        return self._require_group_writer().run_alone(alone)

    def _require_group_writer(self) -> GroupCommitWriter[Submission]:
        if self._group_writer is None:
            raise unprepared_error(self.pool.where)
        return self._group_writer

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset: drop and create the tables in one transaction."""
        return self.run_exclusively(partial(reset, operation, self._keys))

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next records in one transaction; in a dry run, only count them."""
        if self.ledger is not None and not asked.dry_run:
            await place_all(self.ledger)
        step = partial(prune, asked, reached, PruneTries[RecordRef]())
        return await self.run_exclusively(lambda connection: connection.run(step))

    # Reading

    @property
    def primary_reader(self) -> Reader:
        """The reader: there are no replicas."""
        return self.reader

    async def _read_log(self, sql: str, *parameters: Any) -> Sequence[Sequence[Any]]:
        numbered = {str(number): value for number, value in enumerate(parameters, 1)}
        return await self.fetch(sql, numbered)

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one SELECT. If another process replaced tables, reopen the file and run it again."""
        pool = self.pool
        if self._is_utf16:
            check_parameters(parameters)
        for _ in range(MAX_REOPENS):
            try:
                return await pool.fetch(sql, parameters)
            except sqlite3.Error as error:
                if not is_schema_mismatch(error):
                    raise storage_error(error, pool.where) from error
                if self._group_writer is None:
                    return []  # an old file lacks some tables
            await self._reopen_writer()
        with typed_errors(pool.where):
            return await pool.fetch(sql, parameters)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function that only reads, on a connection's thread, with the current keys."""
        with typed_errors(self.pool.where):
            if self.encryption is None:
                return await self.pool.read(read)
            return await self.encryption.with_current_keys(lambda: self.pool.read(read))

    async def back_up(
        self,
        target: Path,
        on_progress: Callable[[int, int], None] | None,
        *,
        pages: int = PAGES_AT_ONCE,
    ) -> None:
        """Copy the whole database into a new file, `pages` at a time, while writes continue."""
        pool = self.pool
        if pool.path is not None:
            # With a rollback journal a reader blocks the writer, so our writes wait for this lock.
            async with pool.lock:
                copy = partial(back_up_file, pool.path, pool.lock_timeout_s, target, pages)
                await run(copy, on_progress)
            return
        with contextlib.ExitStack() as opened:  # closes what a cancelled call did not get

            def connect_to_memory() -> sqlite3.Connection:
                return opened.enter_context(contextlib.closing(connect(None, "rw")))

            whole = await to_the_end(run_in_thread(connect_to_memory))
            await to_the_end(pool.copy_into(whole))
            await run(partial(back_up, whole, target, pages), on_progress)

    async def measure(self) -> Measured:
        """Return the sizes of the file and its log, and warnings about its location."""
        path = self.pool.path
        measured = Measured()
        if path is not None:
            measured = await run_in_thread(partial(self._measure, path))
        if self.encryption is None or self.encryption.keys.is_off:
            return measured
        ((clear,),) = await self.fetch(COUNT_CLEAR, {})
        return replace(measured, warnings=(*measured.warnings, *clear_warning(clear)))

    async def faults(self) -> Sequence[str]:
        """Check the file's pages, the ids, and each entry of the index.

        An outdated index is rebuilt first, as before a read that needs it.
        """
        path = self.pool.path
        if path is None:
            return await self.run_exclusively(lambda connection: connection.run(faults_of))
        check = partial(faults_of_file, path, self.pool.lock_timeout_s)
        for _ in range(0 if self._group_writer is None else MAX_REOPENS):
            with contextlib.suppress(IndexOutdated):
                return await run_in_thread(partial(check, faults_of_indexed))
            try:
                await self._reopen_writer()
            except StorageError:
                break  # the check says what is wrong
        return await run_in_thread(partial(check, faults_of))

    def _measure(self, path: Path) -> Measured:
        warnings = self.pool.warnings()
        file_bytes, log_bytes = _sizes(path, side_file(path, "-wal"))
        if log_bytes > LONGEST_LOG_BYTES:
            warnings.append(long_log_warning(path, log_bytes))
        if self.pool.has_log and has_log_reset_fault(sqlite3.sqlite_version_info):
            warnings.append(StoreWarning("wal-reset-fault", "critical", LOG_RESET_WARNING))
        return Measured(file_bytes, log_bytes, tuple(warnings))

    # Closing

    async def aclose(self, timeout_s: float) -> None:
        """Commit the accepted calls, for at most `timeout_s`, then close the connections."""
        if self._group_writer is None:
            await self._finish()
            return
        await self._group_writer.aclose(timeout_s)
        if not self._group_writer.task.done():
            self.abandon()

    async def _finish(self) -> None:
        self._ended()
        await self.pool.close()

    def abandon(self) -> None:
        """Stop the connections without waiting for their work."""
        if self._group_writer is not None:
            self._group_writer.abandon()
        self.pool.abandon()


def _in_log(
    work: Callable[[OperationLog], Coroutine[Any, Any, T]], connection: sqlite3.Connection
) -> T:
    with transaction(connection):
        return run_to_completion(work(file_log(connection)))


def _sizes(*paths: Path) -> list[int]:
    """Return the size of each file in bytes; 0 if it does not exist."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            sizes.append(0)
    return sizes
