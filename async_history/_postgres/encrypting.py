"""Sealing and opening the stored texts of a history in PostgreSQL in place, in transactions.

A transaction locks rows before it reads and rewrites them, so it does not bring back what was
erased meanwhile. Writers continue. Only the steps that need all writers to finish wait for them.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import computed
from async_history._core.encryption.key_statements import INDEX, MARKS, MOST_USES, OFF, KeyTable
from async_history._core.encryption.sealing import BEGIN, END, JSON_BEGIN, KEY_ID, DataKey
from async_history._core.encryption.stored_texts import (
    LEDGER_MEANWHILE,
    TEXT_COLUMNS,
    Page,
    StoredMessage,
    StoredTexts,
    TextTransaction,
)
from async_history._core.records.json_object import JsonObject
from async_history._core.records.owners import SCOPES, Owner
from async_history._core.writing.erased_names import Name, name_digest
from async_history._postgres.connecting.open_writers import OpenWriters
from async_history._postgres.connecting.side_connections import SideConnections
from async_history._postgres.connecting.writing_connection import Write
from async_history._postgres.detail_columns import (
    CAUSE_COLUMNS,
    SCOPE_LIST,
    cause_hash_columns,
    owner_of,
)
from async_history._postgres.key_statements import (
    CLEAR,
    CLEAR_INDEX,
    COUNT_CLEAR,
    LOCK_KEYS,
    LOCK_WRITES,
    NOTE_WHOLE,
    PostgresKeyTable,
    keys_within,
)
from async_history._postgres.keys import Sealing
from async_history._postgres.removing.erase import LOGS_HAVE_TEXTS
from async_history._postgres.removing.vacuum import Vacuum
from async_history._postgres.schema import in_schema
from async_history._postgres.schema.indexes import drop
from async_history._postgres.schema_steps import SchemaSteps
from async_history._postgres.transaction import BY_INDEX, transaction
from async_history._postgres.writing.owner_steps import NUMBER, require_one
from async_history.errors import StorageDenied, StorageError, StorageRefused

T = TypeVar("T")

_BEFORE_ALL: Final = -(1 << 63)
_BY_PLACE: Final = (
    f"{BY_INDEX}; SET LOCAL enable_hashjoin TO off; SET LOCAL enable_mergejoin TO off"
)
"""Rows to rewrite are given by their places. They are looked up one by one through the index,
however many rows the planner expects."""
_COLUMNS: Final = f"seq, id, memory_id, {SCOPE_LIST}, old_memory, new_memory, context, cause"
_CLEAR_RECORDS: Final = f"""
SELECT {_COLUMNS} FROM {{schema}}.history
WHERE ({CLEAR}) AND seq > $1::pg_catalog.int8
ORDER BY seq LIMIT $2::pg_catalog.int8 FOR NO KEY UPDATE
"""
_MESSAGES: Final = """
SELECT seq, id, session_scope, role, content, name, created_at FROM {schema}.messages
WHERE seq > $1::pg_catalog.int8
ORDER BY seq LIMIT $2::pg_catalog.int8 FOR NO KEY UPDATE
"""
_PLACES: Final = f"""
SELECT seq, coalesce(
    pg_catalog.starts_with(old_memory, '{BEGIN}'::pg_catalog.text)
    OR pg_catalog.strpos(old_memory, '{END}'::pg_catalog.text) > 0, false
) OR coalesce(
    pg_catalog.starts_with(new_memory, '{BEGIN}'::pg_catalog.text)
    OR pg_catalog.strpos(new_memory, '{END}'::pg_catalog.text) > 0, false
) OR coalesce(pg_catalog.strpos(context, '{END}'::pg_catalog.text) > 0, false)
OR coalesce(pg_catalog.strpos(cause, '{END}'::pg_catalog.text) > 0, false)
OR coalesce(pg_catalog.strpos(context, '{JSON_BEGIN}'::pg_catalog.text) > 0, false)
OR coalesce(pg_catalog.strpos(cause, '{JSON_BEGIN}'::pg_catalog.text) > 0, false)
FROM {{schema}}.history WHERE seq > $1::pg_catalog.int8 ORDER BY seq LIMIT $2::pg_catalog.int8
"""
"""The next records, and whether a value of each may be sealed. Only those records are locked."""
_RETIRED: Final = f"""
SELECT id FROM {{schema}}.data_keys WHERE uses >= {MOST_USES}::pg_catalog.int8 AND NOT erased
"""
_BY_KEY: Final = " OR ".join(
    f"""coalesce(
    pg_catalog.substr({column}, {begin}, {KEY_ID}) COLLATE "C" = ANY(ARRAY({_RETIRED})), false
)"""
    for column, begin in (
        *((column, len(BEGIN) + 1) for column in ("old_memory", "new_memory")),
        *(
            (
                column,
                f"pg_catalog.strpos({column}, '{JSON_BEGIN}'::pg_catalog.text) + {len(JSON_BEGIN)}",
            )
            for column in ("context", "cause")
        ),
    )
)
_PLACES_BY_KEY: Final = f"""
SELECT seq, {_BY_KEY}
FROM {{schema}}.history WHERE seq > $1::pg_catalog.int8 ORDER BY seq LIMIT $2::pg_catalog.int8
"""
_RECORDS: Final = f"""
SELECT {_COLUMNS} FROM {{schema}}.history
WHERE seq = ANY(pg_catalog.string_to_array($1::pg_catalog.text, ','::pg_catalog.text)::bigint[])
ORDER BY seq FOR NO KEY UPDATE
"""
_HOW_MANY: Final = "SELECT pg_catalog.count(*) FROM {schema}.history"
_RETIRE: Final = f"""
UPDATE {{schema}}.data_keys SET uses = {MOST_USES}::pg_catalog.int8
WHERE owner <> ALL(ARRAY{[INDEX, *MARKS]}::pg_catalog.text[])
    AND uses < {MOST_USES}::pg_catalog.int8
"""
_RETIRE_OF: Final = {
    scope: f"{_RETIRE} AND NOT erased AND {scope} = $1::pg_catalog.text" for scope in SCOPES
}
_TURN_OFF: Final = "DELETE FROM {schema}.encryption"
_END: Final = (
    f"DELETE FROM {{schema}}.data_keys WHERE id <> '{OFF}'::pg_catalog.text",
    "DELETE FROM {schema}.wrapping_keys",
)
_HAS_LEDGER: Final = "SELECT pg_catalog.to_regclass($1::pg_catalog.text) IS NOT NULL"
_OWNS: Final = """
SELECT pg_catalog.pg_has_role(relowner, 'USAGE'::pg_catalog.text) FROM pg_catalog.pg_class
WHERE oid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""


def _given(names: Sequence[str]) -> str:
    """Return SQL for rows of texts, with one array for each column. For arrays of other types
    asyncpg would run SQL of its own."""
    arrays = ", ".join(
        f"pg_catalog.unnest(${number}::pg_catalog.text[])" for number in range(1, len(names) + 1)
    )
    return f"ROWS FROM ({arrays}) AS given ({', '.join(names)})"


_REPLACE_RECORDS: Final = f"""
UPDATE {{schema}}.history SET
    {", ".join(f"{name} = given.{name}" for name in TEXT_COLUMNS)},
    {", ".join(f"{name} = given.{name}::bigint" for name in CAUSE_COLUMNS.values())}
FROM {_given(("place", *TEXT_COLUMNS, *CAUSE_COLUMNS.values()))}
WHERE history.seq = given.place::bigint
"""
_REPLACE_MESSAGES: Final = f"""
UPDATE {{schema}}.messages SET content = given.content
FROM {_given(("id", "session_scope", "content"))}
WHERE messages.id = given.id AND messages.session_scope = given.session_scope
"""
_KEEPS_BYTES: Final = (
    "VACUUM leaves the bytes of the rows in clear in the tables' files until other rows are "
    "written there; VACUUM FULL of the tables history and messages writes the files again"
)


class ServerTexts:
    """The texts of a history on a server.

    Args:
        run_exclusively: runs work alone on the writing connection, queued with the writes.
        writers: the open transactions that write to the history.
        vacuum: vacuums the tables.
        side: provides a separate connection.
        schema: the quoted schema.
        sealing: seals under the keys of the history.
    """

    def __init__(
        self,
        run_exclusively: Callable[[Write[Any]], Awaitable[Any]],
        writers: OpenWriters,
        vacuum: Vacuum,
        side: SideConnections,
        schema: str,
        sealing: Sealing,
    ) -> None:
        self._side = side
        self._run_exclusively = run_exclusively
        self._writers = writers
        self._vacuum = vacuum
        self._schema = schema
        self._sealing = sealing

    async def in_transaction(self, work: Callable[[TextTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction. If it changes keys, wait for the open transactions that may
        not have seen that.

        Raises:
            StorageLocked: one of them stayed open.
        """

        async def run(connection: Any, settings: Sequence[str]) -> tuple[T, bool]:
            lock = in_schema(LOCK_WRITES, self._schema)
            try:
                async with transaction(connection, *settings, _BY_PLACE, lock):
                    steps = _ServerTransaction(connection, self._schema, self._sealing)
                    return await work(steps), steps.has_locked_keys
            except BaseException:
                self._sealing.undone()
                raise

        done: tuple[T, bool] = await self._run_exclusively(run)
        result, has_changed_keys = done
        if has_changed_keys:
            await self._writers.wait()
        return result

    async def require_decryptable(self) -> None:
        """Check that the role may drop the index that only an encrypted history has."""

        async def owns(connection: Any, settings: Sequence[str]) -> bool:
            async with transaction(connection, *settings):
                return bool(await connection.fetchval(_OWNS, f"{self._schema}.history"))

        if not await self._run_exclusively(owns):
            raise StorageDenied(
                "only the owner of the tables can decrypt the history, because this drops its "
                "index of clear texts"
            )

    async def finish_decrypting(self) -> None:
        """Drop the index of records in clear, because now all are."""
        await self._side.use(lambda connection: drop(connection, self._schema, CLEAR_INDEX))

    async def count_records(self) -> int:
        """Return the number of records."""
        return await self._count(_HOW_MANY)

    async def count_clear(self) -> int:
        """Return the number of records with a value in clear."""
        return await self._count(COUNT_CLEAR)

    async def _count(self, sql: str) -> int:
        async def count(connection: Any, settings: Sequence[str]) -> int:
            async with transaction(connection, *settings):
                return int(await connection.fetchval(in_schema(sql, self._schema)))

        counted: int = await self._run_exclusively(count)
        return counted

    async def overwrite(self) -> Sequence[str]:
        """Vacuum the tables; return where texts may remain."""
        return [
            *await self._vacuum.run(("history", "messages")),
            _KEEPS_BYTES,
            LOGS_HAVE_TEXTS,
        ]


class _ServerTransaction(SchemaSteps):
    """Access to the stored texts of a schema's tables in a transaction."""

    def __init__(self, connection: Any, schema: str, sealing: Sealing) -> None:
        super().__init__(connection, schema, None, is_distributed=False)
        self._sealing = sealing
        self.table: KeyTable = PostgresKeyTable(connection.fetch, schema)
        self.has_locked_keys = False
        """Whether other transactions may write without having seen a change of keys."""

    async def clear_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a value in clear."""
        rows = await self._fetch(_CLEAR_RECORDS, _BEFORE_ALL if after is None else after, limit)
        return _page([_texts(*row) for row in rows], limit)

    async def detailed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return none: `clear_records` also finds details in clear."""
        return Page([], None)

    async def sealed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the sealed ones of the next records."""
        return await self._found(_PLACES, after, limit)

    async def retired_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return those of the next records whose text is under a retired key."""
        return await self._found(_PLACES_BY_KEY, after, limit)

    async def _found(self, sql: str, after: Any, limit: int) -> Page[StoredTexts]:
        places = await self._fetch(sql, _BEFORE_ALL if after is None else after, limit)
        sealed = ",".join(str(place) for place, is_sealed in places if is_sealed)
        rows = await self._fetch(_RECORDS, sealed) if sealed else []
        texts = [_texts(*row) for row in rows]
        return Page(texts, places[-1][0] if len(places) == limit else None)

    async def messages(self, after: Any, limit: int) -> Page[StoredMessage]:
        """Return the next buffered messages."""
        rows = await self._fetch(_MESSAGES, _BEFORE_ALL if after is None else after, limit)
        return _page([StoredMessage(row[0], tuple(row[1:])) for row in rows], limit)

    async def replace_records(self, rows: Sequence[StoredTexts]) -> None:
        """Write records' texts, and the hashes of their causes."""
        causes = [None if row.cause is None else JsonObject(row.cause) for row in rows]
        columns: list[list[Any]] = [
            [str(row.place) for row in rows],
            *([getattr(row, name) for row in rows] for name in TEXT_COLUMNS),
            *map(list, cause_hash_columns(causes)),
        ]
        await self._replace(_REPLACE_RECORDS, columns, len(rows), "history")

    async def replace_messages(self, rows: Sequence[StoredMessage]) -> None:
        """Write messages' contents."""
        columns = [[one.row[at] for one in rows] for at in (0, 1, 3)]
        await self._replace(_REPLACE_MESSAGES, columns, len(rows), "messages")

    async def _replace(self, sql: str, columns: list[list[Any]], count: int, table: str) -> None:
        if count and await self._execute(sql, *columns) != f"UPDATE {count}":
            raise StorageRefused(
                f"a trigger, rule or policy of the table {table} keeps rows as they are; let this "
                "role change them, and call this again"
            )

    async def keys_of(self, owners: Sequence[Owner | None]) -> Sequence[DataKey | None]:
        """Return the data key of each owner."""
        if not owners:
            return []
        number = require_one(await self._fetch(NUMBER))
        access = keys_within(self._connection, self._schema)
        return await self._sealing.keys_of(owners, number, access)

    async def compute(self, work: Callable[[], T]) -> T:
        """Call a function on a thread of its own."""
        return await computed(work)

    async def note_whole(self) -> None:
        """Note whether all causes are sealed."""
        await self._execute(NOTE_WHOLE)

    async def lock_keys(self) -> None:
        """Wait for other transactions that change keys, and block new ones until this one ends."""
        self.has_locked_keys = True
        await self._connection.execute(LOCK_KEYS, self._schema)

    async def retire_keys(self) -> None:
        """Retire all data keys."""
        await self._execute(_RETIRE)

    async def retire_keys_of(self, name: Name) -> None:
        """Retire the data keys of owners that have a scope."""
        await self._execute(_RETIRE_OF[name[0]], name_digest(name).hex())

    async def retired_keys(self) -> Sequence[str]:
        """Return the ids of retired data keys."""
        return [key_id for (key_id,) in await self._fetch(_RETIRED)]

    async def turn_on(self) -> None:
        """Seal all new records, again."""
        await self.table.begin()

    async def turn_off(self) -> None:
        """Note that not all causes are sealed."""
        await self._execute(_TURN_OFF)

    async def end(self) -> None:
        """Remove all keys except `OFF`."""
        if (await self._fetch(_HAS_LEDGER, f"{self._schema}.history_ledger"))[0][0]:
            raise StorageError(LEDGER_MEANWHILE)
        for statement in _END:
            await self._execute(statement)


def _texts(place: int, record_id: str, memory_id: str, *others: Any) -> StoredTexts:
    scopes, texts = others[: len(SCOPES)], others[len(SCOPES) :]
    return StoredTexts(place, record_id, memory_id, owner_of(*scopes), *texts)


def _page(rows: list[Any], limit: int) -> Page[Any]:
    return Page(rows, rows[-1].place if len(rows) == limit else None)
