"""An open history, wired from connections, a writer, a reader, a follower and an eraser."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.backend import Reader
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.key_statements import KeyTable
from async_history._core.encryption.sealed_reader import SealedFollowReader, SealedReader
from async_history._core.encryption.store_encryption import StoreEncryption
from async_history._core.ledger.ledger_store import place_all
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operation_log import OperationLog, OperationLogInTurn
from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.follow_reads import FollowReader
from async_history._core.removing.erase_transaction import EraseTransaction, RecordRef
from async_history._core.removing.prune import PruneCursor, PruneStep, prune_step
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import PruneTries
from async_history._core.stats import Measured, StoreWarning, clear_warning
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import AddRecords, Submission
from async_history._core.writing.too_large import write_others
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from async_history._sql.check import faults_of
from async_history._sql.connecting.connections import Connections
from async_history._sql.connecting.packets import find_too_large
from async_history._sql.connecting.session_limits import OWN_LIMITS, Limits
from async_history._sql.dialects import is_mysql, size_query
from async_history._sql.encrypting import SqlTexts
from async_history._sql.key_statements import WrittenKeyTable, count_clear, table_read
from async_history._sql.keys import InClear, Seal, Sealing
from async_history._sql.ledger import (
    LEAF_S,
    Attestation,
    SqlLedger,
    require_no_ledger,
    tables_of,
)
from async_history._sql.operations import SqlOperationLog, log_within
from async_history._sql.reading.follow import SqlFollowReader
from async_history._sql.reading.read import HistoryReader
from async_history._sql.removing.erase import EraseSteps, SqlErasure, out_of_reach
from async_history._sql.removing.prune import Pruning
from async_history._sql.removing.reset import reset
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction
from async_history._sql.warnings import JIT, SETTINGS, jit_warning, warnings_of
from async_history._sql.writing.batch_tries import BatchTries
from async_history._sql.writing.batches import Batches
from async_history.errors import HistoryError

T = TypeVar("T")

_READ_ALL_S: Final = 600.0
"""Extra seconds for reads of all records or leaves. A check takes 26 us of CPU a record, so this is
enough for some 20 million."""


class SqlStore:
    """An open history, wired from connections, a writer, a reader, a follower and an eraser.

    Args:
        keys: the keys of an encrypted history.
        statement_bytes: the most bytes of a statement; None: unlimited.
        has_ledger: whether the history has a ledger.
        writer_options, retry_timeout_s: see `GroupCommitWriter`.
        committed: notified after each commit.
        ended: called when the writer has ended.
    """

    def __init__(
        self,
        connections: Connections,
        tables: Tables,
        *,
        keys: KeyRing | None,
        statement_bytes: int | None,
        has_ledger: bool,
        writer_options: WriterOptions,
        retry_timeout_s: float,
        committed: CommitSignal,
        ended: Callable[[], None],
    ) -> None:
        self.connections = connections
        self.tables = tables
        self._retry_timeout_s = retry_timeout_s
        self._ended = ended
        self._statement_bytes = statement_bytes
        self.encryption: StoreEncryption | None = None
        self._seal: Seal = InClear(connections.where)
        reader, follower = HistoryReader(connections, tables), SqlFollowReader(connections, tables)
        self.reader: Reader = reader
        self.name_reader: Reader = reader
        self.follower: FollowReader[Any] = follower
        if keys is not None:
            data_keys = DataKeys(keys)
            sealing = self._seal = Sealing(data_keys)
            self.encryption = self._new_encryption(data_keys, sealing)
            self.reader = SealedReader(reader, self.encryption)
            self.follower = SealedFollowReader(follower, self.encryption)
        self._attestation = Attestation(tables, self._seal) if has_ledger else None
        self._batches = self._new_batches()
        self._tries = self._new_tries(committed)
        self.writer = GroupCommitWriter[Submission](
            self._commit,
            finish=self._finish,
            options=writer_options,
            commit_timeout_s=retry_timeout_s,
            prepare=self._batches.prepare if has_ledger else None,
            forget_prepared=self._batches.forget_prepared,
        )
        self.ledger: SqlLedger | None = None
        if self._attestation is not None:
            self.ledger = SqlLedger(self._attestation, self._with_state, self._read_ledger)
        self.operations: OperationLog = OperationLogInTurn(
            self._change_log, SqlOperationLog(tables, connections.read)
        )
        self.eraser = self._new_eraser()

    # Its parts

    def _new_encryption(self, keys: DataKeys, sealing: Sealing) -> StoreEncryption:
        texts = SqlTexts(
            self._write_alone,
            self._with_state,
            self.connections.dialect,
            self.tables,
            sealing,
            self._statement_bytes,
            self.connections.where,
        )
        return StoreEncryption(keys, table_read(self.tables, self._fetch), self._with_keys, texts)

    def _new_batches(self) -> Batches:
        return Batches(
            self.connections,
            self.tables,
            statement_bytes=self._statement_bytes,
            seal=self._seal,
            attestation=self._attestation,
        )

    def _new_tries(self, committed: CommitSignal) -> BatchTries:
        return BatchTries(
            self._batches,
            self._write_within,
            self.connections.session_limits,
            retry_timeout_s=self._retry_timeout_s,
            waited=lambda seconds: self.writer.count_lock_wait(seconds),
            committed=committed.notify,
        )

    def _new_eraser(self) -> SqlErasure:
        written_again = [self.tables.history, self.tables.messages, self.tables.owners]
        if self._attestation is not None:
            written_again.append(self.tables.ledger)
        erased = out_of_reach(self.connections.dialect, written_again, "the erasure")
        return SqlErasure(self._erase, erased, self._destroy_keys)

    # Writing

    async def _commit(
        self, batch: Sequence[Submission], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        too_large = find_too_large(batch, self._statement_bytes, self._seal, self.connections.where)
        return await write_others(batch, too_large, partial(self._tries.commit, this=this))

    async def _write(
        self, work: Callable[[AsyncConnection], Awaitable[T]], extra_s: float = 0.0
    ) -> T:
        """Do work in a transaction that may take `retry_timeout_s`."""
        return await self._write_within(work, self._retry_timeout_s + extra_s, OWN_LIMITS)

    async def _write_within(
        self, work: Callable[[AsyncConnection], Awaitable[T]], within_s: float, limits: Limits
    ) -> T:
        """Do work in a transaction on the writing connection, with the store's current keys."""
        if self.encryption is None:
            return await self.connections.write(work, within_s, limits)
        sealed = partial(self._write_sealed, work, within_s, limits)
        return await self.encryption.with_current_keys(sealed)

    async def _write_sealed(
        self, work: Callable[[AsyncConnection], Awaitable[T]], within_s: float, limits: Limits
    ) -> T:
        try:
            return await self.connections.write(work, within_s, limits)
        except BaseException:
            self._seal.undone()
            raise

    async def _with_current_keys(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.encryption is None:
            return await work()
        return await self.encryption.with_current_keys(work)

    def _write_alone(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> "asyncio.Future[T]":
        """Queue work for a transaction on the writing connection, in order with the writes."""
        return self.writer.run_alone(lambda: self._write(work))

    def _begun(self, connection: AsyncConnection) -> Transaction:
        return Transaction(connection, self.tables, is_ours=True)

    def _with_state(self, work: Callable[[Transaction], Awaitable[T]]) -> "asyncio.Future[T]":
        """Queue work with `state` locked, in order with the writes."""
        return self._write_alone(self._locked(work))

    def _locked(
        self, work: Callable[[Transaction], Awaitable[T]]
    ) -> Callable[[AsyncConnection], Awaitable[T]]:
        """Return work that locks `state` before, and writes the counters after."""

        async def do(connection: AsyncConnection) -> T:
            transaction = self._begun(connection)
            await transaction.lock()
            await self._seal.check(transaction)
            done = await work(transaction)
            await transaction.write_state()
            return done

        return do

    async def _change_log(self, work: Callable[[OperationLog], Coroutine[Any, Any, T]]) -> T:
        async def change(connection: AsyncConnection) -> T:
            ledger = tables_of(self._attestation, self._begun(connection))
            return await work(log_within(connection, self.tables, ledger))

        return await self._write_alone(change)

    async def _read_ledger(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._with_current_keys(lambda: self.connections.read(work, _READ_ALL_S))

    async def _erase(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        async def erase(transaction: Transaction) -> T:
            await self._require_ledger_known(transaction)
            ledger = tables_of(self._attestation, transaction)
            return await work(EraseSteps(transaction, self._seal, ledger))

        if self.ledger is not None:
            await place_all(self.ledger)
        return await self._with_state(erase)

    async def _require_ledger_known(self, transaction: Transaction) -> None:
        if self.ledger is None:
            await require_no_ledger(transaction.connection, self.tables)

    async def _with_keys(self, work: Callable[[KeyTable], Coroutine[Any, Any, T]]) -> T:
        return await self._with_state(lambda transaction: work(WrittenKeyTable(transaction)))

    async def _fetch(self, statement: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        async def fetch(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement, values)).all()

        return await self.connections.read(fetch)

    async def _destroy_keys(self, key_ids: Sequence[str]) -> None:
        await self._with_state(partial(self._seal.destroy, key_ids))

    async def add_in_transaction(
        self, connection: AsyncConnection, submission: AddRecords
    ) -> Mapping[int, HistoryError]:
        """Write a submission in a user's transaction; return its error by index if it is refused.

        Raises:
            DriverError: nothing was written.
        """

        async def add() -> Mapping[int, HistoryError]:
            return await self._batches.write_apart(connection, [submission])

        return await self._with_current_keys(add)

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset, which removes records, messages and owners. Numbers are not reused."""

        async def empty(transaction: Transaction) -> None:
            await self._require_ledger_known(transaction)
            ledger = tables_of(self._attestation, transaction)
            await reset(transaction, self.tables, operation, ledger)

        async def reset_in_time() -> None:
            await self._write(self._locked(empty), await self._place_before_reset())

        return self.writer.run_alone(reset_in_time)

    async def _place_before_reset(self) -> float:
        """Place all leaves; return the extra seconds that a reset may need for them."""
        if self._attestation is None:
            return 0.0

        async def write(work: Callable[[Transaction], Awaitable[T]]) -> T:
            return await self._write(self._locked(work))

        ledger = SqlLedger(self._attestation, write, self._read_ledger)  # the reset has its turn
        await place_all(ledger)
        return await ledger.read(LedgerTables.size) * LEAF_S

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next records in one transaction; in a dry run, only count them."""
        tries = PruneTries[RecordRef]()
        if self.ledger is not None and not asked.dry_run:
            await place_all(self.ledger)

        async def step(transaction: Transaction) -> PruneStep:
            if not asked.dry_run:
                await self._require_ledger_known(transaction)
            ledger = tables_of(self._attestation, transaction)
            steps = Pruning(transaction.connection, self.tables, ledger)
            done = await prune_step(asked, reached, steps, tries)
            if steps.has_removed_owners:
                transaction.next_version()
            return done

        return await self._with_state(step)

    # Reading

    @property
    def primary_reader(self) -> Reader:
        """The reader: there are no replicas."""
        return self.reader

    async def measure(self) -> Measured:
        """Return the size of the tables and the warnings, if the database reports them."""
        dialect = self.connections.dialect
        query = size_query(dialect, self.tables, has_ledger=self.ledger is not None)

        async def measure(connection: AsyncConnection) -> Measured:
            warnings: list[StoreWarning] = []
            if is_mysql(dialect):
                warnings += warnings_of(*(await connection.execute(SETTINGS)).one())
            if dialect.name == "postgresql":
                warnings += jit_warning((await connection.execute(JIT)).scalar_one())
            if self.encryption is not None:
                clear = (await connection.execute(count_clear(dialect, self.tables))).scalar_one()
                warnings += clear_warning(clear)
            if query is None:
                return Measured(warnings=tuple(warnings))
            size = int((await connection.execute(query)).scalar() or 0)
            return Measured(size, 0, tuple(warnings))

        return await self.connections.read(measure)

    async def faults(self) -> Sequence[str]:
        """Check the numbers, the owners, the indexes, the marks and the spans."""
        has_ledger = self.ledger is not None
        return await self.connections.read(
            lambda one: faults_of(one, self.tables, has_ledger=has_ledger), _READ_ALL_S
        )

    # Closing

    async def aclose(self, timeout_s: float) -> None:
        """Commit the accepted calls, for at most `timeout_s`, then close the connections."""
        await self.writer.aclose(timeout_s)
        if not self.writer.task.done():
            self.abandon()

    async def _finish(self) -> None:
        self._ended()
        await self.connections.aclose()

    def abandon(self) -> None:
        """Release the connections without waiting for their work."""
        self.writer.abandon()
        self.connections.abandon()
