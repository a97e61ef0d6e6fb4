"""The tables that find records in a SQLite file, and whether they can be trusted.

What the rest of the package uses of them is named here; no other module names the tables.

- `levels`: where a memory's records are. `blocks`, `block_notes`: when changes happened, and where
  an actor's are. `undated`: whose time a record has that names none.
- `lookup`: how rows are found through them.
- `validity`: whether they are of the history that is there. `upkeep`: making and building them.
- `transaction`: writing where every record is indexed. `faults`: what a check finds.
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
    POSITIONS,
    TAIL_IS_LONG,
    Direction,
    add_functions,
    index_foreign_rows,
    memory_key,
    ordered_positions,
    place_of_given,
    remove_entries,
)
from async_history._sqlite.index.lookup import (
    HISTORY,
    THROUGH_INDEX,
    WITHOUT_INDEX,
    Lookup,
    Source,
    named,
    named_together,
)
from async_history._sqlite.index.transaction import IndexBehind, indexed_transaction
from async_history._sqlite.index.upkeep import (
    begin_statements,
    build,
    drop_statements,
    has_index,
    index_version,
    is_current,
    is_ready,
    note_copied,
    remove_obstacles,
)
from async_history._sqlite.index.validity import LOWEST_ROWID, ROWID_LIMIT, SCHEMA_UNCHANGED

KEEP_INDEX: Final = f"{MOVE_SLICES}\n{NOTE_BLOCKS}"
"""Run once on a connection that writes: its triggers keep the index while records are added."""

__all__ = [
    "ADD_ENTRY",
    "COUNT_ENTRIES",
    "HISTORY",
    "INDEX_NO_ROWS",
    "INDEX_TAIL",
    "KEEP_INDEX",
    "LOWEST_ROWID",
    "NEARLY_COMPLETE",
    "POSITIONS",
    "ROWID_LIMIT",
    "SCHEMA_UNCHANGED",
    "TAIL_IS_LONG",
    "THROUGH_INDEX",
    "WITHOUT_INDEX",
    "Direction",
    "IndexBehind",
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
    "memory_key",
    "named",
    "named_together",
    "note_copied",
    "ordered_positions",
    "place_of_given",
    "remove_entries",
    "remove_obstacles",
    "wrong_entries",
]
