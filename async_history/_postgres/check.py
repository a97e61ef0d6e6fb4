"""The check of a history in PostgreSQL: the tables' keys, indexes, owners, causes and ids."""

from collections.abc import AsyncIterator
from typing import Any, Final

from async_history._core.records.owners import SCOPES
from async_history._core.wording import counted
from async_history._postgres.check_causes import faults_of_causes
from async_history._postgres.schema import quoted
from async_history._postgres.schema.migrations import has_ledger

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
_WITHOUT_VALUE: Final = """
SELECT relname::pg_catalog.text, attname::pg_catalog.text FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid AND NOT attisdropped
LEFT JOIN pg_catalog.pg_attrdef ON adrelid = pg_class.oid AND adnum = attnum
WHERE nspname = $1 AND relkind IN ('r', 'p') AND (
    relname IN ('history', 'messages') AND attname = 'seq' AND attidentity = ''
    OR relname = 'history_ledger' AND attname = 'number' AND attidentity = ''
    OR relname IN ('history', 'history_ledger') AND attname = 'xact' AND pg_catalog.strpos(
        coalesce(pg_catalog.pg_get_expr(adbin, adrelid), ''::pg_catalog.text),
        'pg_current_xact_id'::pg_catalog.text
    ) = 0
)
ORDER BY 1, 2
"""
"""The columns that should get a value from the server for each new row, and do not."""
_OWNERS: Final = """
SELECT DISTINCT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relkind IN ('r', 'p') ORDER BY 1
"""
_DIFFERENT_OWNERS: Final = f"""
SELECT pg_catalog.count(*), pg_catalog.min(history.memory_id) FROM {{0}}.history
LEFT JOIN {{0}}.owners ON owners.memory_id = history.memory_id
WHERE {" OR ".join(f"history.{name} IS DISTINCT FROM owners.{name}" for name in SCOPES)}
"""
_SEES_ALL: Final = """
SELECT pg_catalog.has_table_privilege(named::pg_catalog.oid, 'SELECT'::pg_catalog.text)
    AND NOT pg_catalog.row_security_active(named::pg_catalog.oid)
FROM (SELECT $1::pg_catalog.text::pg_catalog.regclass AS named) AS given
"""
_STATES: Final = "SELECT pg_catalog.count(*) FROM {}.owners_state"
_SEQUENCE: Final = """
SELECT named FROM pg_catalog.pg_get_serial_sequence(
    $1::pg_catalog.text, $2::pg_catalog.text
) AS named
WHERE pg_catalog.has_sequence_privilege(
    named::pg_catalog.regclass::pg_catalog.oid, 'SELECT'::pg_catalog.text
)
"""
_NUMBERS: Final = """
SELECT (SELECT pg_catalog.max({column}) FROM {table}), last_value, is_called FROM {sequence}
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
    for table, column in await connection.fetch(_WITHOUT_VALUE, schema):
        yield (
            f"The column {table}.{column} has lost its identity or its default, so new rows have "
            "no order: give it back, as in the migrations, and set its sequence."
        )
    owners = [owner for (owner,) in await connection.fetch(_OWNERS, schema)]
    if len(owners) > 1:
        yield (
            f"The tables have several owners ({', '.join(owners)}), so none can migrate them all: "
            "give them to one."
        )
    count, example = await connection.fetchrow(_DIFFERENT_OWNERS.format(quoted(schema)))
    if others := int(count):
        records = counted(others, "record does", "records do")
        yield f"{records} not have their memory's owner, such as one of memory {example}."
    for problem in await faults_of_causes(connection, quoted(schema)):
        yield problem
    if await connection.fetchval(_SEES_ALL, f"{quoted(schema)}.owners_state"):
        states = int(await connection.fetchval(_STATES.format(quoted(schema))))
        if states != 1:
            yield (
                f"The table owners_state has {states} rows instead of one: keep or restore the "
                "backup's, see the guide on PostgreSQL."
            )
    numbered = {"history": "seq", "messages": "seq"}
    if await has_ledger(connection, schema):
        numbered["history_ledger"] = "number"
    for table, column in numbered.items():
        async for problem in _numbers(connection, schema, table, column):
            yield problem
    count, example = await connection.fetchrow(_TWICE.format(quoted(schema)))
    if twice := int(count):
        ids = counted(twice, "id is", "ids are")
        yield f"{ids} of records of several memories, such as {example}."


async def _numbers(connection: Any, schema: str, table: str, column: str) -> AsyncIterator[str]:
    """Yield a problem if new rows would get lower numbers than those there.

    So it is after logical replication, which copies rows and not sequences.
    """
    whole = f"{quoted(schema)}.{table}"
    if not await connection.fetchval(_SEES_ALL, whole):
        return
    sequence = await connection.fetchval(_SEQUENCE, whole, column)
    if sequence is None:  # or this role may not read it
        return
    numbers = _NUMBERS.format(column=column, table=whole, sequence=sequence)
    highest, last, is_called = await connection.fetchrow(numbers)
    following = int(last) + bool(is_called)
    if highest is not None and following <= int(highest):
        sequence = sequence.replace("'", "''")
        yield (
            f"The newest row of {table} has the number {highest}, and the next one would get "
            f"{following}, and come before it: SELECT pg_catalog.setval('{sequence}', {highest})."
        )
