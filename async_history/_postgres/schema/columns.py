"""The columns of the tables, and the check that none of them was lost or has another type."""

from collections.abc import Mapping
from typing import Any, Final

_SCOPES: Final = "user_id text, agent_id text, run_id text, app_id text"
_EXPECTED: Final[Mapping[str, str]] = {
    "history": (
        "seq int8, xact xid8, id text, memory_id text, old_memory text, new_memory text,"
        " event text, created_at text, updated_at text, occurred_at timestamptz, is_deleted bool,"
        f" actor_id text, role text, {_SCOPES}, context text, cause text, cause_run_id int8,"
        " cause_trace_id int8, cause_request_id int8"
    ),
    "messages": (
        "seq int8, id text, session_scope text, role text, content text, name text, created_at text"
    ),
    "owners": f"memory_id text, {_SCOPES}",
    "owners_state": "number int8, last int8, erased_at int8",
    "erased": "digest text, at int8",
    "operations": (
        "id text, begun_at timestamptz, ended_at timestamptz, records int8, messages int8,"
        " kind text, error text, actor_id text, process_id int8, host text, database_role text,"
        " arguments json"
    ),
    "encryption": "id int4, is_whole bool",
    "wrapping_keys": "id text, master text, wrapped text",
    "data_keys": (
        f"id text, owner text, {_SCOPES}, wrapping_key text, wrapped text, uses int8, erased bool"
    ),
    "history_ledger": (
        "number int8, xact xid8, since xid8, first int8, kind text, size int8, hashes bytea,"
        " is_keyed bool, names text"
    ),
    "history_ledger_tiles": "level int8, number int8, hashes bytea",
    "history_ledger_names": "key int8, place int8",
}
"""The columns of `OF_VERSION`, with their types as the catalog names them."""
OF_VERSION: Final = 12
LEDGER_TABLE: Final = "history_ledger"
"""The first table of a ledger; the names of the others begin with its name."""
LEDGER_COLUMNS: Final = {"number", "first", "hashes", "names"}
"""Columns by which it is recognised: another program may have a table of this name."""
_TILES: Final = "history_ledger_tiles"
"""A table that no other program has."""
_VARCHAR: Final = "varchar"
"""Accepted for text: the server refuses a text that is too long, and changes none."""
_TYPES: Final = """
SELECT relname::pg_catalog.text, attname::pg_catalog.text, typname::pg_catalog.text, atttypmod
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_catalog.pg_type ON pg_type.oid = atttypid
WHERE nspname = $1
"""
_UNLIMITED: Final = -1
"""The modifier of a type without a length or a precision."""


async def column_faults(connection: Any, schema: str) -> list[str]:
    """Return what is wrong with columns of a schema's tables of `OF_VERSION`, if anything.

    With another type a column could change what is stored, such as round an instant.
    """
    there = {
        (table, column): (kind, modifier)
        for table, column, kind, modifier in await connection.fetch(_TYPES, schema)
    }
    tables = {table for table, _ in there}
    of_ledger = {column for table, column in there if table == LEDGER_TABLE}
    if _TILES not in tables and not of_ledger >= LEDGER_COLUMNS:
        tables.discard(LEDGER_TABLE)
    faults: list[str] = []
    for table, columns in _EXPECTED.items():
        if table.startswith(LEDGER_TABLE) and table not in tables:
            continue
        for column in columns.split(", "):
            name, expected = column.split()
            kind, modifier = there.get((table, name), (None, _UNLIMITED))
            if kind is None:
                faults.append(f"{table}.{name} is missing")
            elif kind != expected and (kind, expected) != (_VARCHAR, "text"):
                faults.append(f"{table}.{name} has the type {kind} instead of {expected}")
            elif modifier != _UNLIMITED and kind != _VARCHAR:
                faults.append(f"{table}.{name} has a limit of its own in its type {kind}")
    return faults
