"""Whether the index in a SQLite file is of the history that is there: as SQL conditions.

The index is right as long as every change passes the triggers that keep it. So it is enough to know
that table, triggers and side tables are those that were there when it was built, and that none of
them came from elsewhere since: out of a dump, a clone, a backup, another file. Nobody has to be
asked whether rows were counted: a number that counting can reach is no proof.

What is looked at, and what it tells:

- `PRAGMA schema_version`, which we set to a random number: no table, trigger or index was changed.
  A file that was rebuilt counts its own; VACUUM, too, adds one. Looked at when a file is opened.
- The id of the last row that is covered, and where SQLite keeps the table: the rows were not given
  other rowids, and `history` is no other table. Looked at in every statement: this is cheap.
- Stamps, random numbers in the state and in each side table, which change together: the side
  tables belong to each other, each as it was last written. Looked at when a file is opened.
"""

from typing import Final

LOWEST_ROWID: Final = -(1 << 63)
ROWID_LIMIT: Final = 1 << 62
"""Rows lie below it, and above its negative. At the end of what SQLite can count it numbers rows at
random; so far from it there is room for all that will ever come."""
STAMP: Final = (1 << 62) - 1
SPANS_STAMP: Final = -(1 << 54)
CHUNKS_STAMP: Final = -(1 << 50)
"""The blocks that hold a stamp: those of the lowest rowids."""
UNDATED_STAMP: Final = -(1 << 62)
"""The position that holds one: below all rows."""
STAMP_KEY: Final = -1
"""The memory whose entry holds a level's stamp."""

INDEX_TABLES: Final = tuple(
    f"async_history_{name}"
    for name in (
        "state",
        "recent",
        "middle",
        "settled",
        "strays",
        "spans",
        "chunks",
        "actors",
        "undated",
    )
)
"""The side tables that are derived: they can be made anew at any time."""
HISTORY_TRIGGERS: Final = tuple(
    f"async_history_{name}"
    for name in (
        "last_deleted",
        "row_moved",
        "last_renamed",
        "row_between",
        "memory_renamed",
        "time_changed",
        "actor_deleted",
        "actor_moved",
        "actor_changed",
        "dated_by_deleted",
        "dated_by_changed",
        "dated_by_moved",
    )
)
"""The triggers that stand on `history`. (Those on side tables go and come with these.)"""

_THIS_TABLE: Final = """(
    EXISTS (
        SELECT 1 FROM main.sqlite_master AS master
        WHERE master.rowid = state.history_row AND master.rootpage = state.history_page
            AND lower(master.name) = 'history'
    )
    AND (SELECT id FROM main.history WHERE rowid = state.indexed_through) IS state.through_id
)"""
"""SQL condition on `state`. A table that was made anew stands elsewhere in sqlite_master, or its
page was free before; where rows were numbered anew, the last one has another rowid."""

INDEX_IS_VALID: Final = (
    f"EXISTS (SELECT 1 FROM main.async_history_state AS state WHERE {_THIS_TABLE})"
)
"""SQL condition: the index is of the rows of this table. Each statement asks."""

INDEXED_THROUGH: Final = f"""coalesce(
    (SELECT state.indexed_through FROM main.async_history_state AS state WHERE {_THIS_TABLE}),
    {LOWEST_ROWID}
)"""
"""SQL value: the last row that the index covers, before all rows where it covers none."""

_HAS_TRIGGERS: Final = f"""(
    SELECT count(*) = {len(HISTORY_TRIGGERS)} FROM main.sqlite_master
    WHERE type = 'trigger' AND lower(tbl_name) = 'history' AND name GLOB 'async_history_*'
)"""

_STAMPS: Final = f"""(
    (SELECT position FROM main.async_history_recent WHERE memory = {STAMP_KEY})
        IS state.recent_stamp
    AND (SELECT position FROM main.async_history_middle WHERE memory = {STAMP_KEY})
        IS state.lower_stamp
    AND (SELECT position FROM main.async_history_settled WHERE memory = {STAMP_KEY})
        IS state.lower_stamp
    AND (SELECT earliest FROM main.async_history_spans WHERE block = {SPANS_STAMP})
        IS '~' || state.block_stamp
    AND (SELECT earliest FROM main.async_history_chunks WHERE block = {CHUNKS_STAMP})
        IS '~' || state.block_stamp
    AND (SELECT position FROM main.async_history_actors WHERE block = {CHUNKS_STAMP})
        IS state.block_stamp
    AND (SELECT dated_by FROM main.async_history_undated WHERE position = {UNDATED_STAMP})
        IS state.block_stamp
)"""

_NO_LONE_ROWS: Final = f"""(
    coalesce((SELECT max(rowid) FROM main.history), 0) < {ROWID_LIMIT}
    AND coalesce((SELECT min(rowid) FROM main.history), 0) > -{ROWID_LIMIT}
)"""

SCHEMA_UNCHANGED: Final = f"""(
    {_HAS_TRIGGERS} AND {_NO_LONE_ROWS} AND EXISTS (
        SELECT 1 FROM main.async_history_state AS state
        WHERE state.schema_version = (SELECT schema_version FROM pragma_schema_version)
            AND {_THIS_TABLE} AND {_STAMPS}
    )
)"""
"""SQL condition: file, table, triggers and side tables are those that the index was built with.

PRAGMA schema_version inside a statement takes longer than all the rest, so this is asked when a
file is opened."""


def covers_all_but(rows: int) -> str:
    """Return the SQL condition: all rows are indexed, but for so many of the last ones at most."""
    return f"""({_HAS_TRIGGERS} AND EXISTS (
        SELECT 1 FROM main.async_history_state AS state
        WHERE {_THIS_TABLE}
            AND (SELECT coalesce(max(rowid), 0) FROM main.history) - state.indexed_through
                BETWEEN 0 AND {rows}
            AND (SELECT coalesce(max(rowid), 0) FROM main.history) < {ROWID_LIMIT}
            AND NOT EXISTS (SELECT 1 FROM main.async_history_strays)
    ))"""


def stamped(*stamps: str) -> str:
    """Return what an UPDATE of the state sets to change stamps, in the tables that have them, too.

    Each is moved by the same random number as its copies, so those that differ go on differing.
    """
    moved = ", ".join(f"{stamp} = ({stamp} + step) & {STAMP}" for stamp in stamps)
    return f"{moved}, step = random() & {STAMP}"


NOTE_REACH: Final = """
    indexed_through = coalesce((SELECT max(rowid) FROM main.history), 0),
    through_id = (SELECT id FROM main.history ORDER BY rowid DESC LIMIT 1)
"""
"""What an UPDATE of the state sets where all rows are covered."""
