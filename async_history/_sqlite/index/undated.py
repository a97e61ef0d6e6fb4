"""The time of records without one: a table says which earlier record dates each of them.

Plain mem0 writes such records: its `add_history` stores no time if it is given none, and its DELETE
rows had none in many versions. Such a record has the time of its memory's previous record, which
may have none either. Searching backwards for each of them would take quadratic time. So when a
block is full, a table gets, for each record without a time, the last earlier record of its memory
that has one. If there is none, it gets the memory's first record, whose time is unknown.

If another program removes or changes a record that dates others, triggers remove those entries
(see `schema`). For a record without an entry, the memory's earlier records are read backwards up to
one that has a time or an entry.

No trigger runs if another program's `INSERT OR REPLACE` removes a record. So an entry that names a
missing record is not used, and `remove_lost_dates` removes it.
"""

import json
import sqlite3
from collections.abc import Set
from typing import Any, Final

from async_history._sqlite import times
from async_history._sqlite.connecting.connection import fetch_rows
from async_history._sqlite.index.blocks import CHUNKS, SPANS, STAMP_BLOCKS
from async_history._sqlite.index.levels import ordered_positions
from async_history._sqlite.index.validity import UNDATED_STAMP

_TABLE: Final = "main.async_history_undated"


_IS_LOST: Final = (
    "NOT EXISTS (SELECT 1 FROM main.history AS dating WHERE dating.rowid = noted.dated_by)"
)
"""SQL condition on `noted`, an entry: the row that dates another one is gone."""


def _key(row: str) -> str:
    return f"async_history_key(CAST({row}.memory_id AS BLOB))"


def _noted(row: str) -> str:
    """Return SQL for the row that dates a row, from the table; NULL if it has no entry, or that row
    is gone."""
    return (
        f"(SELECT dated_by FROM {_TABLE} AS noted"
        f" WHERE position = {row}.rowid AND position <= {SPANS.through} AND NOT {_IS_LOST})"
    )


def noted_time(row: str) -> str:
    """Return SQL for the time of the row that dates a row, from the table."""
    return (
        f"(SELECT {times.own_instant('dated')} FROM main.history AS dated"
        f" WHERE dated.rowid = {_noted(row)})"
    )


def _last_before(columns: str, row: str, position: str) -> str:
    """Return SQL for columns of the memory's last row before a position with a time or an entry."""
    before = ordered_positions("DESC", position, key=_key(row), memory_id=f"{row}.memory_id")
    return f"""(
        SELECT {columns} FROM {before} AS entry
        CROSS JOIN main.history AS earlier ON earlier.rowid = entry.position
        WHERE earlier.memory_id = {row}.memory_id
            AND ({times.own_instant("earlier")} IS NOT NULL OR {_noted("earlier")} IS NOT NULL)
        LIMIT 1
    )"""


def time_before(row: str) -> str:
    """Return SQL for the time of a row without one; NULL if it is unknown."""
    instant = f"coalesce({times.own_instant('earlier')}, {noted_time('earlier')})"
    return (
        f"CASE WHEN {_noted(row)} IS NOT NULL THEN {noted_time(row)}"
        f" WHEN {row}.memory_id IS NOT NULL"
        f" THEN {_last_before(instant, row, f'{row}.rowid')} END"
    )


IS_BEGUN: Final = "(earliest = '' AND latest = '')"
"""SQL condition: a block's row waits until its undated records have entries."""
DATE_RECORDS: Final = f"""
INSERT OR REPLACE INTO async_history_undated (position, dated_by)
SELECT position, coalesce(
    dated_by,
    {_last_before(f"coalesce({_noted('earlier')}, earlier.rowid)", "first", "first.rowid")},
    first.rowid
)
FROM (
    SELECT position, is_undated,
           max(CASE WHEN NOT is_undated THEN position END) OVER (
               PARTITION BY memory_id ORDER BY position
           ) AS dated_by,
           min(position) OVER (PARTITION BY memory_id) AS first_of_memory
    FROM (
        SELECT rowid AS position, memory_id,
               {times.own_instant("history")} IS NULL AS is_undated
        FROM history
        WHERE memory_id IS NOT NULL
            AND rowid >= (SELECT min(block) FROM async_history_spans WHERE {IS_BEGUN})
                << {SPANS.bits}
            AND rowid < (SELECT max(block) + 1 FROM async_history_spans WHERE {IS_BEGUN})
                << {SPANS.bits}
    )
) AS seen CROSS JOIN history AS first ON first.rowid = first_of_memory
WHERE is_undated
"""
"""Statement that adds entries for the undated records of the blocks that wait for them."""

DATES_ANOTHER: Final = f"EXISTS (SELECT 1 FROM {_TABLE} WHERE dated_by = history.rowid)"
"""SQL condition: an entry says that a row of `history` dates another one. If its memory has no
record for `memories_without_entries`, then the next record is dated by it, or has a time."""
_HAS_ENTRIES: Final = f"EXISTS (SELECT 1 FROM {_TABLE} WHERE position > {UNDATED_STAMP})"
_MOST_LATER: Final = 1 << 12
"""Most later records that each call reads, in 3 ms."""
_IS_UNKNOWN: Final = f"""
SELECT EXISTS (SELECT 1 FROM {CHUNKS.table} WHERE earliest = '') OR EXISTS (
    SELECT 1 FROM {SPANS.table}
    WHERE earliest = '' AND block > {CHUNKS.through} >> {SPANS.bits}
) OR (SELECT max(rowid) FROM history) > :last + {_MOST_LATER} AND {_HAS_ENTRIES}
"""
"""Whether triggers have removed the entries of a block, or any of its rows have changed, or there
are too many later records."""
_WITHOUT_ENTRIES: Final = f"""
SELECT DISTINCT memory_id FROM history
WHERE rowid > {SPANS.through} AND {times.own_instant("history")} IS NULL
UNION SELECT memory_id FROM history WHERE rowid > :last AND {_HAS_ENTRIES}
"""


def memories_without_entries(connection: sqlite3.Connection, last: int) -> Set[Any] | None:
    """Return the memories with a record without a time and without an entry; None if unknown.

    Every row must be indexed. If other programs have changed rows, or many were added after `last`,
    it is unknown.

    Args:
        last: the last position when `remove_lost_dates` was run. If a later record has replaced
            another one of its memory, it may be one of those.
    """
    parameters = {"last": last}
    ((is_unknown,),) = fetch_rows(connection, _IS_UNKNOWN, parameters)
    if is_unknown:
        return None
    return {memory_id for (memory_id,) in fetch_rows(connection, _WITHOUT_ENTRIES, parameters)}


LOST_DATES: Final = f"""
SELECT position FROM {_TABLE} AS noted WHERE position > {UNDATED_STAMP} AND {_IS_LOST}
"""
"""SELECT of the rows without a time whose entry names a missing row."""
_REMOVE_LOST: Final = (
    *(
        f"""
        UPDATE {blocks.table} SET earliest = '', latest = '~'
        WHERE block IN (SELECT value >> {blocks.bits} FROM json_each(?))
        """
        for blocks in (SPANS, CHUNKS)
    ),
    f"DELETE FROM {_TABLE} WHERE position IN (SELECT value FROM json_each(?))",
)


def remove_lost_dates(connection: sqlite3.Connection) -> None:
    """Remove the entries that name missing rows, inside the caller's write transaction.

    As after any removal of a row that dates others, their blocks may then have any time. It takes
    0.4 to 0.8 s for a million entries.
    """
    lost = json.dumps([position for (position,) in fetch_rows(connection, LOST_DATES)])
    if lost == "[]":
        return
    for statement in _REMOVE_LOST:
        connection.execute(statement, (lost,))
    connection.execute(STAMP_BLOCKS)
