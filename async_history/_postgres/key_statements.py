"""The tables of keys of an encrypted history in PostgreSQL, their statements, and their lock.

Transactions that change the tables of keys take one advisory lock. So two processes that need an
owner's first data key agree on one. No key is made under a wrapping key that is being removed, nor
for an owner who is being noted as erased.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from async_history._core.encryption.key_statements import (
    KEY_COLUMNS,
    MOST_USES,
    KeyStatements,
    KeyTable,
    Run,
    StoredKey,
)
from async_history._core.encryption.sealing import BEGIN, JSON_BEGIN
from async_history._core.records.owners import SCOPES
from async_history._postgres.schema import in_schema
from async_history._postgres.schema.indexes import Index
from async_history._postgres.transaction import transaction

_STORED: Final = f"SELECT {', '.join(KEY_COLUMNS)} FROM {{schema}}.data_keys"
CLEAR: Final = f"""
    NOT pg_catalog.starts_with(old_memory, '{BEGIN}'::pg_catalog.text)
    OR NOT pg_catalog.starts_with(new_memory, '{BEGIN}'::pg_catalog.text)
    OR pg_catalog.strpos(context, '{JSON_BEGIN}'::pg_catalog.text) = 0
    OR pg_catalog.strpos(cause, '{JSON_BEGIN}'::pg_catalog.text) = 0
"""
"""SQL condition: a record has a text, a context or a cause in clear."""
CLEAR_INDEX: Final = Index("INDEX", "history_clear", "history", f"(seq) WHERE {CLEAR}")
"""Only an encrypted history has this index. Sealed records have no entry, so counting is fast."""
COUNT_CLEAR: Final = f"SELECT pg_catalog.count(*) FROM {{schema}}.history WHERE {CLEAR}"
_NO_CLEAR_CAUSE: Final = f"""(
    SELECT pg_catalog.count(*) FROM {{schema}}.history
    WHERE ({CLEAR}) AND pg_catalog.strpos(cause, '{JSON_BEGIN}'::pg_catalog.text) = 0
) = 0"""
"""SQL condition: every cause is sealed. The index counts the others, which is fast if none is."""
NOTE_WHOLE: Final = f"UPDATE {{schema}}.encryption SET is_whole = {_NO_CLEAR_CAUSE}"
LOCK_WRITES: Final = "LOCK TABLE {schema}.history IN ROW EXCLUSIVE MODE"
"""The lock that an INSERT takes. Whoever ends the use of keys waits for its holders. So what is
looked up under it is true until the transaction ends, or the transaction is waited for."""
LOCK_KEYS: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended('async_history keys ' || $1::pg_catalog.text, 0)
)
"""
_USES: Final = KEY_COLUMNS.index("uses")


def _element(at: int) -> str:
    """Return SQL for a column of a key to add, as text."""
    return f"pg_catalog.json_array_element_text(given.key, {at})"


_ADD: Final = f"""
INSERT INTO {{schema}}.data_keys ({", ".join(KEY_COLUMNS)})
SELECT {", ".join(_element(at) for at in range(_USES))}, {_element(_USES)}::pg_catalog.int8
FROM pg_catalog.json_array_elements($1::pg_catalog.text::pg_catalog.json) AS given (key)
"""
"""Takes several `StoredKey` as a JSON array of arrays."""
STATEMENTS: Final = KeyStatements(
    wrapping="SELECT id, master, wrapped FROM {schema}.wrapping_keys ORDER BY id",
    add_wrapping="""
    INSERT INTO {schema}.wrapping_keys (id, master, wrapped) VALUES ($1, $2, $3)
    ON CONFLICT (id) DO NOTHING
    """,
    remove_wrapping="""
    DELETE FROM {schema}.wrapping_keys
    WHERE id <> $1::pg_catalog.text AND NOT EXISTS (
        SELECT FROM {schema}.data_keys WHERE data_keys.wrapping_key = wrapping_keys.id
    )
    """,
    count_usable=f"""
    SELECT pg_catalog.count(*) FROM {{schema}}.data_keys
    WHERE id = ANY($1::pg_catalog.text[]) AND uses < {MOST_USES}::pg_catalog.int8
    """,
    keys=f"{_STORED} WHERE id = ANY($1::pg_catalog.text[])",
    of_owners=f"{_STORED} WHERE owner = ANY($1::pg_catalog.text[]) AND NOT erased ORDER BY uses",
    wrapped_by_others=f"""
    {_STORED} WHERE wrapping_key <> $1::pg_catalog.text AND id > $2::pg_catalog.text
    ORDER BY id LIMIT $3::pg_catalog.int8
    """,
    count_wrapped_by_others="""
    SELECT pg_catalog.count(*) FROM {schema}.data_keys WHERE wrapping_key <> $1::pg_catalog.text
    """,
    reserve="""
    UPDATE {schema}.data_keys SET uses = uses + $2::pg_catalog.int8
    WHERE id = ANY($1::pg_catalog.text[])
    """,
    rewrap="""
    UPDATE {schema}.data_keys SET wrapping_key = $1, wrapped = $2 WHERE id = $3::pg_catalog.text
    """,
    remove="""
    DELETE FROM {schema}.data_keys WHERE id = ANY($1::pg_catalog.text[]) AND NOT erased
    """,
    begin="""
    INSERT INTO {schema}.encryption (id, is_whole)
    SELECT 1, NOT EXISTS (SELECT FROM {schema}.history WHERE cause IS NOT NULL)
    ON CONFLICT (id) DO NOTHING
    """,
    is_whole=f"""
    SELECT CASE WHEN is_whole THEN {_NO_CLEAR_CAUSE} ELSE false END FROM {{schema}}.encryption
    """,
    mark={
        scope: (
            "UPDATE {schema}.data_keys SET erased = true"
            f" WHERE {scope} = $1::pg_catalog.text AND NOT erased"
        )
        for scope in SCOPES
    },
    marked={
        scope: f"SELECT id FROM {{schema}}.data_keys WHERE erased AND {scope} = $1::pg_catalog.text"
        for scope in SCOPES
    },
    destroy="DELETE FROM {schema}.data_keys WHERE id = ANY($1::pg_catalog.text[]) AND erased",
)


class PostgresKeyTable(KeyTable):
    """The tables of keys in a quoted schema; `fetch` runs one statement."""

    def __init__(self, fetch: Run, schema: str) -> None:
        async def run(sql: str, *parameters: Any) -> Sequence[Sequence[Any]]:
            return await fetch(in_schema(sql, schema), *parameters)

        super().__init__(STATEMENTS, run)

    async def add(self, keys: Sequence[StoredKey]) -> None:
        """Add data keys."""
        if keys:
            await self._run(_ADD, json.dumps(keys))


KeyChange = Callable[[KeyTable], Coroutine[Any, Any, Any]]
"""A function that changes the tables of keys inside a transaction."""


class KeyAccess(NamedTuple):
    """A batch's access to the tables of keys: reading them, and changing them under their lock.

    `lack` returns whether one of some keys is missing or retired. The answer is valid until the
    writing transaction ends. It is used if the statement that writes does not check the keys.
    """

    table: KeyTable
    change: Callable[[KeyChange], Awaitable[Any]]
    lack: Callable[[Sequence[str]], Awaitable[bool]]


Access = Callable[[], KeyAccess]
"""Creates the access when it is needed: only if texts are sealed."""


def keys_within(connection: Any, schema: str) -> KeyAccess:
    """Return the access inside the connection's transaction."""
    table = PostgresKeyTable(connection.fetch, schema)

    async def change(work: KeyChange) -> Any:
        await connection.execute(LOCK_KEYS, schema)
        return await work(table)

    return KeyAccess(table, change, partial(keys_lack, connection, schema, table))


def keys_before(connection: Any, schema: str, settings: Sequence[str]) -> KeyAccess:
    """Return the access before a statement that checks its keys.

    Args:
        settings: the first statements of its transactions.
    """
    table = PostgresKeyTable(connection.fetch, schema)

    async def change(work: KeyChange) -> Any:
        return await change_keys(connection, schema, settings, work)

    return KeyAccess(table, change, _checked_later)


async def change_keys(
    connection: Any, schema: str, settings: Sequence[str], work: KeyChange
) -> Any:
    """Change the tables of keys in a transaction that begins with `settings`."""
    async with transaction(connection, *settings):
        return await keys_within(connection, schema).change(work)


async def keys_lack(connection: Any, schema: str, table: KeyTable, ids: Sequence[str]) -> bool:
    """Return whether one of some keys is missing or retired. The answer is valid until the
    connection's transaction ends."""
    if not ids:
        return False
    await connection.execute(in_schema(LOCK_WRITES, schema))
    return await table.lacks(ids)


async def _checked_later(ids: Sequence[str]) -> bool:
    return False
