"""The statements of the log of operations in a SQLite file."""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Final

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.ledger.operation_log import LedgeredOperationLog
from async_history._core.operations.operation_log import OperationStatements, StatementOperationLog
from async_history._core.operations.operations import LogEntries, StoreOperation
from async_history._sqlite.connecting.connection import fetch_rows
from async_history._sqlite.index import json_of
from async_history._sqlite.ledger import has_ledger, tables
from async_history._sqlite.rows import NULL, rows_sql

_ENTRY_ROWS: Final = (1, 8, 64, 512)
"""Entries per statement. There are few sizes, so that each stays prepared; padding fills the
rest."""
_ENTRY_WIDTH: Final = 4
_BEGIN: Final = {
    rows: f"""
    INSERT OR IGNORE INTO async_history_operations (
        kind, ended_at, error, process_id, host, records, messages, id, begun_at, actor_id,
        arguments
    )
    SELECT ?, ?, ?, ?, ?, ?, ?, column1, column2, column3, column4
    FROM ({rows_sql(_ENTRY_WIDTH, rows)}) WHERE column1 IS NOT NULL
    """
    for rows in _ENTRY_ROWS
}
"""Statements by their number of entries. With one statement for each entry, each would need the GIL
of a busy event loop; reading the entries from JSON takes three times as long."""


def _begin(entries: LogEntries) -> Iterator[tuple[str, Sequence[Any]]]:
    *shared, each = entries
    for start in range(0, len(each), _ENTRY_ROWS[-1]):
        part = each[start : start + _ENTRY_ROWS[-1]]
        rows = _ENTRY_ROWS[bisect_left(_ENTRY_ROWS, len(part))]
        values = [NULL if value is None else value for value in shared]
        for operation_id, begun_at, actor_id, arguments in part:
            values += (operation_id, begun_at, NULL if actor_id is None else actor_id, arguments)
        values += (NULL,) * (_ENTRY_WIDTH * (rows - len(part)))
        yield _BEGIN[rows], values


def _texts(*names: str) -> str:
    """Return SQL for columns of texts as JSON can hold them, also if they are BLOBs."""
    return ", ".join(f"CAST({name} AS TEXT)" for name in names)


def _whole(name: str) -> str:
    """Return SQL for a column of numbers; NULL if its value is not a whole number."""
    return f"CASE WHEN typeof({name}) = 'integer' THEN {name} END"


OPERATIONS: Final = OperationStatements(
    begin=_begin,
    add="""
    UPDATE async_history_operations SET records = records + ?, messages = messages + ? WHERE id = ?
    """,
    end="""
    UPDATE async_history_operations
    SET ended_at = ?, error = ?, records = records + ?, messages = messages + ?
    WHERE id = ? AND ended_at IS NULL
    """,
    counts="SELECT records, messages FROM async_history_operations WHERE id = ?",
    forget_actor="UPDATE async_history_operations SET actor_id = NULL WHERE actor_id = ?",
    last=f"""
    SELECT json_array(
        {_texts("id", "kind", "begun_at", "ended_at", "error", "actor_id")},
        {_whole("process_id")}, {_texts("host")}, NULL, json({json_of("arguments")}),
        {_whole("records")}, {_whole("messages")}
    ) FROM async_history_operations
    WHERE (
        ?1 IS NULL
        OR (begun_at, id) <= (SELECT begun_at, id FROM async_history_operations WHERE id = ?1)
    ) AND (?3 IS NULL OR kind = ?3)
    ORDER BY begun_at DESC, id DESC LIMIT coalesce(?2, -1)
    """,
)
_HAS_TABLE: Final = """
SELECT EXISTS (SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?)
"""
_MEMORY_IDS: Final = f"json({json_of('memory_ids')})"
_ERASURES: Final = f"""
SELECT id, 'erase' AS kind, begun_at, finished_at AS ended_at, NULL AS error, NULL AS actor_id,
       NULL AS process_id, NULL AS host,
       CASE WHEN actor_sha256 IS NULL
            THEN json_object('reason', {_texts("reason")}, 'memory_ids', {_MEMORY_IDS})
            ELSE json_object('reason', {_texts("reason")}, 'memory_ids', {_MEMORY_IDS},
                             'actor_id_sha256', {_texts("actor_sha256")})
       END AS arguments,
       records, messages
FROM main.async_history_erasures
"""
"""The log of erasures of versions 3 to 6, as operations."""


def has_log(connection: sqlite3.Connection) -> bool:
    """Return whether a file has a log of operations."""
    return _has_table(connection, "async_history_operations")


def file_log(connection: sqlite3.Connection) -> LedgeredOperationLog:
    """Return the log of a file within a transaction, on the connection's thread."""

    async def run(sql: str, *parameters: Any) -> list[Any]:
        return fetch_rows(connection, sql, parameters)

    return LedgeredOperationLog(
        StatementOperationLog(OPERATIONS, run),
        lambda: tables(connection) if has_ledger(connection) else None,
    )


def enter(connection: sqlite3.Connection, operation: StoreOperation) -> None:
    """Add an operation to the log, in the open transaction."""
    run_to_completion(file_log(connection).begin(operation))


def row_count(connection: sqlite3.Connection, table: str) -> int:
    """Return the number of rows of a table; 0 if another program has dropped it."""
    if not _has_table(connection, table):
        return 0
    ((count,),) = connection.execute(f"SELECT count(*) FROM main.{table}").fetchall()
    return int(count)


def move_erasures(connection: sqlite3.Connection) -> None:
    """Move the log of erasures of an earlier version into the log of operations."""
    if _has_table(connection, "async_history_erasures"):
        connection.execute(f"INSERT OR IGNORE INTO async_history_operations {_ERASURES}")
        connection.execute("DROP TABLE main.async_history_erasures")


def create_missing_log(connection: sqlite3.Connection) -> None:
    """Create a temporary view as the log of operations on a reading connection, if a file has none.

    It shows the erasures of an earlier version.
    """
    if has_log(connection):
        return
    erasures = _ERASURES
    if not _has_table(connection, "async_history_erasures"):
        names = "id, kind, begun_at, ended_at, error, actor_id, process_id, host, arguments"
        columns = ", ".join(f"NULL AS {name}" for name in f"{names}, records, messages".split(", "))
        erasures = f"SELECT {columns} WHERE false"
    connection.execute(f"CREATE TEMP VIEW async_history_operations AS {erasures}")


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    ((has_table,),) = connection.execute(_HAS_TABLE, (name,)).fetchall()
    return bool(has_table)
