"""Rows at the ends of what SQLite can count: brought back to where there is room beside them.

After a row at the last rowid SQLite numbers new ones at random, and a record's place tells nothing.
"""

import logging
import sqlite3

from async_history._sqlite.index import ROWID_LIMIT
from async_history._sqlite.schema.layouts import refusal

_log = logging.getLogger("async_history")


def restore_memory(connection: sqlite3.Connection) -> None:
    """Give rows at either end other rowids, in the same order, inside the caller's transaction.

    Raises:
        MigrationError: they are too many.
    """
    table = connection.execute(
        "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND lower(name) = 'history'"
    ).fetchone()
    if table is None:
        return
    moved = _bring(connection, "max", "rowid >= ?", "rowid < ?", 1)
    moved += _bring(connection, "min", "rowid <= ?", "rowid > ?", -1)
    if moved:
        (_, _, file) = connection.execute("PRAGMA database_list").fetchone()
        _log.warning(
            "%s: %s rows stood where SQLite can't count on; they have other rowids now, in the "
            "same order",
            file,
            moved,
        )


def _bring(
    connection: sqlite3.Connection, last: str, is_lone: str, is_not: str, direction: int
) -> int:
    limit = direction * ROWID_LIMIT
    order = "ASC" if direction > 0 else "DESC"
    lone = connection.execute(
        f"SELECT rowid FROM main.history WHERE {is_lone} ORDER BY rowid {order}",
        (limit,),
    ).fetchall()
    if not lone:
        return 0
    (place,) = connection.execute(
        f"SELECT coalesce({last}(rowid), 0) FROM main.history WHERE {is_not}",
        (limit,),
    ).fetchone()
    if abs(place + direction * len(lone)) >= ROWID_LIMIT:
        raise refusal(
            connection,
            f"its rows reach to rowid {place} and {lone[-1][0]}, and new ones would have no place",
            "copy history into a new table, in order, and name that history",
        )
    for number, (rowid,) in enumerate(lone, 1):
        connection.execute(
            "UPDATE main.history SET rowid = ? WHERE rowid = ?",
            (place + direction * number, rowid),
        )
    return len(lone)
