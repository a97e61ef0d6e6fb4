# mypy: disable-error-code=import-untyped
"""The commit of a batch in steps on PostgreSQL, if `commit` has no single statement for it."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg

from async_history._core.operations.operations import LogEntries
from async_history._core.recorded_texts import hide_texts
from async_history._core.records.owners import Owner
from async_history._core.records.records import HistoryRecord, fields_in_order
from async_history._core.writing.batch import commit_in_steps
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import Buffer, message_rows
from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history._core.writing.undated import dated, has_undated
from async_history._postgres.errors import (
    concerns_all,
    is_connection_lost,
    is_refusal,
    may_work_later,
    storage_error,
)
from async_history._postgres.key_statements import Access
from async_history._postgres.keys import Seal
from async_history._postgres.ledger import Attestation, leaves_of, tables_of
from async_history._postgres.operations import NEW_OPERATIONS, OPERATIONS
from async_history._postgres.schema import in_schema
from async_history._postgres.schema_steps import log_within
from async_history._postgres.transaction import WAIT_FOR_REPLICAS_TOO, savepoint
from async_history._postgres.writing.add import OwnersCheck, Statement, within_transaction
from async_history._postgres.writing.batch_locks import BatchLocks, locks_ids
from async_history._postgres.writing.batch_reads import BatchReads
from async_history._postgres.writing.messages import add_messages, evict_messages, find_buffers
from async_history._postgres.writing.owner_steps import OwnerSteps
from async_history.errors import HistoryError, StorageError, StorageRefused

_MOST_IN_VAIN: Final = 40
"""Refusals before the first success after which an error counts as one of the whole batch."""


def _refused(reason: Exception) -> StorageRefused:
    hide_texts(reason)
    return StorageRefused(f"a constraint or trigger of the database refused this: {reason}")


class LeftOut(Exception):
    """Rows were left out without an error of the database, such as by a trigger or rule."""


def require_all(done: str, rows: Sequence[object]) -> None:
    """Check by the status of an INSERT that it wrote all rows; if not, the caller rolls back."""
    if done != f"INSERT 0 {len(rows)}":
        raise LeftOut(f"a trigger or rule left out rows ({done} of {len(rows)})")


async def add_records(
    connection: Any,
    schema: str,
    statements: Sequence[Statement],
    records: Sequence[object],
) -> None:
    """Add records in the transaction of a connection, by the statements of `within_transaction`.

    Raises:
        LeftOut: not all records were written; the caller rolls back.
    """
    for sql, arguments in statements:
        done = await connection.execute(in_schema(sql, schema), *arguments)
    require_all(done, records)


class BatchSteps:
    """The write of one batch in steps, inside its transaction: the steps of `commit_in_steps`.

    Args:
        owners: looks up and writes the owners of memories.
        keys: gives access to the keys of the store.
        owns_transaction: False inside a transaction of the user.
        is_repeated: whether an earlier try of the batch may have been committed.
        leaves_out_late: see `BatchTry`.
        The others: as in `BatchCommitter`.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        owners: OwnerSteps,
        *,
        seal: Seal,
        attestation: Attestation | None,
        keys: Access,
        where: str,
        is_distributed: bool,
        owns_transaction: bool,
        is_repeated: bool,
        leaves_out_late: bool,
        waited: Callable[[float], None],
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._owners = owners
        self._seal = seal
        self._attestation = attestation
        self._keys = keys
        self._where = where
        self._is_distributed = is_distributed
        self._owns_transaction = owns_transaction
        self._is_repeated = is_repeated
        self._leaves_out_late = leaves_out_late
        self._has_undated = False
        self._locks = BatchLocks(connection, schema, waited)
        self._in_vain: int | None = 0  # None once something was written
        reads = BatchReads(
            connection,
            schema,
            seal,
            keys,
            is_distributed=is_distributed,
            is_repeated=is_repeated,
        )
        self.existing = reads.existing
        self.latest = reads.latest
        self.find_texts = reads.find_texts

    async def commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        """Write a batch; return the refused submissions by index.

        Raises:
            The driver's errors: roll back.
            OwnersUnlocked: in a transaction of the user: roll back, and begin with `lock_owners`.
        """
        additions = [one for one in batch if isinstance(one, AddRecords)]
        self._has_undated = has_undated(batch)
        await self._locks.lock_memories(additions)
        if self._is_distributed and locks_ids(additions):
            await self._locks.lock_ids(additions)
        return await commit_in_steps(batch, self)

    async def lock_owners(self) -> None:
        """Lock what gives owners late, in the user's transaction, before anything is looked up.

        Raises:
            asyncpg.PostgresError: it is in use, or the role may not lock it.
        """
        await self._owners.lock()

    async def owners(self, records: Sequence[HistoryRecord]) -> dict[str, Owner]:
        """Return the owners of these records' memories, where they have one."""
        found = await self._owners.find(
            [one.memory_id for one in records],
            gives_owners=any(one.owner is not None for one in records),
        )
        return found.owners()

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        """Return the erased names of a batch, each with the instant of its erasure."""
        return await self._owners.erased(batch)

    async def buffers(self, submissions: Sequence[SaveMessages]) -> dict[str, Buffer]:
        """Return the stored message buffers of these submissions' scopes."""
        found = await find_buffers(self._connection, self._schema, submissions)
        if any(buffer.there for buffer in found.values()):
            await self._connection.execute(WAIT_FOR_REPLICAS_TOO)
        return found

    @contextlib.asynccontextmanager
    async def undone_if_refused(self) -> AsyncIterator[None]:
        """Provide a savepoint, rolled back if the database refuses a write of the body."""
        try:
            async with (
                self._owners.undone_if_refused(),
                savepoint(self._connection, checks_constraints=self._owns_transaction),
            ):
                yield
        except LeftOut as error:
            self._seal.undone()
            raise _refused(error) from error
        except asyncpg.PostgresError as error:
            self._seal.undone()
            raise self._refusal(error) from error
        self._in_vain = None

    def _refusal(self, error: asyncpg.PostgresError) -> StorageError:
        """Return the error for the submissions that were just tried.

        Raises:
            asyncpg.PostgresError: the error concerns the whole batch.
        """
        is_late = may_work_later(error)
        if is_refusal(error) and not is_late:
            return _refused(error)
        if is_connection_lost(error) or concerns_all(error):
            raise error
        if is_late and not self._leaves_out_late:
            raise error
        if self._in_vain is not None:
            self._in_vain += 1
            if self._in_vain > _MOST_IN_VAIN:
                raise error
        return storage_error(error, self._where)

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[SaveMessages],
        owners: Mapping[str, Owner],
    ) -> None:
        """Write records and messages, in order, and the owners of memories."""
        if records and self._has_undated:
            records = await dated(records, self.latest)
        fields = list(map(fields_in_order, records))
        if records or owners:
            plan = await self._owners.give(records, owners)
            leaves = await leaves_of(self._attestation, fields, {**plan.new, **owners})
        if records:
            texts, _ = await self._seal.records(fields, plan.owners, plan.number, self._keys)
            check = OwnersCheck.NOTHING if self._is_distributed else OwnersCheck.NUMBER
            statements = within_transaction(fields, texts, plan, leaves, check)
            try:
                await add_records(self._connection, self._schema, statements, fields)
            except LeftOut:
                await self._owners.require_unchanged()
                raise
        elif owners and self._attestation is not None:
            for bundle in leaves:
                await self._attestation.tables(self._connection.fetch).append(bundle)
        if messages:
            await self._save_messages(messages)

    async def enter(self, entries: LogEntries) -> None:
        """Add operations to the log."""
        ledger = tables_of(self._attestation, self._connection)
        statements = OPERATIONS if self._is_repeated else NEW_OPERATIONS
        await log_within(self._connection, self._schema, ledger, statements).enter(entries)

    async def _save_messages(self, submissions: Sequence[SaveMessages]) -> None:
        number = self._owners.found.number if self._owners.has_looked else None
        rows = await self._seal.messages(message_rows(submissions), number, self._keys)
        known = None if self._is_distributed else number
        done = await add_messages(self._connection, self._schema, rows, known)
        if known is not None and done != f"INSERT 0 {len(rows)}":
            await self._owners.require_unchanged()
        require_all(done, rows)
        await evict_messages(self._connection, self._schema, submissions)
