"""The ledger in a SQLite file: its tables, which are created on request, and its statements.

See `_core/ledger/tables.py` for their use.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.ledger.statements import LedgerStatements
from async_history._core.ledger.tables import LedgerTables
from async_history._core.records.records import COLUMNS
from async_history._core.records.rows import ReadRows, Row
from async_history._sqlite.connecting.connection import ThreadConnection, fetch_rows, transaction
from async_history._sqlite.connecting.errors import read_snapshot
from async_history._sqlite.index import has_memorys_owner, mark_copied, owner_number
from async_history._sqlite.key_statements import HAS_KEY_TABLES, HAS_KEYS
from async_history._sqlite.keys import InClear, Seal
from async_history._sqlite.write_program import ATTEST_PROGRAM, WRITE_PROGRAM

T = TypeVar("T")

_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS async_history_ledger (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        first  INTEGER, -- the place of its first leaf; NULL until it has one
        kind   TEXT NOT NULL,
        size   INTEGER NOT NULL,
        hashes BLOB NOT NULL,
        is_keyed INTEGER NOT NULL,
        names  TEXT NOT NULL
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS async_history_ledger_places
    ON async_history_ledger (first, size)
    """,
    """
    CREATE INDEX IF NOT EXISTS async_history_ledger_entries
    ON async_history_ledger (first) WHERE kind = 'entry'
    """,
    """
    CREATE TABLE IF NOT EXISTS async_history_ledger_tiles (
        level INTEGER, number INTEGER, hashes BLOB NOT NULL, PRIMARY KEY (level, number)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS async_history_ledger_names (
        key INTEGER, place INTEGER, PRIMARY KEY (key, place)
    ) WITHOUT ROWID
    """,
)
HAS_LEDGER: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = 'async_history_ledger'
)"""
"""SQL condition: the file has a ledger."""
APPEND: Final = """
INSERT INTO async_history_ledger (kind, size, hashes, is_keyed, names) VALUES (?, ?, ?, ?, ?)
"""
_BUNDLE: Final = """
SELECT first, first, first, kind, size, hashes, is_keyed, names FROM async_history_ledger"""
"""One process writes at a time, so a new bundle comes after all bundles with a place."""
_PAIRS: Final = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"
_HISTORY: Final = ", ".join(f"history.{name}" for name in COLUMNS)
STATEMENTS: Final = LedgerStatements(
    has_key_tables=f"SELECT {HAS_KEY_TABLES}",
    is_encrypted=HAS_KEYS,
    lock=None,
    size="SELECT coalesce((SELECT first + size FROM async_history_ledger"
    " WHERE first IS NOT NULL ORDER BY first DESC LIMIT 1), 0)",
    append=APPEND,
    waiting="""
    SELECT number, kind, size, hashes, is_keyed, names FROM (
        SELECT number, sum(size) OVER (ORDER BY number) - size AS before FROM (
            SELECT number, size FROM async_history_ledger WHERE first IS NULL
            ORDER BY number LIMIT ?
        )
    ) JOIN async_history_ledger USING (number) WHERE before < ? ORDER BY number
    """,
    place="UPDATE async_history_ledger SET first = json_extract(given.value, '$[1]')"
    " FROM json_each(?) AS given WHERE number = json_extract(given.value, '$[0]')",
    rewrite="UPDATE async_history_ledger SET hashes = ?, names = ? WHERE first = ?",
    leaf_count=None,
    rewrite_all=None,
    bundles=f"{_BUNDLE} WHERE first >= ? AND first < ? ORDER BY first",
    bundles_at=f"""{_BUNDLE} WHERE first IN (
        SELECT (
            SELECT first FROM async_history_ledger WHERE first <= value ORDER BY first DESC LIMIT 1
        ) FROM json_each(?)
    ) ORDER BY first""",
    entries=f"{_BUNDLE} WHERE kind = 'entry' AND first IS NOT NULL ORDER BY first",
    tiles="""
    SELECT tile.level, tile.number, tile.hashes FROM json_each(?) AS given
    CROSS JOIN async_history_ledger_tiles AS tile
        ON tile.level = json_extract(given.value, '$[0]')
        AND tile.number = json_extract(given.value, '$[1]')
    """,
    write_tile="INSERT OR REPLACE INTO async_history_ledger_tiles (level, number, hashes)"
    " VALUES (?, ?, ?)",
    names="SELECT key, place FROM async_history_ledger_names"
    " WHERE key IN (SELECT value FROM json_each(?))",
    write_names="INSERT OR IGNORE INTO async_history_ledger_names (key, place)"
    f" {_PAIRS} ORDER BY 1",
    remove_names=f"DELETE FROM async_history_ledger_names WHERE (key, place) IN ({_PAIRS})",
    records=f"""
    SELECT history.rowid, {has_memorys_owner("history")}, {_HISTORY}, detail.context, detail.cause
    FROM json_each(?) AS given CROSS JOIN history ON history.id = given.value
    LEFT JOIN async_history_details AS detail ON detail.id = history.id
    LEFT JOIN async_history_owners AS owned ON owned.number = detail.owner
    """,
    lines=None,
    owners=f"""
    SELECT owned.memory_id, owned.owner FROM (
        SELECT value AS memory_id, async_history_key(CAST(value AS BLOB)) AS memory
        FROM json_each(?) LIMIT -1 -- computes each key once
    ) AS given
    CROSS JOIN main.async_history_owners AS owned
        ON owned.number = {owner_number("given.memory", "given.memory_id")}
    """,
    memories="""
    SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM history WHERE memory_id = value)
    """,
    scan=None,
    record_count="SELECT count(*) FROM history",
    owner_counts="SELECT count(*) FROM async_history_owners",
    record_ids="SELECT rowid, id FROM history WHERE rowid >= ? ORDER BY rowid LIMIT ?",
    operations="""
    SELECT id, kind, begun_at, actor_id, process_id, host, NULL, arguments, ended_at, error,
           records, messages
    FROM async_history_operations WHERE id IN (SELECT value FROM json_each(?))
    """,
    operations_of="SELECT id FROM async_history_operations WHERE actor_id = ?",
    operation_counts="SELECT count(*), count(ended_at) FROM async_history_operations",
)

_IN_CLEAR: Final = InClear()


def has_ledger(connection: sqlite3.Connection) -> bool:
    """Return whether the file has a ledger."""
    ((there,),) = fetch_rows(connection, f"SELECT {HAS_LEDGER}")
    return bool(there)


def write_program(connection: sqlite3.Connection) -> str:
    """Return the statements that create the views and triggers of a writing connection."""
    return f"{WRITE_PROGRAM}{ATTEST_PROGRAM}" if has_ledger(connection) else WRITE_PROGRAM


def make_tables(connection: sqlite3.Connection) -> None:
    """Create a ledger in a prepared file, if it has none. Its index stays valid."""
    if has_ledger(connection):
        return
    with transaction(connection):
        ((version,),) = fetch_rows(connection, "PRAGMA main.schema_version")
        for statement in _TABLES:
            connection.execute(statement)
        mark_copied(connection, version)


def tables(connection: sqlite3.Connection, seal: Seal = _IN_CLEAR) -> LedgerTables:
    """Return the ledger's tables through a connection, on its thread."""

    async def run(sql: str, *parameters: Any) -> list[Any]:
        return fetch_rows(connection, sql, parameters)

    async def open_rows(read: ReadRows) -> Sequence[Row]:
        return seal.opened_rows(await read(), connection)

    return LedgerTables(STATEMENTS, run, open_rows, seal.salt_key)


def place_next(connection: sqlite3.Connection) -> bool:
    """Assign places to the next leaves in a transaction; return whether more are waiting."""
    if not has_ledger(connection):
        return False
    with transaction(connection):
        return run_to_completion(tables(connection).grow())


def attest(
    connection: sqlite3.Connection,
    work: Callable[[LedgerTables], Coroutine[Any, Any, T]],
    seal: Seal = _IN_CLEAR,
) -> T | None:
    """Do work on the ledger inside a transaction; None if the file has no ledger.

    Args:
        seal: opens the texts of records.
    """
    return run_to_completion(work(tables(connection, seal))) if has_ledger(connection) else None


class LedgerFile:
    """The ledger of a file, for the manager.

    Args:
        run_exclusively: runs work on the writer's connection, alone.
        read: calls a function with a reading connection, on its thread.
        seal: opens the texts of records.
    """

    def __init__(
        self,
        run_exclusively: Callable[[Callable[[ThreadConnection], Awaitable[Any]]], Awaitable[Any]],
        read: Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]],
        seal: Seal,
    ) -> None:
        self._run_exclusively = run_exclusively
        self._read = read
        self._seal = seal

    async def write(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        """Run work in one transaction, queued with the writes."""

        def written(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return self._done(work, connection)

        done: T = await self._run_exclusively(lambda connection: connection.run(written))
        return done

    async def read(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        """Run work that only reads in one snapshot, on a reading connection's thread."""

        def read(connection: sqlite3.Connection) -> T:
            with read_snapshot(connection):
                return self._done(work, connection)

        done: T = await self._read(read)
        return done

    def _done(
        self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]], connection: sqlite3.Connection
    ) -> T:
        return run_to_completion(work(tables(connection, self._seal)))
