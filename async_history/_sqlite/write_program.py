"""The statements that add records: each inserts into a view, whose triggers write all rows.

There are two kinds of views. One is for records with mem0's columns only, in a store where no
memory has an owner. The other also takes owners, contexts and causes. See `commit` for why a batch
is a single statement.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from async_history._core.json_object import json_text
from async_history._core.ledger.leaves import Bundle, owner_bundle
from async_history._core.owners import Owner
from async_history._core.records import (
    CAUSE,
    COLUMN_LIST,
    COLUMNS,
    CONTEXT,
    MEMORY_ID,
    Fields,
)
from async_history._core.wakeups import WAKEUP_BATCH_MIN
from async_history._sqlite.index import (
    ADD_DETAILS,
    ADD_ENTRY,
    ADD_KEYS,
    ADD_MORE_KEYS,
    AS_NOTED,
    CHECK_NO_OWNER,
    CHECK_NO_OWNER_LATER,
    GIVE_OWNER,
    GIVE_OWNER_LATER,
    HAS_OWNERS,
    INDEX_TAIL,
    KEEP_INDEX,
    NEARLY_COMPLETE_ALONE,
    NONE_ERASED_SINCE,
    NOTE_INDEXED,
    TAIL_IS_LONG,
    TAIL_IS_THERE,
    StoredOwner,
    cause_keys,
    memory_key,
    owner_entry,
)
from async_history._sqlite.key_statements import checking_keys, key_parameters
from async_history._sqlite.rows import NOT_YET, NULL, ROW_WIDTH, parameters, rows_sql

_INSERT_RECORD: Final = f"""
    INSERT OR ABORT INTO history ({COLUMN_LIST})
    VALUES ({", ".join(f"new.{name}" for name in COLUMNS)});
"""
_ADD, _GIVE_OWNER, _CHECK_NO_OWNER, _ADD_MORE_KEYS, _BEGIN, _END = range(6)
"""The purpose of a row of a view with details: `kind`, its last column."""
_KEYS: Final = 3
_DETAILED_WIDTH: Final = len(COLUMNS) + 6 + _KEYS
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
    "async_history_new_detailed",
    {
        f"new.kind = {_ADD}": f"{_INSERT_RECORD}{ADD_ENTRY}{ADD_KEYS}{ADD_DETAILS}",
        f"new.kind = {_GIVE_OWNER}": GIVE_OWNER,
        f"new.kind = {_CHECK_NO_OWNER}": CHECK_NO_OWNER,
        f"new.kind = {_ADD_MORE_KEYS}": ADD_MORE_KEYS,
        f"new.kind = {_BEGIN} AND {TAIL_IS_THERE}": INDEX_TAIL.format(but="0"),
        f"new.kind = {_END}": NOTE_INDEXED,
    },
)
_FEW_DETAILED_PROGRAM: Final = _triggers(
    "async_history_new_few_detailed",
    {
        f"new.kind = {_ADD}": f"{_INSERT_RECORD}{ADD_DETAILS}",
        f"new.kind = {_GIVE_OWNER}": GIVE_OWNER_LATER,
        f"new.kind = {_CHECK_NO_OWNER}": CHECK_NO_OWNER_LATER,
        f"new.kind = {_END} AND {TAIL_IS_LONG}": INDEX_TAIL.format(but="0"),
    },
)
WRITE_PROGRAM: Final = f"""
DROP VIEW IF EXISTS temp.async_history_new;
CREATE TEMP VIEW async_history_new AS SELECT {COLUMN_LIST}, 0 AS memory FROM main.history;
CREATE TEMP TRIGGER async_history_write INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NOT NULL AND new.memory <> {NOT_YET}
BEGIN {_INSERT_RECORD}{ADD_ENTRY}
END;
CREATE TEMP TRIGGER async_history_write_few INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NOT NULL AND new.memory = {NOT_YET}
BEGIN {_INSERT_RECORD}
END;
CREATE TEMP TRIGGER async_history_written INSTEAD OF INSERT ON async_history_new
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
CREATE TEMP TRIGGER async_history_attest INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NULL AND new.old_memory IS NOT NULL BEGIN {_ATTEST_RECORDS} END;
CREATE TEMP TRIGGER async_history_attest_detailed INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_END} BEGIN {_ATTEST_OWNERS}{_ATTEST_RECORDS} END;
CREATE TEMP TRIGGER async_history_attest_few INSTEAD OF INSERT ON async_history_new_few_detailed
WHEN new.kind = {_END} BEGIN {_ATTEST_OWNERS}{_ATTEST_RECORDS} END;
"""
"""Creates the triggers that write the leaves of a statement, if the file has a ledger. To be run
after `WRITE_PROGRAM`. The last row of a statement contains the leaves."""

STATEMENT_ROWS: Final = (1, 8, 32, 128, 512)
"""Records per statement. There are few sizes, so that each stays prepared; padding fills the
rest."""
_FEW: Final = 8
"""Up to this many records in a statement are indexed later, together with those that follow."""


HAS_OTHER_TRIGGERS: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'
        AND name NOT GLOB 'async_history_*'
)"""
"""SQL condition: the file's owner has triggers on `history`, which may skip, change or add rows."""


def _add_sql(view: str, width: int, rows: int, condition: str, *, begins: bool) -> str:
    """Return the statement that inserts rows into a view, if a condition holds.

    SQLite calls `async_history_begun`, which is deterministic and has no arguments, once per
    statement. Small batches do without it: calling it means waiting for the GIL.
    """
    sql = f"""
        INSERT INTO {view} SELECT * FROM ({rows_sql(width, rows)})
        WHERE column{width} IS NOT NULL AND {condition}
    """
    return f"{sql} AND async_history_begun()" if begins else sql


_PLAIN: Final = {
    rows: _add_sql(
        "async_history_new",
        ROW_WIDTH,
        rows + 1,
        f"{NEARLY_COMPLETE_ALONE} AND NOT {HAS_OWNERS} AND {NONE_ERASED_SINCE}",
        begins=rows >= WAKEUP_BATCH_MIN,
    )
    for rows in STATEMENT_ROWS
}
"""Statements by their number of records."""
_DETAILED_ROWS: Final = (3, 6, 18, 34, 66, 130, 258, 514, 1_026, 2_050)
"""Rows of a statement with details: its records and owners, and its first and last row."""
_DETAILED: Final = {
    (is_indexed, may_have_owners, rows): _add_sql(
        "async_history_new_detailed" if is_indexed else "async_history_new_few_detailed",
        _DETAILED_WIDTH,
        rows,
        f"{NEARLY_COMPLETE_ALONE} AND {AS_NOTED}"
        if may_have_owners
        else f"{NEARLY_COMPLETE_ALONE} AND {AS_NOTED} AND NOT {HAS_OWNERS}",
        begins=rows >= WAKEUP_BATCH_MIN,
    )
    for is_indexed in (True, False)
    for may_have_owners in (True, False)
    for rows in _DETAILED_ROWS
}


_ROWS_A_RECORD: Final = 4
"""The most rows of a record with details: the record, its memory's owner, and two for more keys."""
_OTHER_PARAMETERS: Final = 4


def most_with_details(connection: sqlite3.Connection) -> int:
    """Return the most records with details that fit in one statement.

    SQLite allows 32,766 parameters; some builds, such as Debian's, allow more.
    """
    limit = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    rows = max(n for n in _DETAILED_ROWS if n * _DETAILED_WIDTH + _OTHER_PARAMETERS <= limit)
    return (rows - 2) // _ROWS_A_RECORD


class Statement(NamedTuple):
    """A statement and its parameters."""

    sql: str
    parameters: Sequence[Any]

    def checking(self, keys: Sequence[str]) -> "Statement":
        """Return the statement that adds its records only if these keys are usable."""
        if not keys:
            return self
        return Statement(checking_keys(self.sql), (*self.parameters, *key_parameters(keys)))


class Noted(NamedTuple):
    """The state of erased names that records with mem0's columns only assume.

    Attributes:
        last: the last number of an erased name, which must be unchanged.
        begun: when the earliest call of a record may have begun, in microseconds since 1970. It
            must be after all erasures of names.
    """

    last: int = 0
    begun: int = 1 << 62


_NONE_GIVEN: Final[Mapping[str, StoredOwner]] = {}


class ExpectedOwners(NamedTuple):
    """The state of owners and erased names that a statement's records assume.

    Attributes:
        owners: the owner of each record's memory, as it is or as a record here gives it first.
        new: the memories that get their owner here.
        without: the memories that must have no owner; None if no memory in the store has one.
        noted: the last number of an erased name, which must be unchanged.
        begun: when the earliest call of a record may have begun, in microseconds since 1970. It
            must be after all erasures of names.
        given: the owners that memories get here.
        is_complete: whether each record itself contains the whole owner of its memory.

    `add_statement` removes from the two sets what its statement writes and checks.
    """

    owners: Sequence[StoredOwner | None]
    new: set[str]
    without: set[str] | None
    noted: int
    begun: int = 1 << 62
    given: Mapping[str, StoredOwner] = _NONE_GIVEN
    is_complete: bool = True

    def part(self, start: int, records: Sequence[Fields]) -> "ExpectedOwners":
        """Return the part for these records, which begin at `start`."""
        return self._replace(owners=self.owners[start : start + len(records)])


_NOTHING: Final = Noted()


def add_statement(
    records: Iterable[Fields],
    count: int,
    expected: ExpectedOwners | None,
    *,
    noted: Noted = _NOTHING,
    has_triggers: bool = False,
    leaves: Bundle | None = None,
) -> Statement:
    """Return the statement that adds records.

    Args:
        count: the number of records, at most the last of `STATEMENT_ROWS`.
        expected: None if no memory in the store has an owner, and no record has details.
        noted: used instead, if `expected` is None.
        has_triggers: whether the file's owner has triggers on the table.
        leaves: the leaves of the records, for the file's ledger; None if it has none.
    """
    if expected is None:
        return _plain_statement(records, count, noted, leaves, has_triggers=has_triggers)
    is_indexed = count > _FEW and not has_triggers
    values = _detailed_parameters(records, expected, leaves, is_indexed=is_indexed)
    width = _DETAILED_WIDTH
    needed = len(values) // width
    rows = _DETAILED_ROWS[bisect_left(_DETAILED_ROWS, needed)]
    values += (NULL,) * (width * (rows - needed))
    if has_triggers:
        view = "async_history_new_few_detailed"
        return Statement(_add_sql(view, width, rows, "true", begins=False), values)
    values += (expected.noted, expected.begun)
    return Statement(_DETAILED[is_indexed, expected.without is not None, rows], values)


def _plain_statement(
    records: Iterable[Fields],
    count: int,
    noted: Noted,
    leaves: Bundle | None,
    *,
    has_triggers: bool,
) -> Statement:
    is_indexed = count > _FEW and not has_triggers
    rows = STATEMENT_ROWS[bisect_left(STATEMENT_ROWS, count)]
    values: list[Any] = []
    for record in records:
        values += parameters(record)
        values.append(memory_key(record[MEMORY_ID]) if is_indexed else NOT_YET)
    values += (*_leaf_columns(leaves, None), count if is_indexed else 0)
    values += (NULL,) * (ROW_WIDTH * (rows - count))
    if has_triggers:
        return Statement(
            _add_sql("async_history_new", ROW_WIDTH, rows + 1, "true", begins=False), values
        )
    values += noted
    return Statement(_PLAIN[rows], values)


_NO_COLUMNS: Final = (NULL,) * len(COLUMNS)


def _leaf_columns(records: Bundle | None, owners: Bundle | None) -> Sequence[Any]:
    """Return the columns of the last row of a statement: its leaves, if there are any."""
    if records is None:
        return _NO_COLUMNS
    own = (NULL, NULL, NULL) if owners is None else (owners.size, owners.hashes, owners.names)
    known = (records.size, int(records.is_keyed), NULL)
    return NULL, NULL, records.hashes, records.names, *own, *known


_NO_KEYS: Final = tuple((NULL,) * (_KEYS - given) for given in range(_KEYS + 1))
_ENDS: Final = tuple((*missing, _ADD) for missing in _NO_KEYS)
"""The last parameters of a record, by the number of its keys."""


def _row(
    kind: int,
    memory_id: str | float = NULL,
    memory: float = NULL,
    number: float = NULL,
    owner: str | float | None = NULL,
) -> Sequence[Any]:
    """Return the parameters of a row that is not a record."""
    columns = (NULL, memory_id, *_NO_COLUMNS[2:])
    return *columns, memory, number, owner, NULL, NULL, *_NO_KEYS[0], kind


_BEGIN_ROW: Final = _row(_BEGIN)
_END_ROW: Final = _row(_END)


def _detailed_parameters(
    records: Iterable[Fields],
    expected: ExpectedOwners,
    leaves: Bundle | None,
    *,
    is_indexed: bool,
) -> list[Any]:
    """Return the parameters of all rows, in the order of the view's columns."""
    given: dict[str, Owner] = {}
    values: list[Any] = [*_BEGIN_ROW] if is_indexed else []
    new, unseen = expected.new, expected.without or set()
    for record, stored in zip(records, expected.owners, strict=True):
        memory_id = record[MEMORY_ID]
        memory = memory_key(memory_id)
        number: float = NULL
        owner: str | float | None = NULL
        keys: tuple[int, ...] = ()
        if stored is not None:
            number = stored.number
            owner, keys = owner_entry(stored.owner)
            if memory_id in new:
                new.remove(memory_id)
                given[memory_id] = stored.owner
                values += _row(_GIVE_OWNER, memory_id, memory, number, owner)
        elif memory_id in unseen:
            unseen.remove(memory_id)
            values += _row(_CHECK_NO_OWNER, memory_id, memory)
        context: str | float | None = NULL
        cause: str | float | None = NULL
        if record[CONTEXT] is not None:
            context = json_text(record[CONTEXT])
        if record[CAUSE] is not None:
            cause = json_text(record[CAUSE])
            if is_indexed:
                keys = (*keys, *cause_keys(record[CAUSE]))
        if not is_indexed:
            keys = ()
        values += parameters(record)
        values += (memory, number, owner, context, cause, *keys[:_KEYS])
        values += _ENDS[len(keys)] if len(keys) < _KEYS else _ENDS[_KEYS]
        for start in range(_KEYS, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            values += (*_NO_COLUMNS, *(NULL,) * 5, *part, *_NO_KEYS[len(part)], _ADD_MORE_KEYS)
    owners = owner_bundle(given) if leaves is not None and given else None
    values += (*_leaf_columns(leaves, owners), *_END_ROW[len(COLUMNS) :])
    return values
