"""An open history in PostgreSQL, wired from pools, a writer, a reader, a follower and an eraser."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from async_history._core.backend import Reader
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.sealed_reader import SealedFollowReader, SealedReader
from async_history._core.encryption.store_encryption import StoreEncryption
from async_history._core.ledger.ledger_store import place_all
from async_history._core.operations.operation_log import (
    OperationLog,
    OperationLogInTurn,
    StatementOperationLog,
)
from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.follow_reads import FollowReader as FollowReaderOf
from async_history._core.removing.prune import PruneCursor, PruneStep
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import PruneTries
from async_history._core.stats import Measured, clear_warning
from async_history._core.writing.submissions import AddRecords, Submission
from async_history._core.writing.writer import GroupCommitWriter
from async_history._postgres.check import faults_of
from async_history._postgres.connecting.bounds import Shares
from async_history._postgres.connecting.connections import Connections
from async_history._postgres.connecting.open_writers import OpenWriters
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.side_connections import SideConnections
from async_history._postgres.connecting.writing_connection import Write
from async_history._postgres.encrypting import ServerTexts
from async_history._postgres.key_statements import (
    COUNT_CLEAR,
    KeyAccess,
    KeyChange,
    PostgresKeyTable,
    change_keys,
    keys_lack,
)
from async_history._postgres.keys import InClear, Seal, Sealing
from async_history._postgres.ledger import (
    Attestation,
    ServerLedger,
    require_no_ledger,
    tables_of,
)
from async_history._postgres.operations import OPERATIONS
from async_history._postgres.reading.follow import FollowReader
from async_history._postgres.reading.read import HistoryReader
from async_history._postgres.removing.erase import ServerErasure
from async_history._postgres.removing.erase_keys import EncryptedEraseKeys, EraseKeys
from async_history._postgres.removing.prune import prune
from async_history._postgres.removing.reset import reset
from async_history._postgres.removing.statistics import Statistics
from async_history._postgres.removing.vacuum import Vacuum
from async_history._postgres.rows import Fetch
from async_history._postgres.schema import in_schema, quoted
from async_history._postgres.schema_steps import log_within
from async_history._postgres.store_options import StoreOptions
from async_history._postgres.transaction import transaction
from async_history._postgres.warnings import STATE, warnings_of
from async_history._postgres.writing.batches import Batches
from async_history.errors import HistoryError

T = TypeVar("T")


class PostgresStore:
    """An open history in PostgreSQL, wired from pools, a writer, a reader, a follower and an
    eraser.

    Args:
        pool: connections to the server for writes.
        read_pool: connections to the server for reads.
        committed: notified after each commit.
        ended: called when the writer has ended.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        read_pool: ConnectionPool,
        committed: CommitSignal,
        ended: Callable[[], None],
        options: StoreOptions,
    ) -> None:
        self._options = options
        self.schema = quoted(options.schema_name)
        self._has_replica = read_pool is not pool
        self._ended = ended
        self._close_timeout_s = CLOSE_TIMEOUT_S
        self.connections = self._new_connections(pool, read_pool)
        self._side = SideConnections(pool, options.server)
        self._statistics = Statistics(
            self._side, self.schema, is_distributed=options.is_distributed
        )
        ahead = Lock()
        data_keys = None if options.keys is None else DataKeys(options.keys)
        sealing = None if data_keys is None else Sealing(data_keys, ahead)
        seal: Seal = InClear() if sealing is None else sealing
        self._attestation = Attestation(self.schema, seal, ahead) if options.has_ledger else None
        self._batches = self._new_batches(seal, committed)
        self.writer = self._new_writer(pool)
        self.operations: OperationLog = OperationLogInTurn(
            self._change_log, StatementOperationLog(OPERATIONS, self._read_log)
        )
        self.ledger = self._new_ledger()
        self._vacuum = self._new_vacuum()
        self._open_writers = self._new_open_writers()
        self.eraser = self._new_eraser(data_keys)
        self.encryption = self._new_encryption(data_keys, sealing)
        self._stored_reader = self._new_reader(self.connections.fetch, read_pool)
        primary = self._new_reader(self.connections.fetch_where_written, pool)
        self.reader = self._in_clear(self._stored_reader)
        self.primary_reader = self._in_clear(primary)
        self.name_reader: Reader = primary
        self.follower = self._new_follower()

    # Its parts

    def _new_connections(self, pool: ConnectionPool, read_pool: ConnectionPool) -> Connections:
        return Connections(
            self._options.where,
            pool,
            read_pool,
            idle_s=self._options.idle_s,
            retry_timeout_s=self._options.retry_timeout_s,
        )

    def _new_batches(self, seal: Seal, committed: CommitSignal) -> Batches:
        return Batches(
            self._write,
            committed,
            self.schema,
            seal,
            self._attestation,
            server=self.connections,
            where=self._options.where,
            is_distributed=self._options.is_distributed,
            late_after_s=self._options.retry_timeout_s / 2,
            added=self._statistics.add_changes,
            waited=self._count_lock_wait,
        )

    def _new_writer(self, pool: ConnectionPool) -> GroupCommitWriter[Submission]:
        return GroupCommitWriter[Submission](
            self._batches.commit,
            finish=self._finish,
            options=self._options.writer_options,
            commit_timeout_s=self._options.retry_timeout_s,
            prepare=self._preparation(pool),
            forget_prepared=self._batches.forget_prepared,
        )

    def _preparation(self, pool: ConnectionPool) -> Callable[[Sequence[Submission]], None] | None:
        """Return the function that prepares batches while they wait; None if nothing can be."""
        if self._attestation is not None or self._options.keys is not None:
            return self._batches.prepare
        # There, a batch is never one statement.
        if self._options.is_distributed or pool.is_behind_pooler:
            return None
        return self._batches.prepare_plain

    def _new_ledger(self) -> ServerLedger | None:
        attestation = self._attestation
        return None if attestation is None else ServerLedger(attestation, self._use_apart)

    def _new_vacuum(self) -> Vacuum:
        return Vacuum(
            self._side,
            self.run_exclusively,
            self._options.where,
            self.schema,
            ask_every_s=self._options.retry_timeout_s,
            lock_timeout_s=self._options.retry_timeout_s,
            is_distributed=self._options.is_distributed,
        )

    def _new_open_writers(self) -> OpenWriters:
        return OpenWriters(
            self.connections.fetch_where_written,
            self.schema,
            self._options.where,
            timeout_s=self._options.retry_timeout_s,
        )

    def _new_eraser(self, keys: DataKeys | None) -> ServerErasure:
        return ServerErasure(
            self.run_exclusively,
            self._open_writers,
            self._vacuum,
            self._options.where,
            self.schema,
            EraseKeys() if keys is None else EncryptedEraseKeys(keys),
            self.ledger,
            is_distributed=self._options.is_distributed,
            lock_timeout_s=self._options.retry_timeout_s,
        )

    def _new_encryption(
        self, keys: DataKeys | None, sealing: Sealing | None
    ) -> StoreEncryption | None:
        if keys is None or sealing is None:
            return None
        texts = ServerTexts(
            self.run_exclusively, self._open_writers, self._vacuum, self._side, self.schema, sealing
        )
        table = PostgresKeyTable(self._fetch_keys, self.schema)
        return StoreEncryption(keys, table, self._with_keys, texts)

    def _new_reader(self, fetch: Fetch, pool: ConnectionPool) -> HistoryReader:
        return HistoryReader(
            fetch, self.schema, is_distributed=self._options.is_distributed, at_once=pool.size
        )

    def _in_clear(self, reader: HistoryReader) -> Reader:
        return reader if self.encryption is None else SealedReader(reader, self.encryption)

    def _new_follower(self) -> FollowReaderOf[Any]:
        follower = FollowReader(
            self.connections.fetch,
            self.schema,
            where=self._options.where,
            is_distributed=self._options.is_distributed,
        )
        return (
            follower if self.encryption is None else SealedFollowReader(follower, self.encryption)
        )

    # Writing

    def _write(
        self, work: "Write[T]", size_s: float = 0.0, shares: Shares | None = None
    ) -> Awaitable[T]:
        """Run work on the writing connection, with the store's current keys."""
        if self.encryption is None:
            return self.connections.write(work, size_s, shares)
        return self.encryption.with_current_keys(
            partial(self.connections.write, work, size_s, shares)
        )

    async def _use_apart(
        self,
        work: Callable[[Any, Sequence[str]], Coroutine[Any, Any, T]],
        within_s: float | None,
    ) -> T:
        """Run repeatable work, concurrently with the writes."""
        return await self._with_current_keys(partial(self.connections.write_apart, work, within_s))

    def _with_current_keys(self, work: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        return work() if self.encryption is None else self.encryption.with_current_keys(work)

    async def _with_keys(self, work: KeyChange) -> Any:
        """Do work on the tables of keys in one transaction, queued with the writes."""
        return await self.run_exclusively(
            lambda connection, settings: change_keys(connection, self.schema, settings, work)
        )

    async def _fetch_keys(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Read the tables of keys on the server for writes: a replica may lag behind."""
        return await self.connections.fetch_where_written(sql, *arguments)

    async def add_in_transaction(
        self, connection: Any, submission: AddRecords
    ) -> Mapping[int, HistoryError]:
        """Write a submission in a user's transaction; return its error by index if it is refused.

        Raises:
            The driver's errors: nothing was written.
        """

        async def change(work: KeyChange) -> Any:
            return await self.connections.write_apart(
                lambda own, settings: change_keys(own, self.schema, settings, work)
            )

        table = PostgresKeyTable(self._fetch_keys, self.schema)
        lack = partial(keys_lack, connection, self.schema, table)
        keys = partial(KeyAccess, table, change, lack)
        return await self._with_current_keys(
            partial(self._batches.add_within, connection, submission, keys)
        )

    def _count_lock_wait(self, seconds: float) -> None:
        self.writer.count_lock_wait(seconds)

    async def _change_log(self, work: Callable[[OperationLog], Coroutine[Any, Any, T]]) -> T:
        async def change(connection: Any, settings: Sequence[str]) -> T:
            async with transaction(connection, *settings):
                ledger = tables_of(self._attestation, connection)
                return await work(log_within(connection, self.schema, ledger))

        return await self.run_exclusively(change)

    async def _read_log(self, sql: str, *parameters: Any) -> Sequence[Sequence[Any]]:
        return await self.connections.fetch(in_schema(sql, self.schema), *parameters)

    def run_exclusively(self, work: "Write[T]") -> "asyncio.Future[T]":
        """Run work on the writing connection, alone, in the order of calls with all other
        writes."""
        return self.writer.run_alone(lambda: self._write(work))

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset: empty the tables in one transaction."""

        async def empty(connection: Any, settings: Sequence[str]) -> None:
            await reset(connection, self.schema, settings, operation, self._attestation)

        async def reset_in_time() -> None:
            extra_s = 0.0 if self.ledger is None else await self.ledger.before_reset()
            await self._write(empty, extra_s)

        return self.writer.run_alone(reset_in_time)

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next records in one transaction; in a dry run, only count them."""
        tries = PruneTries[Any]()
        if self.ledger is not None:
            await place_all(self.ledger)

        async def step(connection: Any, settings: Sequence[str]) -> PruneStep:
            if self.ledger is None and not asked.dry_run:
                await require_no_ledger(connection, self.schema)
            return await prune(
                connection,
                self.schema,
                settings,
                asked,
                reached,
                tries,
                self._attestation,
                is_distributed=self._options.is_distributed,
            )

        pruned = await self.run_exclusively(step)
        if not asked.dry_run:
            self._statistics.add_removed(pruned.records, is_over=pruned.reached is None)
        return pruned

    # Reading

    async def measure(self) -> Measured:
        """Return the size of the tables, and warnings about the servers' settings."""
        size = await self._stored_reader.size()
        written = await self.connections.fetch_where_written(STATE, self._options.schema_name)
        read: Sequence[Sequence[Any]] = ()
        if self._has_replica:
            read = await self.connections.fetch(STATE, self._options.schema_name)
        warnings = warnings_of(written, read)
        if self.encryption is not None and not self.encryption.keys.is_off:
            sql = in_schema(COUNT_CLEAR, self.schema)
            ((clear,),) = await self.connections.fetch(sql)
            warnings = (*warnings, *clear_warning(clear))
        return Measured(size, 0, warnings)

    async def faults(self) -> Sequence[str]:
        """Check the keys, indexes, owners, causes and ids of the tables."""
        return await self._side.use(
            lambda connection: faults_of(connection, self._options.schema_name)
        )

    # Closing

    async def aclose(self, timeout_s: float) -> None:
        """Commit the accepted calls, for at most `timeout_s`, then close the connections."""
        self._close_timeout_s = timeout_s
        await self.writer.aclose(timeout_s)
        if not self.writer.task.done():
            self.abandon()

    async def _finish(self) -> None:
        self._ended()
        await self._statistics.aclose()
        await self.connections.aclose(self._close_timeout_s)

    def abandon(self) -> None:
        """Terminate the connections without waiting for their work."""
        self.writer.abandon()
        self._statistics.stop()
        self.connections.abandon()
