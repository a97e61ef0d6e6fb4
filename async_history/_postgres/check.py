"""The check of a history in PostgreSQL: the tables' version, keys, indexes, owners and ids."""

from collections.abc import AsyncIterator
from typing import Any, Final

from async_history._core.owners import SCOPES
from async_history._core.wording import counted
from async_history._postgres.schema import quoted

_INVALID: Final = """
SELECT pg_class.relname FROM pg_catalog.pg_index
JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND NOT (indisvalid AND indisready) ORDER BY 1
"""
_UNKEYED: Final = """
SELECT relname FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relname IN ('history', 'messages', 'owners')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint WHERE conrelid = pg_class.oid AND contype = 'p'
    )
ORDER BY 1
"""
_OWNERS: Final = """
SELECT DISTINCT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relkind IN ('r', 'p') ORDER BY 1
"""
_ELSEWHOSE: Final = f"""
SELECT pg_catalog.count(*), pg_catalog.min(history.memory_id) FROM {{0}}.history
LEFT JOIN {{0}}.owners ON owners.memory_id = history.memory_id
WHERE {" OR ".join(f"history.{name} IS DISTINCT FROM owners.{name}" for name in SCOPES)}
"""
_TWICE: Final = """
SELECT pg_catalog.count(*), pg_catalog.min(id) FROM (
    SELECT id FROM {}.history GROUP BY id HAVING pg_catalog.count(*) > 1
) AS twice
"""


async def faults_of(connection: Any, schema: str) -> list[str]:
    """Return the faults of a schema's tables, one sentence each."""
    return [problem async for problem in _problems(connection, schema)]


async def _problems(connection: Any, schema: str) -> AsyncIterator[str]:
    for (name,) in await connection.fetch(_INVALID, schema):
        yield f"The index {name} is not valid: REINDEX INDEX {quoted(schema)}.{quoted(name)}."
    for (name,) in await connection.fetch(_UNKEYED, schema):
        yield f"The table {name} has lost its primary key: add it again, see migrations."
    owners = [owner for (owner,) in await connection.fetch(_OWNERS, schema)]
    if len(owners) > 1:
        yield (
            f"The tables have several owners ({', '.join(owners)}), so none can migrate them all: "
            "give them to one."
        )
    count, example = await connection.fetchrow(_ELSEWHOSE.format(quoted(schema)))
    if others := int(count):
        records = counted(others, "record does", "records do")
        yield f"{records} not have their memory's owner, such as one of memory {example}."
    count, example = await connection.fetchrow(_TWICE.format(quoted(schema)))
    if twice := int(count):
        ids = counted(twice, "id is", "ids are")
        yield f"{ids} of records of several memories, such as {example}."
