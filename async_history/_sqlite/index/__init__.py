"""The index of a SQLite file: side tables that find a memory's, an actor's and a time's records.

Other packages import only the names listed here, and no other module names the tables.

- `levels`: the positions of each memory's records. `owners`, `owner_writes`, `owner_upkeep`: the
  owners of records, and the positions of the records of each owner and cause. `row_keys`: the keys
  of a row's entries. `unindexed_tail`: indexing rows.
- `blocks`, `block_notes`: the times and actors in each block of rows. `undated`: the time of
  records without one.
- `erased`: erased names, which are checked when records are added.
- `lookup`: the SQL that finds rows through the index, or without it.
- `validity`: SQL conditions that the index belongs to the history. `upkeep`: creating and filling
  it.
- `transaction`: a transaction in which every record is indexed. `faults`: checking each entry.
"""

from typing import Final

from async_history._sqlite.index.block_notes import NOTE_BLOCKS
from async_history._sqlite.index.erased import (
    AS_NOTED,
    HAS_ERASED_MEMORY,
    LAST_NOTED,
    NONE_ERASED_SINCE,
    erased_names,
    note_erased,
)
from async_history._sqlite.index.faults import unreadable_objects, wrong_entries
from async_history._sqlite.index.levels import (
    ADD_ENTRY,
    COUNT_ENTRIES,
    HAS_ROOM_IN_TAIL,
    KEYS_BY_MEMORY,
    MOVE_SLICES,
    NEARLY_COMPLETE,
    NEARLY_COMPLETE_ALONE,
    POSITIONS,
    TAIL_IS_LONG,
    TAIL_IS_THERE,
    Direction,
    Range,
    add_functions,
    keys_by_memory,
    memory_key,
    nth_position,
    ordered_positions,
    value_key,
)
from async_history._sqlite.index.lookup import (
    HISTORY,
    THROUGH_INDEX,
    WITHOUT_INDEX,
    Lookup,
    Source,
    named,
    parameters_of_several,
    ranges_of_time,
)
from async_history._sqlite.index.owner_upkeep import (
    add_owners,
    create_missing_views,
    disown,
    erase_details,
    is_same_history,
    owners_of,
    remove_orphans,
    replace_details,
)
from async_history._sqlite.index.owner_writes import (
    ADD_DETAILS,
    ADD_KEYS,
    ADD_MORE_KEYS,
    CHECK_NO_OWNER,
    CHECK_NO_OWNER_LATER,
    GIVE_OWNER,
    GIVE_OWNER_LATER,
)
from async_history._sqlite.index.owners import (
    HAS_DETAILS,
    HAS_OWNERS,
    LAST_OWNER,
    SEPARATOR,
    StoredOwner,
    cause_key,
    cause_keys,
    has_memorys_owner,
    json_of,
    owner_entry,
    owner_number,
)
from async_history._sqlite.index.row_removal import remove_rows
from async_history._sqlite.index.transaction import IndexOutdated, indexed_transaction
from async_history._sqlite.index.undated import (
    DATES_ANOTHER,
    memories_without_entries,
    remove_lost_dates,
)
from async_history._sqlite.index.unindexed_tail import (
    INDEX_NO_ROWS,
    INDEX_TAIL,
    NOTE_INDEXED,
    index_foreign_rows,
)
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
from async_history._sqlite.index.validity import (
    INDEX_IS_OURS_ALONE,
    LOWEST_ROWID,
    ROWID_LIMIT,
    SCHEMA_UNCHANGED,
)

KEEP_INDEX: Final = f"{MOVE_SLICES}\n{NOTE_BLOCKS}"
"""Run once on a writing connection: creates triggers that update the index as records are added."""

__all__ = [
    "ADD_DETAILS",
    "ADD_ENTRY",
    "ADD_KEYS",
    "ADD_MORE_KEYS",
    "AS_NOTED",
    "CHECK_NO_OWNER",
    "CHECK_NO_OWNER_LATER",
    "COUNT_ENTRIES",
    "DATES_ANOTHER",
    "GIVE_OWNER",
    "GIVE_OWNER_LATER",
    "HAS_DETAILS",
    "HAS_ERASED_MEMORY",
    "HAS_OWNERS",
    "HAS_ROOM_IN_TAIL",
    "HISTORY",
    "INDEX_IS_OURS_ALONE",
    "INDEX_NO_ROWS",
    "INDEX_TAIL",
    "KEEP_INDEX",
    "KEYS_BY_MEMORY",
    "LAST_NOTED",
    "LAST_OWNER",
    "LOWEST_ROWID",
    "NEARLY_COMPLETE",
    "NEARLY_COMPLETE_ALONE",
    "NONE_ERASED_SINCE",
    "NOTE_INDEXED",
    "POSITIONS",
    "ROWID_LIMIT",
    "SCHEMA_UNCHANGED",
    "SEPARATOR",
    "TAIL_IS_LONG",
    "TAIL_IS_THERE",
    "THROUGH_INDEX",
    "WITHOUT_INDEX",
    "Direction",
    "IndexOutdated",
    "Lookup",
    "Range",
    "Source",
    "StoredOwner",
    "add_functions",
    "add_owners",
    "begin_statements",
    "build",
    "cause_key",
    "cause_keys",
    "create_missing_views",
    "disown",
    "drop_statements",
    "erase_details",
    "erased_names",
    "has_index",
    "has_memorys_owner",
    "index_foreign_rows",
    "index_version",
    "indexed_transaction",
    "is_current",
    "is_ready",
    "is_same_history",
    "json_of",
    "keys_by_memory",
    "mark_copied",
    "memories_without_entries",
    "memory_key",
    "named",
    "note_erased",
    "nth_position",
    "ordered_positions",
    "owner_entry",
    "owner_number",
    "owners_of",
    "parameters_of_several",
    "ranges_of_time",
    "remove_lost_dates",
    "remove_obstacles",
    "remove_orphans",
    "remove_rows",
    "replace_details",
    "unreadable_objects",
    "value_key",
    "wrong_entries",
]
