"""Removing rows of `history` with their entries in the levels, and the owners that they leave."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from async_history._sqlite.index.levels import remove_entries
from async_history._sqlite.index.owner_upkeep import remove_lost_owners
from async_history._sqlite.index.owners import HAS_DETAILS, HAS_OWNERS
from async_history._sqlite.index.row_keys import keys_of_details

_HAS: Final = f"SELECT {HAS_DETAILS}, {HAS_OWNERS}"
_REMOVE: Final = "DELETE FROM history WHERE rowid IN (SELECT value FROM json_each(?))"
_UNDATED: Final = """
SELECT position FROM main.async_history_undated
WHERE position IN (SELECT value FROM json_each(?))
"""
_THERE: Final = "SELECT rowid FROM history WHERE rowid IN (SELECT value FROM json_each(?))"
_WITH_OWNERS: Final = 64
"""Rows at a time if memories have owners: for each removed row, a trigger scans the memories that
lost records, which `remove_lost_owners` empties."""


def remove_rows(connection: sqlite3.Connection, memories: Mapping[int, int]) -> set[int]:
    """Remove rows; return the positions of those that are gone. Every row must be indexed.

    Those without a time go before those that date them. Otherwise a trigger would mark their blocks
    as changed, and every later search by time would read them. A trigger of the file's owner may
    keep a row, whose entries then stay too.

    Args:
        memories: the key of each row's memory, by the row's position.
    """
    positions = list(memories)
    ((has_details, has_owners),) = connection.execute(_HAS).fetchall()
    keys = {position: [key] for position, key in memories.items()}
    if has_details:
        for key, position in keys_of_details(connection, positions):
            keys[position].append(key)
    undated = {one for (one,) in connection.execute(_UNDATED, (json.dumps(positions),))}
    size = _WITH_OWNERS if has_owners else len(positions)
    gone: set[int] = set()
    for part in (
        [one for one in positions if one in undated],
        [one for one in positions if one not in undated],
    ):
        for start in range(0, len(part), size):
            removed = _removed(connection, part[start : start + size])
            remove_entries(connection, [(key, one) for one in removed for key in keys[one]])
            remove_lost_owners(connection)
            gone |= removed
    return gone


def _removed(connection: sqlite3.Connection, positions: Sequence[int]) -> set[int]:
    """Remove rows; return those that are gone."""
    given = json.dumps(positions)
    gone = set(positions)
    if connection.execute(_REMOVE, (given,)).rowcount < len(gone):
        gone -= {one for (one,) in connection.execute(_THERE, (given,))}
    return gone
