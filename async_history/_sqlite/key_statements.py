"""The tables of keys of an encrypted SQLite file, and their statements."""

import json
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.key_statements import (
    KEY_COLUMNS,
    MOST_USES,
    KeyReads,
    KeyStatements,
    KeyTable,
    StoredKey,
)
from async_history._core.encryption.sealing import BEGIN, JSON_BEGIN
from async_history._core.records.owners import SCOPES
from async_history._sqlite.connecting.connection import fetch_rows, transaction
from async_history._sqlite.index import mark_copied
from async_history._sqlite.rows import Fetch

T = TypeVar("T")

_IDS: Final = "(SELECT value FROM json_each(:p1))"
_USABLE: Final = f"""FROM json_each({{}}) AS given
    CROSS JOIN main.async_history_data_keys AS stored ON stored.id = given.value
    WHERE stored.uses < {MOST_USES}"""
_ARE_USABLE: Final = f"(SELECT count(*) {_USABLE.format('?')}) = ?"
"""SQL condition: all keys of a list exist, and none is retired."""
_STORED: Final = f"SELECT {', '.join(KEY_COLUMNS)} FROM main.async_history_data_keys AS stored"
CLEAR_TEXT: Final = " OR ".join(
    f"substr({column}, 1, {len(BEGIN)}) <> '{BEGIN}'" for column in ("old_memory", "new_memory")
)
"""SQL condition: a record has a text in clear."""
_CLEAR_CAUSE: Final = f"instr(cause, '{JSON_BEGIN}') = 0"
HAS_CLEAR_CAUSE: Final = f"EXISTS (SELECT 1 FROM main.async_history_details WHERE {_CLEAR_CAUSE})"
"""SQL condition: a record has a cause in clear."""
_CREATE: Final = (
    """
    CREATE TABLE IF NOT EXISTS async_history_encryption (
        id INTEGER PRIMARY KEY CHECK (id = 1), is_whole INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS async_history_wrapping_keys (
        id TEXT PRIMARY KEY, master TEXT NOT NULL, wrapped TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    f"""
    CREATE TABLE IF NOT EXISTS async_history_data_keys (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, {" TEXT, ".join(SCOPES)} TEXT,
        wrapping_key TEXT NOT NULL, wrapped TEXT NOT NULL, uses INTEGER NOT NULL,
        erased INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
    """
    CREATE INDEX IF NOT EXISTS async_history_data_keys_owner ON async_history_data_keys (owner)
    """,
    # Sealed records have no entry, so counting takes time only for records in clear.
    f"CREATE INDEX IF NOT EXISTS async_history_clear ON history (is_deleted) WHERE {CLEAR_TEXT}",
    f"""
    CREATE INDEX IF NOT EXISTS async_history_clear_causes
    ON async_history_details (id) WHERE {_CLEAR_CAUSE}
    """,
)
_HAS_ALL: Final = """
SELECT count(*) = 6 FROM main.sqlite_master WHERE name IN (
    'async_history_encryption', 'async_history_wrapping_keys', 'async_history_data_keys',
    'async_history_data_keys_owner', 'async_history_clear', 'async_history_clear_causes'
)
"""
COUNT_CLEAR: Final = f"SELECT count(*) FROM history WHERE {CLEAR_TEXT}"
HAS_KEY_TABLES: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = 'async_history_wrapping_keys'
)"""
"""SQL condition: encryption was turned on. If it was turned off again, the tables are empty."""
HAS_KEYS: Final = "SELECT EXISTS (SELECT 1 FROM main.async_history_wrapping_keys)"
_HAS_CLEAR_CAUSES: Final = (
    "EXISTS (SELECT 1 FROM main.async_history_details WHERE cause IS NOT NULL)"
)
_ADD: Final = f"""
INSERT INTO async_history_data_keys ({", ".join(KEY_COLUMNS)})
VALUES ({", ".join("?" * len(KEY_COLUMNS))})
"""
_STATEMENTS: Final = KeyStatements(
    wrapping="SELECT id, master, wrapped FROM main.async_history_wrapping_keys ORDER BY id",
    add_wrapping="INSERT OR IGNORE INTO async_history_wrapping_keys VALUES (:p1, :p2, :p3)",
    remove_wrapping="""
    DELETE FROM async_history_wrapping_keys
    WHERE id <> :p1 AND id NOT IN (SELECT wrapping_key FROM async_history_data_keys)
    """,
    count_usable=f"SELECT count(*) {_USABLE.format(':p1')}",
    keys=f"{_STORED} WHERE id IN {_IDS}",
    of_owners=f"{_STORED} WHERE owner IN {_IDS} AND NOT erased ORDER BY uses",
    wrapped_by_others=f"""
    {_STORED} WHERE wrapping_key <> :p1 AND id > :p2 ORDER BY id LIMIT :p3
    """,
    count_wrapped_by_others="""
    SELECT count(*) FROM main.async_history_data_keys WHERE wrapping_key <> :p1
    """,
    reserve=f"UPDATE async_history_data_keys SET uses = uses + :p2 WHERE id IN {_IDS}",
    rewrap="UPDATE async_history_data_keys SET wrapping_key = :p1, wrapped = :p2 WHERE id = :p3",
    remove=f"DELETE FROM async_history_data_keys WHERE id IN {_IDS} AND NOT erased",
    begin=f"""
    INSERT OR IGNORE INTO async_history_encryption (id, is_whole)
    SELECT 1, NOT {_HAS_CLEAR_CAUSES}
    """,
    is_whole=f"SELECT is_whole AND NOT {HAS_CLEAR_CAUSE} FROM main.async_history_encryption",
    mark={
        scope: f"UPDATE async_history_data_keys SET erased = 1 WHERE {scope} = :p1"
        for scope in SCOPES
    },
    marked={
        scope: f"SELECT id FROM async_history_data_keys WHERE erased AND {scope} = :p1"
        for scope in SCOPES
    },
    destroy=f"DELETE FROM async_history_data_keys WHERE id IN {_IDS} AND erased",
)


@cache
def checking_keys(sql: str) -> str:
    """Return a statement, which ends in a condition, with the condition that keys are usable."""
    return f"{sql} AND {_ARE_USABLE}"


def key_parameters(keys: Sequence[str]) -> tuple[str, int]:
    """Return the last parameters of a statement of `checking_keys`."""
    return json.dumps(keys), len(keys)


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the missing tables and indexes of an encrypted file.

    The index of the records is then marked as valid for the new schema.
    """
    ((has_all,),) = fetch_rows(connection, _HAS_ALL)
    if not has_all:
        with transaction(connection):
            add_tables(connection)


def add_tables(connection: sqlite3.Connection) -> None:
    """Create the missing tables and indexes, within a transaction."""
    ((before,),) = fetch_rows(connection, "PRAGMA schema_version")
    for statement in _CREATE:
        connection.execute(statement)
    ((after,),) = fetch_rows(connection, "PRAGMA schema_version")
    if after != before:
        mark_copied(connection, before)


def in_transaction(
    work: Callable[[KeyTable], Coroutine[Any, Any, T]], connection: sqlite3.Connection
) -> T:
    """Do work on the key tables in one transaction, on the connection's thread."""
    with transaction(connection):
        return run_to_completion(work(WrittenKeyTable(connection)))


def is_encrypted(connection: sqlite3.Connection) -> bool:
    """Return whether encryption is turned on, also since the file was opened."""
    ((has_tables,),) = fetch_rows(connection, f"SELECT {HAS_KEY_TABLES}")
    return bool(has_tables) and bool(fetch_rows(connection, HAS_KEYS)[0][0])


class WrittenKeyTable(KeyTable):
    """The tables of keys, for a transaction on the connection's thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        async def run(sql: str, *parameters: Any) -> Sequence[Sequence[Any]]:
            return fetch_rows(connection, sql, _named(parameters))

        super().__init__(_STATEMENTS, run)
        self._connection = connection

    async def add(self, keys: Sequence[StoredKey]) -> None:
        """Add data keys."""
        self._connection.executemany(_ADD, keys)


def table_read(fetch: Fetch) -> KeyReads:
    """Return the key tables, for reading."""

    async def run(sql: str, *parameters: Any) -> Sequence[Sequence[Any]]:
        return await fetch(sql, _named(parameters))

    return KeyReads(_STATEMENTS, run)


def _named(parameters: Sequence[Any]) -> dict[str, Any]:
    """Return parameters by their names in the statements; a list becomes a JSON array."""
    return {
        f"p{place}": json.dumps(value) if isinstance(value, list) else value
        for place, value in enumerate(parameters, 1)
    }
