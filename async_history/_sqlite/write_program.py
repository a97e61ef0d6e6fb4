"""The temporary views through which records are written: their triggers write all rows.

There are two kinds of views. One is for records with mem0's columns only, in a store where no
memory has an owner. The others also take owners, contexts and causes.
"""

from collections.abc import Mapping
from typing import Final

from async_history._core.records.records import COLUMN_LIST, COLUMNS
from async_history._sqlite.index import (
    ADD_DETAILS,
    ADD_ENTRY,
    ADD_KEYS,
    ADD_MORE_KEYS,
    CHECK_NO_OWNER,
    CHECK_NO_OWNER_LATER,
    GIVE_OWNER,
    GIVE_OWNER_LATER,
    INDEX_TAIL,
    KEEP_INDEX,
    NOTE_INDEXED,
    TAIL_IS_LONG,
    TAIL_IS_THERE,
)
from async_history._sqlite.rows import NOT_YET

_INSERT_RECORD: Final = f"""
    INSERT OR ABORT INTO history ({COLUMN_LIST})
    VALUES ({", ".join(f"new.{name}" for name in COLUMNS)});
"""
ADD, GIVE, CHECK, MORE_KEYS, BEGIN, END = range(6)
"""The purpose of a row of a view with details: `kind`, its last column. In order: add a record,
give a memory its owner, check that a memory has none, add more keys of the record before, begin
and end the statement."""
KEYS: Final = 3
"""The number of columns of a view with details for keys of owners and causes."""
DETAILED_WIDTH: Final = len(COLUMNS) + 6 + KEYS
"""The number of columns of a view with details."""
PLAIN_VIEW: Final = "async_history_new"
"""The view for records with mem0's columns only."""
DETAILED_VIEW: Final = "async_history_new_detailed"
"""The view for records with details, written with their index entries."""
FEW_DETAILED_VIEW: Final = "async_history_new_few_detailed"
"""The view for records with details, indexed later."""
_DETAILED_COLUMNS: Final = f"""{COLUMN_LIST}, 0 AS memory, 0 AS number, '' AS owner, '' AS context,
    '' AS cause, 0 AS key1, 0 AS key2, 0 AS key3, 0 AS kind"""


def _triggers(view: str, bodies: Mapping[str, str]) -> str:
    """Return statements that create a view with details, and its triggers, given by condition."""
    triggers = (
        f"CREATE TEMP TRIGGER {view}_{number} INSTEAD OF INSERT ON {view}\n"
        f"WHEN {condition} BEGIN {body} END;\n"
        for number, (condition, body) in enumerate(bodies.items())
    )
    return f"""
DROP VIEW IF EXISTS temp.{view};
CREATE TEMP VIEW {view} AS SELECT {_DETAILED_COLUMNS} FROM main.history;
{"".join(triggers)}"""


_DETAILED_PROGRAM: Final = _triggers(
    DETAILED_VIEW,
    {
        f"new.kind = {ADD}": f"{_INSERT_RECORD}{ADD_ENTRY}{ADD_KEYS}{ADD_DETAILS}",
        f"new.kind = {GIVE}": GIVE_OWNER,
        f"new.kind = {CHECK}": CHECK_NO_OWNER,
        f"new.kind = {MORE_KEYS}": ADD_MORE_KEYS,
        f"new.kind = {BEGIN} AND {TAIL_IS_THERE}": INDEX_TAIL.format(but="0"),
        f"new.kind = {END}": NOTE_INDEXED,
    },
)
_FEW_DETAILED_PROGRAM: Final = _triggers(
    FEW_DETAILED_VIEW,
    {
        f"new.kind = {ADD}": f"{_INSERT_RECORD}{ADD_DETAILS}",
        f"new.kind = {GIVE}": GIVE_OWNER_LATER,
        f"new.kind = {CHECK}": CHECK_NO_OWNER_LATER,
        f"new.kind = {END} AND {TAIL_IS_LONG}": INDEX_TAIL.format(but="0"),
    },
)
WRITE_PROGRAM: Final = f"""
DROP VIEW IF EXISTS temp.{PLAIN_VIEW};
CREATE TEMP VIEW {PLAIN_VIEW} AS SELECT {COLUMN_LIST}, 0 AS memory FROM main.history;
CREATE TEMP TRIGGER async_history_write INSTEAD OF INSERT ON {PLAIN_VIEW}
WHEN new.id IS NOT NULL AND new.memory <> {NOT_YET}
BEGIN {_INSERT_RECORD}{ADD_ENTRY}
END;
CREATE TEMP TRIGGER async_history_write_few INSTEAD OF INSERT ON {PLAIN_VIEW}
WHEN new.id IS NOT NULL AND new.memory = {NOT_YET}
BEGIN {_INSERT_RECORD}
END;
CREATE TEMP TRIGGER async_history_written INSTEAD OF INSERT ON {PLAIN_VIEW}
WHEN new.id IS NULL AND (new.memory > 0 OR {TAIL_IS_LONG})
BEGIN {INDEX_TAIL.format(but="new.memory")}
END;
{_DETAILED_PROGRAM}{_FEW_DETAILED_PROGRAM}{KEEP_INDEX}
"""
"""Creates the views and triggers that write records. To be run on each writing connection, and
again after it recreates our tables. They are temporary: the file does not store them.

An insert into a view writes a record, with its index entries or to be indexed later. A row without
an id ends a statement: its `memory` is the number of records with index entries. The views with
details have separate kinds of rows for what few records need, so that others do not pay for it.
"""

_ATTEST_RECORDS: Final = """
    INSERT INTO async_history_ledger (kind, size, hashes, is_keyed, names)
    SELECT 'record', new.is_deleted, new.old_memory, new.actor_id, new.new_memory
    WHERE new.old_memory IS NOT NULL;
"""
_ATTEST_OWNERS: Final = """
    INSERT INTO async_history_ledger (kind, size, hashes, is_keyed, names)
    SELECT 'owner', new.event, new.created_at, 0, new.updated_at WHERE new.event IS NOT NULL;
"""
ATTEST_PROGRAM: Final = f"""
CREATE TEMP TRIGGER async_history_attest INSTEAD OF INSERT ON {PLAIN_VIEW}
WHEN new.id IS NULL AND new.old_memory IS NOT NULL BEGIN {_ATTEST_RECORDS} END;
CREATE TEMP TRIGGER async_history_attest_detailed INSTEAD OF INSERT ON {DETAILED_VIEW}
WHEN new.kind = {END} BEGIN {_ATTEST_OWNERS}{_ATTEST_RECORDS} END;
CREATE TEMP TRIGGER async_history_attest_few INSTEAD OF INSERT ON {FEW_DETAILED_VIEW}
WHEN new.kind = {END} BEGIN {_ATTEST_OWNERS}{_ATTEST_RECORDS} END;
"""
"""Creates the triggers that write the leaves of a statement, if the file has a ledger. To be run
after `WRITE_PROGRAM`. The last row of a statement contains the leaves."""
