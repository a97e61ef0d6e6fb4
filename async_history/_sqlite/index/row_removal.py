"""Removing rows of `history` with their entries in the levels, and the owners that they leave."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Final

from async_history._sqlite.index.levels import remove_entries
from async_history._sqlite.index.owner_upkeep import remove_lost_owners
from async_history._sqlite.index.owners import HAS_DETAILS, HAS_OWNERS
from async_history._sqlite.index.row_keys import keys_of_details

_HAS: Final = f"SELECT {HAS_DETAILS}, {HAS_OWNERS}"
_REMOVE: Final = "DELETE FROM history WHERE rowid IN (SELECT value FROM json_each(?))"
_REMOVE_UNDATED: Final = f"""
{_REMOVE} AND rowid IN (SELECT position FROM main.async_history_undated)
"""
"""The records without a time go before those that date them. Otherwise a trigger would mark their
blocks as changed, and every later search by time would read them."""
_WITH_OWNERS: Final = 64
"""Rows per statement if memories have owners: for each removed row, a trigger scans the memories
that lost records, which `remove_lost_owners` empties."""


def remove_rows(connection: sqlite3.Connection, memories: Mapping[int, int]) -> int:
    """Remove rows; return how many there were. Every row must be indexed.

    Args:
        memories: the key of each row's memory, by the row's position.
    """
    positions = list(memories)
    ((has_details, has_owners),) = connection.execute(_HAS).fetchall()
    entries = [(key, position) for position, key in memories.items()]
    if has_details:
        entries += keys_of_details(connection, positions)
    remove_entries(connection, entries)
    removed = connection.execute(_REMOVE_UNDATED, (json.dumps(positions),)).rowcount
    size = _WITH_OWNERS if has_owners else len(positions)
    for start in range(0, len(positions), size):
        given = json.dumps(positions[start : start + size])
        removed += connection.execute(_REMOVE, (given,)).rowcount
        remove_lost_owners(connection)
    return removed
