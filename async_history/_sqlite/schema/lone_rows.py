"""Renumbering of rows at the lowest and highest rowids, after which no rowids are left.

Once a row has the highest rowid, SQLite numbers new rows at random, so their order is lost.
"""

import logging
import sqlite3

from async_history._core.wording import counted
from async_history._sqlite.index import ROWID_LIMIT
from async_history._sqlite.schema.layouts import migration_error

_log = logging.getLogger("async_history")


def renumber_rows(connection: sqlite3.Connection) -> None:
    """Renumber rows at either end, in the same order, inside the caller's transaction.

    Raises:
        MigrationError: there are too many of them.
    """
    table = connection.execute(
        "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND lower(name) = 'history'"
    ).fetchone()
    if table is None:
        return
    moved = _renumber_end(connection, "max", "rowid >= ?", "rowid < ?", 1)
    moved += _renumber_end(connection, "min", "rowid <= ?", "rowid > ?", -1)
    if moved:
        (_, _, file) = connection.execute("PRAGMA database_list").fetchone()
        _log.warning(
            "%s: %s had rowids so near the limit that SQLite could not number new rows; they were "
            "renumbered in the same order",
            file,
            counted(moved, "row"),
        )


def _renumber_end(
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
        raise migration_error(
            connection,
            f"its rowids reach {place} and {lone[-1][0]}, so no rowids are left for new rows",
            "copy history into a new table, in order, and name that history",
        )
    for number, (rowid,) in enumerate(lone, 1):
        connection.execute(
            "UPDATE main.history SET rowid = ? WHERE rowid = ?",
            (place + direction * number, rowid),
        )
    return len(lone)
