# mypy: disable-error-code=import-untyped
"""One batch in one transaction of PostgreSQL, in as few round trips as it takes.

A batch of new records under ids of ours is one statement. Everything else, which is rarer, takes a
transaction of several.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from zlib import crc32

import asyncpg

from async_history._core.batch import (
    Buffer,
    commit_in_steps,
    ids_of,
    message_rows,
    only_new_records,
    records_of,
)
from async_history._core.records import COLUMN_LIST, COLUMNS, HistoryRecord
from async_history._core.submissions import MESSAGES_KEPT, AddRecords, SaveMessages, Submission
from async_history._postgres.errors import (
    concerns_all,
    is_connection_lost,
    is_refusal,
    may_work_later,
    storage_error,
)
from async_history._postgres.rows import (
    RECORD_COLUMNS,
    joined_columns,
    record_from_row,
    values_of,
)
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import WAIT_FOR_REPLICAS_TOO, savepoint, transaction
from async_history.errors import HistoryError, StorageError, StorageRefused

_GIVEN_COLUMNS: Final = ", ".join(
    f"pg_catalog.unnest(pg_catalog.string_to_array(${number}::pg_catalog.text, $12, $13)) AS {name}"
    for number, name in enumerate((*COLUMNS, "moment"), start=1)
)
_ADD_RECORDS: Final = f"""
INSERT INTO {{schema}}.history ({COLUMN_LIST}, occurred_at)
SELECT id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted::boolean,
       actor_id, role, moment::pg_catalog.timestamptz
FROM (SELECT {_GIVEN_COLUMNS}) AS given
WHERE id <> ''
"""
"""Takes `joined_columns`, in order. Columns that are unnested side by side are not stored first, as
those of one unnest in FROM are: a tenth of the statement's time."""
_HEAR_WARNINGS: Final = "pg_catalog.set_config('client_min_messages', 'warning', true)"
"""For a statement that is a transaction of its own: see `transaction`."""
_ADD_ALL_OR_NONE: Final = f"""
WITH added AS ({_ADD_RECORDS.rstrip()} RETURNING 1)
SELECT 1 / (pg_catalog.count(*) = $14::bigint)::integer, {_HEAR_WARNINGS} FROM added
"""
"""The same in a transaction of its own. A row that a trigger of the owner's left out undoes it, by
a division by zero."""
_ADD_ONE: Final = f"""
INSERT INTO {{schema}}.history ({COLUMN_LIST}, occurred_at)
VALUES ({", ".join(f"${n}" for n in range(1, 11))}, $11::pg_catalog.text::pg_catalog.timestamptz)
"""
"""Takes `values_of` a record. It saves a lone write a tenth of its time."""
_ADD_ONE_ALONE: Final = f"{_ADD_ONE.rstrip()} RETURNING {_HEAR_WARNINGS}"
"""The same in a transaction of its own."""
_LOCK_IDS: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended('async_history ids ' || $2::pg_catalog.text, 0) + stripe
)
FROM pg_catalog.unnest(pg_catalog.string_to_array($1, ',')::bigint[]) AS stripe
"""
"""On a cluster no unique key can span memories, by which its tables are cut, so whoever names ids
takes locks first. Of 64, since the server's lock table is small; in order, lest they deadlock."""
_STRIPES: Final = 64
_LOCK_MEMORIES: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(key)
FROM (
    SELECT DISTINCT pg_catalog.hashtextextended(
        'async_history ' || $2::pg_catalog.text || ' ' || memory_id, 1
    ) AS key
    FROM pg_catalog.unnest($1::pg_catalog.text[]) AS memory_id ORDER BY key
) AS keys
"""
"""Taken before anything is looked up: a transaction that waits for them then sees all that the one
before it wrote, also an earlier try of its own."""
_EXISTING: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE id = ANY($1::pg_catalog.text[])
"""
_BY_INDEX: Final = "SET LOCAL enable_seqscan TO off"
"""PostgreSQL keeps the plan of a look-up, and one made while the table was small reads all of the
table when it is large: 500 ids a batch took 300 ms at 50,000 rows."""
_LATEST_OF_ONE: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE memory_id = $1 ORDER BY seq DESC LIMIT 1
"""
"""On the nodes of a cluster, which can't join a list with a table row by row."""
_LATEST: Final = f"""
SELECT {RECORD_COLUMNS} FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.history WHERE memory_id = named.name ORDER BY seq DESC LIMIT 1
) AS latest
"""
_ONE_CONNECTION_A_NODE: Final = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
"""Or a batch has a connection, and a prepared transaction, for each shard: 500 random memories on
two workers and 32 shards took 310 ms instead of 17 (Citus 13.2)."""
_BUFFERS: Final = """
SELECT session_scope, pg_catalog.count(*), pg_catalog.min(seq), pg_catalog.max(seq),
       pg_catalog.array_agg(id) FILTER (WHERE id = ANY($2::pg_catalog.text[]))
FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[]) GROUP BY session_scope
"""
_SAVE_MESSAGES: Final = """
INSERT INTO {schema}.messages (id, session_scope, role, content, name, created_at)
SELECT id, session_scope, role, content, name, created_at
FROM ROWS FROM (
    pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
    pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]),
    pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.text[])
) WITH ORDINALITY
    AS given (id, session_scope, role, content, name, created_at, place)
ORDER BY place
"""
_EVICT: Final = f"""
DELETE FROM {{schema}}.messages USING (
    SELECT id, session_scope,
           pg_catalog.row_number() OVER (PARTITION BY session_scope ORDER BY seq DESC) AS age
    FROM {{schema}}.messages WHERE session_scope = ANY($1::pg_catalog.text[])
) AS aged
WHERE messages.session_scope = aged.session_scope AND messages.id = aged.id
  AND aged.age > {MESSAGES_KEPT}
"""


_MOST_IN_VAIN: Final = 40
"""How often a batch is halved for an error that may be everybody's before it is taken to be."""


def _stripes(ids: Iterable[str]) -> str:
    return ",".join(map(str, sorted({crc32(one.encode()) % _STRIPES for one in ids})))


class _LeftOut(Exception):
    """A trigger or rule of the owner's left out records without an error."""


def _require_all(done: str, records: Sequence[HistoryRecord]) -> None:
    """Check what PostgreSQL says of an INSERT, in a transaction that is undone otherwise."""
    if done != f"INSERT 0 {len(records)}":
        raise _LeftOut(f"a trigger or rule left out records ({done} of {len(records)})")


class BatchCommitter:
    """Writes batches through one connection.

    Args:
        schema: the quoted schema.
        settings: what each transaction is to begin with. Without any, one statement may be a
            transaction of its own.
        is_distributed: the tables are spread over the nodes of a Citus cluster.
        owns_transaction: False where `commit_in_transaction` is called inside one of the user's.
        leaves_out_late: refuse a submission alone that could be written later only, as where
            somebody has a lock on what it refers to; else the whole batch is to be tried again.
        where: names the server.
        sent: called when all that Python has to do for the batch is about to be done.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        *,
        settings: Sequence[str] = (),
        is_distributed: bool,
        owns_transaction: bool = True,
        leaves_out_late: bool = False,
        where: str,
        sent: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._settings = (*settings, *((_ONE_CONNECTION_A_NODE,) if is_distributed else ()))
        self._is_distributed = is_distributed
        self._owns_transaction = owns_transaction
        self._leaves_out_late = leaves_out_late
        self._where = where
        self._sent = sent
        self._in_vain: int | None = 0  # None once something was written

    def _sql(self, statement: str) -> str:
        return in_schema(statement, self._schema)

    async def commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        Raises:
            Whatever the driver raises: nothing was written, or it is unknown.
        """
        additions = only_new_records(batch)
        if additions is not None:
            records = records_of(additions)
            try:
                if not self._locks_ids(additions):
                    await self._add_at_once(records)
                    return {}
            except (_LeftOut, asyncpg.DivisionByZeroError):
                pass  # a rule leaves records out: then see whose
            except asyncpg.FeatureNotSupportedError:
                pass  # a rule that rewrites statements takes no RETURNING
            except asyncpg.PostgresError as error:
                if not self._may_be_of_one(error, len(batch)):
                    raise
        async with self._transaction(_BY_INDEX):
            return await self.commit_in_transaction(batch)

    def _transaction(self, *settings: str) -> contextlib.AbstractAsyncContextManager[None]:
        return transaction(self._connection, *self._settings, *settings)

    def _may_be_of_one(self, error: asyncpg.PostgresError, submissions: int) -> bool:
        """Return whether to look for the submissions that the server refuses."""
        if is_refusal(error):
            return True
        if is_connection_lost(error) or concerns_all(error):
            return False
        return submissions > 1 and (self._leaves_out_late or not may_work_later(error))

    async def commit_in_transaction(
        self, batch: Sequence[Submission]
    ) -> Mapping[int, HistoryError]:
        """Write a batch inside the caller's transaction; return the refused ones by index."""
        return await commit_in_steps(batch, self)

    async def _add_at_once(self, records: Sequence[HistoryRecord]) -> None:
        """Write new records; the server undoes them all where one can't be written."""
        if self._settings:
            async with self._transaction():
                self._sent()
                await self._add(records)
            return
        self._sent()
        if len(records) == 1:
            done = await self._connection.execute(self._sql(_ADD_ONE_ALONE), *values_of(records[0]))
            _require_all(done, records)  # it is there or not
        else:
            columns = joined_columns(records)
            await self._connection.execute(self._sql(_ADD_ALL_OR_NONE), *columns, len(records))

    def _locks_ids(self, additions: Sequence[AddRecords]) -> bool:
        return self._is_distributed and any(one.names_ids for one in additions)

    async def _add(self, records: Sequence[HistoryRecord]) -> None:
        if len(records) == 1:
            done = await self._connection.execute(self._sql(_ADD_ONE), *values_of(records[0]))
        else:
            columns = joined_columns(records)
            done = await self._connection.execute(self._sql(_ADD_RECORDS), *columns)
        _require_all(done, records)

    # The steps of `commit_in_steps`

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the records of these submissions' ids that are there."""
        memories = [one.decided_by for one in submissions if one.decided_by is not None]
        if memories:
            await self._connection.execute(_LOCK_MEMORIES, memories, self._schema)
        if self._locks_ids(submissions):
            named = ids_of(one for one in submissions if one.names_ids)
            await self._connection.execute(_LOCK_IDS, _stripes(named), self._schema)
        there = await self._connection.fetch(self._sql(_EXISTING), ids_of(submissions))
        if there:
            await self._connection.execute(WAIT_FOR_REPLICAS_TOO)
        return [record_from_row(row) for row in there]

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one.

        `existing` has the locks on them.
        """
        if self._is_distributed:
            sql = self._sql(_LATEST_OF_ONE)
            rows = [row for one in memory_ids for row in await self._connection.fetch(sql, one)]
        else:
            rows = await self._connection.fetch(self._sql(_LATEST), memory_ids)
        return [record_from_row(row) for row in rows]

    async def buffers(self, submissions: Sequence[SaveMessages]) -> dict[str, Buffer]:
        """Return these submissions' scopes' buffers, as far as there are any."""
        scopes = list({submission.session_scope for submission in submissions})
        ids = [submission.ids[-1] for submission in submissions]
        rows = await self._connection.fetch(self._sql(_BUFFERS), scopes, ids)
        if any(there for *_, there in rows):
            await self._connection.execute(WAIT_FOR_REPLICAS_TOO)
        return {
            scope: Buffer(count, oldest, newest, frozenset(there or ()))
            for scope, count, oldest, newest, there in rows
        }

    @contextlib.asynccontextmanager
    async def undone_if_refused(self) -> AsyncIterator[None]:
        """Undo what was written inside where the database refuses it."""
        try:
            async with savepoint(self._connection, checks_constraints=self._owns_transaction):
                yield
        except _LeftOut as error:
            raise StorageRefused(f"the database's own rules refuse this: {error}") from error
        except asyncpg.PostgresError as error:
            raise self._refusal(error) from error
        self._in_vain = None

    def _refusal(self, error: asyncpg.PostgresError) -> StorageError:
        """Return why the submissions that were just tried are refused.

        Raises:
            asyncpg.PostgresError: the error is the whole batch's.
        """
        is_late = may_work_later(error)
        if is_refusal(error) and not is_late:
            return StorageRefused(f"the database's own rules refuse this: {error}")
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
        self, records: Sequence[HistoryRecord], messages: Sequence[SaveMessages]
    ) -> None:
        """Write records and messages, in order."""
        if records:
            await self._add(records)
        if messages:
            await self._save_messages(messages)

    async def _save_messages(self, submissions: Sequence[SaveMessages]) -> None:
        rows = message_rows(submissions)
        await self._connection.execute(self._sql(_SAVE_MESSAGES), *zip(*rows, strict=True))
        scopes = sorted({submission.session_scope for submission in submissions})
        await self._connection.execute(self._sql(_EVICT), scopes)
