"""Whose time a record has that names none: noted in a SQLite file, block by block.

Plain mem0 writes such records (without times its `add_history` stores none, and its DELETE rows had
none for long). Each has the time of its memory's record before it, which may have none either: to
look back each time would take the square of their number. So with a full block the record is noted
that each of them is dated by: the last one before it that names a time. Where there is none it is
the memory's first record: nobody knows when that was.

What is noted holds: where others remove or change such a record, triggers take back what rested on
it (migrations/sqlite). Of what is not noted the memory's records are looked through, backwards, up
to one that names its time or is noted.
"""

from typing import Final

from async_history._sqlite import times
from async_history._sqlite.index.blocks import SPANS
from async_history._sqlite.index.levels import ordered_positions

_TABLE: Final = "main.async_history_undated"


def _key(row: str) -> str:
    return f"async_history_key(CAST({row}.memory_id AS BLOB))"


def _noted(row: str) -> str:
    """Return SQL of the row that a row is noted to be dated by; NULL where nothing is noted."""
    return (
        f"(SELECT dated_by FROM {_TABLE}"
        f" WHERE position = {row}.rowid AND position <= {SPANS.through})"
    )


def noted_time(row: str) -> str:
    """Return SQL of the instant of the row that a row is noted to be dated by."""
    return (
        f"(SELECT {times.own_instant('dated')} FROM main.history AS dated"
        f" WHERE dated.rowid = {_noted(row)})"
    )


def _last_before(columns: str, row: str, place: str) -> str:
    """Return SQL value: of the row's memory, the last before a place that is dated or noted."""
    before = ordered_positions("DESC", place, key=_key(row), memory_id=f"{row}.memory_id")
    return f"""(
        SELECT {columns} FROM {before} AS place
        CROSS JOIN main.history AS earlier ON earlier.rowid = place.position
        WHERE earlier.memory_id = {row}.memory_id
            AND ({times.own_instant("earlier")} IS NOT NULL OR {_noted("earlier")} IS NOT NULL)
        LIMIT 1
    )"""


def time_before(row: str) -> str:
    """Return SQL of the instant of a row that names none; NULL where nobody knows."""
    instant = f"coalesce({times.own_instant('earlier')}, {noted_time('earlier')})"
    return (
        f"CASE WHEN {_noted(row)} IS NOT NULL THEN {noted_time(row)}"
        f" WHEN {row}.memory_id IS NOT NULL"
        f" THEN {_last_before(instant, row, f'{row}.rowid')} END"
    )


IS_BEGUN: Final = "(earliest = '' AND latest = '')"
"""SQL condition: a block's span waits for its undated records to be dated."""
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
"""Statement that notes the undated records of the blocks that are begun."""
