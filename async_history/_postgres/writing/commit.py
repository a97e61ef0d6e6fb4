# mypy: disable-error-code=import-untyped
"""Writing one batch in one PostgreSQL transaction, with as few round trips as possible.

A batch of new records with generated ids is a single statement. All other batches are rarer and
take a transaction of several statements.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import asyncpg

from async_history._core.records.records import COLUMNS, MEMORY_ID, OWNER, Event, Fields
from async_history._core.writing.additions import (
    fields_have_details,
    fields_of,
    give_owners,
    only_new_records,
)
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.erased_names import earliest_begin
from async_history._core.writing.submissions import AddFields, AddRecords, Submission
from async_history._core.writing.undated import has_undated
from async_history._postgres.errors import (
    concerns_all,
    is_connection_lost,
    is_refusal,
    may_work_later,
)
from async_history._postgres.key_statements import keys_before, keys_within
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
from async_history._postgres.writing.batch_locks import locks_ids
from async_history._postgres.writing.batch_steps import (
    BatchSteps,
    LeftOut,
    add_records,
    require_all,
)
from async_history._postgres.writing.owner_steps import OwnerSteps
from async_history._postgres.writing.owners import KnownOwners, OwnersPlan
from async_history._postgres.writing.plain_statements import PlainStatements
from async_history.errors import HistoryError

_BY_INDEX: Final = "SET LOCAL enable_seqscan TO off"
"""PostgreSQL caches the plan of a lookup, and one made while the table was small reads the whole
table when it is large: 500 ids per batch took 300 ms at 50,000 rows."""
_ONE_CONNECTION_A_NODE: Final = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
"""Otherwise a batch uses a connection, and a prepared transaction, for each shard: 500 random
memories on two workers and 32 shards took 310 ms instead of 17 (Citus 13.2)."""

_EVENT: Final = COLUMNS.index("event")


class Server(Protocol):
    """What is known of the server of the writing connection."""

    @property
    def has_standbys(self) -> bool:
        """Whether the server waits, or may wait, for synchronous standbys."""


class BatchTry(NamedTuple):
    """A try to commit a batch on a connection.

    Attributes:
        settings: the first statements of each transaction. If there are none, a batch may be one
            statement without a transaction.
        leaves_out_late: whether to refuse a submission that could be written only later, such as
            one that waits for a lock; otherwise the whole batch fails and is retried.
    """

    batch: Sequence[Submission]
    this: CommitTry
    connection: Any
    settings: Sequence[str]
    leaves_out_late: bool


class BatchCommitter:
    """Writes the batches of an open store, each on a connection.

    Args:
        schema: the quoted schema.
        seal: seals and opens texts.
        attestation: computes the leaves of records; None if the store has no ledger.
        server: the server of the connections.
        where: the server, for messages.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        known: the cache of the memories' owners.
        plain: the statements that were made before their batch.
        added: called with the number of records of a batch that was written.
        waited: called with the seconds that each statement took that only locks.
    """

    def __init__(
        self,
        schema: str,
        seal: Seal,
        attestation: Attestation | None,
        *,
        server: Server,
        where: str,
        is_distributed: bool,
        known: KnownOwners,
        plain: PlainStatements,
        added: Callable[[int], None],
        waited: Callable[[float], None],
    ) -> None:
        self._schema = schema
        self._seal = seal
        self._attestation = attestation
        self._is_clear = isinstance(seal, InClear)
        self._server = server
        self._where = where
        self._is_distributed = is_distributed
        self._known = known
        self._plain = plain
        self._added = added
        self._waited = waited

    async def commit(self, one: BatchTry) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        `has_begun` of the try is called shortly before it is sent, when Python's work for it is
        done; if it takes several steps, before the first one.

        Raises:
            The driver's errors: nothing was written, or the outcome is unknown.
        """
        if self._is_distributed:
            one = one._replace(settings=(*one.settings, _ONE_CONNECTION_A_NODE))
        ahead = self._plain.take(one.batch)
        try:
            if self._is_plain(one) and (statement := self._statement(one.batch, ahead)):
                await self._run(one, statement, one.batch)
                return {}
            if await self._add_at_once(one):
                return {}
        except (LeftOut, asyncpg.DivisionByZeroError):
            pass  # a trigger or rule left out records, or owners have changed: look at each
        except asyncpg.FeatureNotSupportedError:
            pass  # a rule that rewrites statements does not allow RETURNING
        except asyncpg.PostgresError as error:
            if not _may_be_of_some(error, one):
                raise
        return await self._commit_in_steps(one)

    def _is_plain(self, one: BatchTry) -> bool:
        """Return whether records without details are written by the statements `plain`."""
        return self._is_clear and not (one.settings or self._known.number)

    def _statement(self, batch: Sequence[Submission], ahead: Statement | None) -> Statement | None:
        """Return the statement of a plain batch, if it has one without looking at all records.

        Args:
            ahead: the batch's statement, if it was made before.
        """
        if self._attestation is not None:
            return None
        if len(batch) == 1 and type(one := batch[0]) is AddFields and not self._server.has_standbys:
            return lone(one.fields)
        return ahead

    async def _run(self, one: BatchTry, statement: Statement, records: Sequence[object]) -> None:
        """Run a statement that adds all records or none, without a transaction."""
        sql, arguments = statement
        one.this.has_begun()
        done = await one.connection.execute(in_schema(sql, self._schema), *arguments)
        if done.startswith("INSERT"):
            require_all(done, records)
        self._added(len(records))

    async def _add_at_once(self, one: BatchTry) -> bool:
        """Write new records; if one can't be written, the server rolls all of them back.

        Return False, and write nothing, if more has to be looked up first.
        """
        additions = only_new_records(one.batch)
        if additions is None or has_undated(one.batch) or self._locks_ids(additions):
            return False
        fields = list(fields_of(additions))
        if self._is_plain(one) and not fields_have_details(fields):
            leaves = await leaves_of(self._attestation, fields, {})
            await self._run(one, plain(fields, leaves), fields)
            return True
        plan = await self._plan(one, fields)
        if plan is None or self._may_be_erased(additions):
            return False
        before = partial(keys_before, one.connection, self._schema, one.settings)
        texts, key_ids = await self._seal.records(fields, plan.owners, plan.number, before)
        leaves = await leaves_of(self._attestation, fields, plan.new)
        if one.settings:
            check = OwnersCheck.NOTHING if self._is_distributed else OwnersCheck.NUMBER_AND_NEW
            statements = within_transaction(fields, texts, plan, leaves, check)
            async with transaction(one.connection, *one.settings):
                await self._require_same(plan, key_ids, one.connection)
                one.this.has_begun()
                await add_records(one.connection, self._schema, statements, fields)
            self._added(len(fields))
        else:
            statement = without_transaction(fields, texts, plan, key_ids, leaves)
            await self._run(one, statement, fields)
        if plan.number:
            self._known.learn(plan.number, plan.new, self._known.erased_at)
            give_owners(additions, plan.owners)
        return True

    async def _require_same(
        self, plan: OwnersPlan, key_ids: Sequence[str], connection: Any
    ) -> None:
        """Check in a transaction what its statements do not compare.

        Raises:
            LeftOut: it has changed.
        """
        owners = self._owner_steps(connection)
        if self._is_distributed and await owners.locked_number() != plan.number:
            raise LeftOut("the owners have changed")
        if key_ids and await keys_within(connection, self._schema).lack(key_ids):
            raise LeftOut("a data key is not there")

    async def _plan(self, one: BatchTry, fields: Sequence[Fields]) -> OwnersPlan | None:
        """Return the owners of the records' memories; None if they have to be looked up first."""
        known = self._known
        if known.number:
            unknown = known.unknown(fields)
            if self._is_distributed and unknown:
                return None
            if any(record[_EVENT] != Event.ADD for record in unknown):
                async with transaction(one.connection, *one.settings, _BY_INDEX):
                    found = await self._owner_steps(one.connection).find(
                        [record[MEMORY_ID] for record in unknown],
                        gives_owners=any(record[OWNER] is not None for record in unknown),
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
        return self._is_distributed and locks_ids(additions)

    async def _commit_in_steps(self, one: BatchTry) -> Mapping[int, HistoryError]:
        owners = self._owner_steps(one.connection)
        steps = BatchSteps(
            one.connection,
            self._schema,
            owners,
            seal=self._seal,
            attestation=self._attestation,
            keys=partial(keys_within, one.connection, self._schema),
            where=self._where,
            is_distributed=self._is_distributed,
            owns_transaction=True,
            is_repeated=one.this.is_repeated,
            leaves_out_late=one.leaves_out_late,
            waited=self._waited,
        )
        try:
            async with transaction(one.connection, *one.settings, _BY_INDEX):
                one.this.has_begun()
                refused = await steps.commit(one.batch)
        except BaseException:
            self._seal.undone()
            raise
        self._known.learn(owners.found.number, owners.found.rows, owners.found.erased_at)
        self._added(sum(call.record_count for call in one.batch if isinstance(call, AddRecords)))
        return refused

    def _owner_steps(self, connection: Any) -> OwnerSteps:
        return OwnerSteps(
            connection,
            self._schema,
            self._where,
            self._known,
            is_distributed=self._is_distributed,
            owns_transaction=True,
        )


def _may_be_of_some(error: asyncpg.PostgresError, one: BatchTry) -> bool:
    """Return whether an error may be due to some submissions, which are then looked for."""
    if is_refusal(error):
        return True
    if is_connection_lost(error) or concerns_all(error):
        return False
    return len(one.batch) > 1 and (one.leaves_out_late or not may_work_later(error))
