"""SQL conditions that the index in a SQLite file belongs to the history in it.

The index is right as long as each change fires the triggers that maintain it. So it suffices to
check that table, triggers and side tables are the ones it was built with, and that none of them
has been replaced since from a dump, a clone, a backup or another file. Counting rows proves
nothing: two different tables can have the same number.

The checks:

- `PRAGMA schema_version`, which we set to a random number, is unchanged: no table, trigger or index
  was changed. A rebuilt file has its own; VACUUM also changes it. Checked when a file is opened.
- The id of the last covered row and the table's root page are unchanged: the rows have the same
  rowids, and `history` is the same table. Checked in each statement, because it is cheap.
- Stamps are equal: random numbers in the state and in each side table, which change together. So
  all side tables are of the same state. Checked when a file is opened.
"""

from typing import Final

LOWEST_ROWID: Final = -(1 << 63)
ROWID_LIMIT: Final = 1 << 62
"""Rowids must be between this and its negative. SQLite numbers rows at random after the largest
rowid; this limit leaves enough rowids before that."""
LOWEST_ROW: Final = -ROWID_LIMIT
"""All rows' positions are above this. The position of an owner is as far below as its number."""
STAMP: Final = (1 << 62) - 1
SPANS_STAMP: Final = -(1 << 54)
CHUNKS_STAMP: Final = -(1 << 50)
"""The blocks that hold a stamp; their rowids are below all rows."""
UNDATED_STAMP: Final = -(1 << 62)
"""The position that holds a stamp, below all rows."""
STAMP_KEY: Final = -1
"""The key whose entry holds a level's stamp."""

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
        "bereft",
    )
)
"""The side tables with derived data, which can be rebuilt at any time."""
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
        "details_deleted",
        "details_renamed",
        "owner_bereft",
    )
)
"""The triggers on `history`. (Those on side tables are dropped with their tables.)"""

THROUGH_ROW: Final = (
    "(SELECT id FROM main.history WHERE rowid = state.indexed_through) IS state.through_id"
)
"""SQL condition on `state`: the last covered row is where it was."""
_THIS_TABLE: Final = f"""(
    EXISTS (
        SELECT 1 FROM main.sqlite_master AS master
        WHERE master.rowid = state.history_row AND master.rootpage = state.history_page
            AND lower(master.name) = 'history'
    )
    AND {THROUGH_ROW}
)"""
"""SQL condition on `state`: `history` is the table that it describes. A recreated table has another
row in sqlite_master or another root page; after renumbering, the last row has another rowid."""

INDEX_IS_VALID: Final = (
    f"EXISTS (SELECT 1 FROM main.async_history_state AS state WHERE {_THIS_TABLE})"
)
"""SQL condition: the index belongs to this table's rows. Each statement checks it."""

INDEXED_THROUGH: Final = f"""coalesce(
    (SELECT state.indexed_through FROM main.async_history_state AS state WHERE {_THIS_TABLE}),
    {LOWEST_ROWID}
)"""
"""SQL value: the last rowid that the index covers; before all rows if it covers none."""

_TRIGGERS: Final = (
    "FROM main.sqlite_master WHERE tbl_name = 'history' COLLATE NOCASE AND type = 'trigger'"
)
_HAS_TRIGGERS: Final = f"""(
    SELECT count(*) = {len(HISTORY_TRIGGERS)} {_TRIGGERS} AND name GLOB 'async_history_*'
)"""
HAS_ONLY_OUR_TRIGGERS: Final = f"""(
    SELECT count(*) = {len(HISTORY_TRIGGERS)}
        AND sum(name GLOB 'async_history_*') = {len(HISTORY_TRIGGERS)}
    {_TRIGGERS}
)"""
"""SQL condition: `history` has the triggers that maintain the index, and none of its owner."""

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

PRAGMA schema_version inside a statement takes longer than all other checks, so this is checked when
a file is opened."""


INDEX_IS_OURS_ALONE: Final = f"({HAS_ONLY_OUR_TRIGGERS} AND {INDEX_IS_VALID})"
"""SQL condition: the index belongs to this table's rows, and the owner has no triggers on it."""


def covers_all_but(rows: int, triggers: str = _HAS_TRIGGERS, this_table: str = _THIS_TABLE) -> str:
    """Return the SQL condition that all rows are indexed, except at most the last `rows`.

    Args:
        triggers: the condition on the triggers of `history`.
        this_table: the condition that `state` describes `history`.
    """
    return f"""({triggers} AND EXISTS (
        SELECT 1 FROM main.async_history_state AS state
        WHERE {this_table}
            AND (SELECT coalesce(max(rowid), 0) FROM main.history) - state.indexed_through
                BETWEEN 0 AND {rows}
            AND (SELECT coalesce(max(rowid), 0) FROM main.history) < {ROWID_LIMIT}
            AND NOT EXISTS (SELECT 1 FROM main.async_history_strays)
            AND NOT EXISTS (SELECT 1 FROM main.async_history_bereft)
    ))"""


def stamped(*stamps: str) -> str:
    """Return the SET clause of an UPDATE of the state that changes stamps, also in the side tables.

    Each stamp moves by the same random number as its copies, so stamps that differ stay different.
    """
    moved = ", ".join(f"{stamp} = ({stamp} + step) & {STAMP}" for stamp in stamps)
    return f"{moved}, step = random() & {STAMP}"


NOTE_REACH: Final = """
    indexed_through = coalesce((SELECT max(rowid) FROM main.history), 0),
    through_id = (SELECT id FROM main.history ORDER BY rowid DESC LIMIT 1),
    owned_through = coalesce((SELECT max(number) FROM main.async_history_owners), 0)
"""
"""The SET clause of an UPDATE of the state that marks all rows and owners as covered."""
