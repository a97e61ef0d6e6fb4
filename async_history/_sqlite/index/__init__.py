"""The index of a SQLite file: side tables that find a memory's, an actor's and a time's records.

Other packages import only the names listed here, and no other module names the tables.

- `levels`: the positions of each memory's records. `blocks`, `block_notes`: the times and actors in
  each block of rows. `undated`: the time of records that have none of their own.
- `lookup`: the SQL that finds rows through the index, or without it.
- `validity`: SQL conditions that the index belongs to the history. `upkeep`: making and building
  it.
- `transaction`: a transaction in which every record is indexed. `faults`: checking each entry.
"""

from typing import Final

from async_history._sqlite.index.block_notes import NOTE_BLOCKS
from async_history._sqlite.index.faults import wrong_entries
from async_history._sqlite.index.levels import (
    ADD_ENTRY,
    COUNT_ENTRIES,
    INDEX_NO_ROWS,
    INDEX_TAIL,
    MOVE_SLICES,
    NEARLY_COMPLETE,
    NEARLY_COMPLETE_ALONE,
    POSITIONS,
    TAIL_IS_LONG,
    Direction,
    add_functions,
    index_foreign_rows,
    memory_key,
    nth_position,
    ordered_positions,
    remove_entries,
)
from async_history._sqlite.index.lookup import (
    HISTORY,
    THROUGH_INDEX,
    WITHOUT_INDEX,
    Lookup,
    Source,
    named,
    parameters_of_several,
)
from async_history._sqlite.index.transaction import IndexOutdated, indexed_transaction
from async_history._sqlite.index.upkeep import (
    begin_statements,
    build,
    drop_statements,
    has_index,
    index_version,
    is_current,
    is_ready,
    mark_copied,
    remove_obstacles,
)
from async_history._sqlite.index.validity import LOWEST_ROWID, ROWID_LIMIT, SCHEMA_UNCHANGED

KEEP_INDEX: Final = f"{MOVE_SLICES}\n{NOTE_BLOCKS}"
"""Run once on a writing connection: creates triggers that update the index as records are added."""

__all__ = [
    "ADD_ENTRY",
    "COUNT_ENTRIES",
    "HISTORY",
    "INDEX_NO_ROWS",
    "INDEX_TAIL",
    "KEEP_INDEX",
    "LOWEST_ROWID",
    "NEARLY_COMPLETE",
    "NEARLY_COMPLETE_ALONE",
    "POSITIONS",
    "ROWID_LIMIT",
    "SCHEMA_UNCHANGED",
    "TAIL_IS_LONG",
    "THROUGH_INDEX",
    "WITHOUT_INDEX",
    "Direction",
    "IndexOutdated",
    "Lookup",
    "Source",
    "add_functions",
    "begin_statements",
    "build",
    "drop_statements",
    "has_index",
    "index_foreign_rows",
    "index_version",
    "indexed_transaction",
    "is_current",
    "is_ready",
    "mark_copied",
    "memory_key",
    "named",
    "nth_position",
    "ordered_positions",
    "parameters_of_several",
    "remove_entries",
    "remove_obstacles",
    "wrong_entries",
]
