# mypy: disable-error-code=import-untyped
"""Writing one batch in one PostgreSQL transaction, with as few round trips as possible.

A batch of new records with generated ids is a single statement. All other batches are rarer and
take a transaction of several statements.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Final

import asyncpg

from async_history._core.concurrency.timed import unreported
from async_history._core.records.records import COLUMNS, MEMORY_ID, OWNER, Event, Fields
from async_history._core.writing.additions import (
    fields_have_details,
    fields_of,
    give_owners,
    only_new_records,
)
from async_history._core.writing.batch import commit_in_steps
from async_history._core.writing.erased_names import earliest_begin
from async_history._core.writing.submissions import AddFields, AddRecords, Submission
from async_history._core.writing.too_large import write_others
from async_history._core.writing.undated import has_undated
from async_history._postgres.errors import (
    concerns_all,
    is_connection_lost,
    is_refusal,
    may_work_later,
)
from async_history._postgres.key_statements import Access, keys_before, keys_within
from async_history._postgres.keys import InClear, Seal
from async_history._postgres.ledger import Attestation, leaves_of
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import transaction
from async_history._postgres.writing.add import (
    OwnersCheck,
    Statement,
    lone,
    plain,
    within_transaction,
    without_transaction,
)
from async_history._postgres.writing.batch_locks import BatchLocks
from async_history._postgres.writing.batch_steps import (
    BatchSteps,
    LeftOut,
    add_records,
    require_all,
)
from async_history._postgres.writing.owner_steps import OwnerSteps
from async_history._postgres.writing.owners import KnownOwners, OwnersPlan
from async_history._postgres.writing.plain_statements import PlainStatements
from async_history._postgres.writing.too_large import find_too_large
from async_history.errors import HistoryError

_BY_INDEX: Final = "SET LOCAL enable_seqscan TO off"
"""PostgreSQL caches the plan of a lookup, and one made while the table was small reads the whole
table when it is large: 500 ids per batch took 300 ms at 50,000 rows."""
_ONE_CONNECTION_A_NODE: Final = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
"""Otherwise a batch uses a connection, and a prepared transaction, for each shard: 500 random
memories on two workers and 32 shards took 310 ms instead of 17 (Citus 13.2)."""

_SEALED_GROWTH: Final = 4 / 3
"""Of a text in Base64."""

_EVENT: Final = COLUMNS.index("event")


class BatchCommitter:
    """The write of batches through one connection.

    Args:
        schema: the quoted schema.
        settings: the first statements of each transaction. If there are none, a batch may be one
            statement without a transaction.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        has_standbys: whether the server waits, or may wait, for synchronous standbys.
        owns_transaction: False if `commit_in_transaction` runs inside a transaction of the user.
        is_repeated: whether an earlier try of the batch may have been committed.
        leaves_out_late: whether to refuse a submission that could be written only later, such as
            one that waits for a lock; otherwise the whole batch fails and is retried.
        known: the cache of the memories' owners.
        plain: the statements that were made before their batch.
        seal: seals and opens texts.
        attestation: computes the leaves of records; None if the store has no ledger.
        keys: gives a user's transaction access to the keys of the store.
        where: the server, for messages.
        sent: called shortly before the batch is sent, when Python's work for it is done; for a
            batch of several steps, before the first one.
        waited: called with the seconds that each statement took that only locks.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        *,
        settings: Sequence[str] = (),
        is_distributed: bool,
        has_standbys: bool = True,
        owns_transaction: bool = True,
        is_repeated: bool = False,
        leaves_out_late: bool = False,
        known: KnownOwners,
        plain: PlainStatements,
        seal: Seal,
        attestation: Attestation | None = None,
        keys: Access | None = None,
        where: str,
        sent: Callable[[], None],
        waited: Callable[[float], None] = unreported,
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._settings = (*settings, *((_ONE_CONNECTION_A_NODE,) if is_distributed else ()))
        self._is_distributed = is_distributed
        self._has_standbys = has_standbys
        self._owns_transaction = owns_transaction
        self._is_repeated = is_repeated
        self._leaves_out_late = leaves_out_late
        self._known = known
        self._plain = plain
        self._seal = seal
        self._attestation = attestation
        self._keys = keys or partial(keys_within, connection, schema)
        self._where = where
        self._sent = sent
        self._waited = waited

    @cached_property
    def _owners(self) -> OwnerSteps:
        return OwnerSteps(
            self._connection,
            self._schema,
            self._where,
            self._known,
            is_distributed=self._is_distributed,
            owns_transaction=self._owns_transaction,
        )

    def _sql(self, statement: str) -> str:
        return in_schema(statement, self._schema)

    async def commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        Raises:
            The driver's errors: nothing was written, or the outcome is unknown.
        """
        return await write_others(batch, self._too_large(batch), self._commit)

    def _too_large(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        growth = 1.0 if isinstance(self._seal, InClear) else _SEALED_GROWTH
        return find_too_large(batch, self._where, growth)

    async def _commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        ahead = self._plain.take(batch)
        try:
            if await self._add_at_once(batch, ahead):
                return {}
        except (LeftOut, asyncpg.DivisionByZeroError):
            pass  # a trigger or rule left out records, or owners have changed: look at each
        except asyncpg.FeatureNotSupportedError:
            pass  # a rule that rewrites statements does not allow RETURNING
        except asyncpg.PostgresError as error:
            if not self._may_be_of_one(error, len(batch)):
                raise
        try:
            async with self._transaction(_BY_INDEX):
                refused = await self._commit_in_steps(batch)
        except BaseException:
            self._seal.undone()
            raise
        found = self._owners.found
        self._known.learn(found.number, found.rows, found.erased_at)
        return refused

    async def lock_owners(self) -> None:
        """Lock what gives owners late, in the user's transaction, before anything is looked up.

        Raises:
            asyncpg.PostgresError: it is in use, or the role may not lock it.
        """
        await self._owners.lock()

    def _transaction(self, *settings: str) -> contextlib.AbstractAsyncContextManager[None]:
        return transaction(self._connection, *self._settings, *settings)

    def _may_be_of_one(self, error: asyncpg.PostgresError, submissions: int) -> bool:
        """Return whether an error may be due to some submissions, which are then looked for."""
        if is_refusal(error):
            return True
        if is_connection_lost(error) or concerns_all(error):
            return False
        return submissions > 1 and (self._leaves_out_late or not may_work_later(error))

    async def commit_in_transaction(
        self, batch: Sequence[Submission]
    ) -> Mapping[int, HistoryError]:
        """Write a batch inside the caller's transaction; return the refused submissions by index.

        Raises:
            OwnersUnlocked: in a transaction of the user: roll back, and begin with `lock_owners`.
        """
        return await write_others(batch, self._too_large(batch), self._commit_in_steps)

    async def _commit_in_steps(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        self._sent()
        additions = [one for one in batch if isinstance(one, AddRecords)]
        locks = BatchLocks(self._connection, self._schema, self._waited)
        await locks.lock_memories(additions)
        if self._locks_ids(additions):
            await locks.lock_ids(additions)
        steps = BatchSteps(
            self._connection,
            self._schema,
            self._owners,
            seal=self._seal,
            attestation=self._attestation,
            keys=self._keys,
            where=self._where,
            is_distributed=self._is_distributed,
            owns_transaction=self._owns_transaction,
            is_repeated=self._is_repeated,
            leaves_out_late=self._leaves_out_late,
            has_undated=has_undated(batch),
        )
        return await commit_in_steps(batch, steps)

    async def _add_at_once(self, batch: Sequence[Submission], ahead: Statement | None) -> bool:
        """Write new records; if one can't be written, the server rolls all of them back.

        Return False, and write nothing, if more has to be looked up first.

        Args:
            ahead: the batch's statement, if it was made before: for plain records without leaves.
        """
        statement = self._lone_statement(batch)
        if self._are_plain() and self._attestation is None:
            statement = statement or ahead
        if statement is not None:
            await self._run_without_transaction(statement, batch)
            return True
        additions = only_new_records(batch)
        if additions is None or has_undated(batch) or self._locks_ids(additions):
            return False
        fields = list(fields_of(additions))
        if self._are_plain() and not fields_have_details(fields):
            leaves = await leaves_of(self._attestation, fields, {})
            await self._run_without_transaction(plain(fields, leaves), fields)
            return True
        plan = await self._plan(fields)
        if plan is None or self._may_be_erased(additions):
            return False
        before = partial(keys_before, self._connection, self._schema, self._settings)
        texts, key_ids = await self._seal.records(fields, plan.owners, plan.number, before)
        leaves = await leaves_of(self._attestation, fields, plan.new)
        if self._settings:
            async with self._transaction():
                if self._is_distributed and await self._owners.locked_number() != plan.number:
                    raise LeftOut("the owners have changed")
                if key_ids and await keys_within(self._connection, self._schema).lack(key_ids):
                    raise LeftOut("a data key is not there")
                self._sent()
                check = OwnersCheck.NOTHING if self._is_distributed else OwnersCheck.NUMBER_AND_NEW
                statements = within_transaction(fields, texts, plan, leaves, check)
                await add_records(self._connection, self._schema, statements, fields)
        else:
            statement = without_transaction(fields, texts, plan, key_ids, leaves)
            await self._run_without_transaction(statement, fields)
        if plan.number:
            self._known.learn(plan.number, plan.new, self._known.erased_at)
            give_owners(additions, plan.owners)
        return True

    def _lone_statement(self, batch: Sequence[Submission]) -> Statement | None:
        """Return the statement `lone` for a batch of one plain record, if it can be used."""
        if len(batch) > 1 or self._has_standbys or self._attestation is not None:
            return None
        (one,) = batch
        if type(one) is AddFields and self._are_plain() and not fields_have_details((one.fields,)):
            return lone(one.fields)
        return None

    def _are_plain(self) -> bool:
        """Return whether the statement for records without details is `plain`."""
        return not (self._settings or self._known.number) and isinstance(self._seal, InClear)

    async def _run_without_transaction(
        self, statement: Statement, records: Sequence[object]
    ) -> None:
        """Run a statement that adds all records or none, without a transaction."""
        self._sent()
        sql, arguments = statement
        done = await self._connection.execute(self._sql(sql), *arguments)
        if done.startswith("INSERT"):
            require_all(done, records)

    async def _plan(self, fields: Sequence[Fields]) -> OwnersPlan | None:
        """Return the owners of the records' memories; None if they have to be looked up first."""
        known = self._known
        if known.number:
            unknown = known.unknown(fields)
            if self._is_distributed and unknown:
                return None
            if any(one[_EVENT] != Event.ADD for one in unknown):
                async with self._transaction(_BY_INDEX):
                    found = await self._owners.find(
                        [one[MEMORY_ID] for one in unknown],
                        gives_owners=any(one[OWNER] is not None for one in unknown),
                    )
                known.learn(found.number, found.rows, found.erased_at)
        return known.plan(fields)

    def _may_be_erased(self, additions: Sequence[AddRecords]) -> bool:
        """Return whether the owners of records may have been erased since the calls began."""
        erased_at = self._known.erased_at
        return erased_at is not None and (
            self._is_distributed or earliest_begin(additions) <= erased_at
        )

    def _locks_ids(self, additions: Sequence[AddRecords]) -> bool:
        return self._is_distributed and any(one.names_ids for one in additions)
