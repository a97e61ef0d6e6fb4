"""Indexing the rows that have no entries yet: the last single records, and other programs' rows."""

import sqlite3
from typing import Final

from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.index.owner_upkeep import index_details, remove_lost_owners
from async_history._sqlite.index.validity import INDEX_IS_VALID, NOTE_REACH, stamped

NOTE_INDEXED: Final = f"UPDATE async_history_state SET {NOTE_REACH}, {stamped('recent_stamp')};"
"""Statement of a trigger that completes the index, if every new row has its entries."""
_TAIL: Final = """
    history.rowid > (SELECT indexed_through FROM async_history_state)
    AND history.rowid <= (SELECT max(rowid) FROM history) - {but}
"""
_DETAILS_OF_TAIL: Final = ";".join(index_details(LEVELS[0], _TAIL))
INDEX_TAIL: Final = f"""
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    SELECT async_history_key(CAST(memory_id AS BLOB)), rowid FROM history WHERE {_TAIL};
    {_DETAILS_OF_TAIL};
    {NOTE_INDEXED}
"""
"""Statements of a trigger that index the last few rows, except the last `but`, which are already
indexed: see `NEARLY_COMPLETE`."""

_FOREIGN: Final = (
    "history.rowid > (SELECT indexed_through FROM async_history_state)",
    "history.rowid IN (SELECT position FROM async_history_strays)",
)
_INDEX_FOREIGN_ROWS: Final = (
    *(
        f"""
        INSERT OR IGNORE INTO async_history_settled (memory, position)
        SELECT async_history_key(CAST(memory_id AS BLOB)), rowid FROM history WHERE {rows}
        ORDER BY 1, 2
        """
        for rows in _FOREIGN
    ),
    *(statement for rows in _FOREIGN for statement in index_details(LEVELS[2], rows)),
    "DELETE FROM async_history_strays",
    f"UPDATE async_history_state SET {NOTE_REACH}, {stamped('lower_stamp')} WHERE {INDEX_IS_VALID}",
)
"""Statements that index the rows that other programs wrote, to be run in order in a write
transaction."""
INDEX_NO_ROWS: Final = f"UPDATE async_history_state SET {NOTE_REACH}"
"""Statement that completes the index if `history` is empty."""


def index_foreign_rows(connection: sqlite3.Connection) -> None:
    """Index the rows that other programs wrote, inside the caller's write transaction."""
    remove_lost_owners(connection)
    for statement in _INDEX_FOREIGN_ROWS:
        connection.execute(statement)
