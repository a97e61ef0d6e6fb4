"""The statements that add records: each inserts into a view, whose triggers write all that belongs.

There are two views. One is for records of mem0's columns alone, in a store where no memory has an
owner. The other also takes owners, contexts and causes. See `commit` for why a batch is a single
statement.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from async_history._core.json_object import json_text
from async_history._core.owners import Owner
from async_history._core.records import COLUMN_LIST, COLUMNS, HistoryRecord
from async_history._core.wakeups import WAKEUP_BATCH_MIN
from async_history._sqlite.index import (
    ADD_DETAILS,
    ADD_DETAILS_LATER,
    ADD_ENTRY,
    ADD_OWNER,
    ADD_OWNER_LATER,
    EXPECTS_KNOWN,
    EXPECTS_NONE,
    HAS_OWNERS,
    INDEX_TAIL,
    KEEP_INDEX,
    NEARLY_COMPLETE_ALONE,
    NOTE_INDEXED,
    TAIL_IS_LONG,
    TAIL_IS_THERE,
    cause_keys,
    memory_key,
    owner_entry,
)
from async_history._sqlite.rows import NOT_YET, NULL, ROW_WIDTH, columns_as_parameters, parameters

_INSERT_RECORD: Final = f"""
    INSERT OR ABORT INTO history ({COLUMN_LIST})
    VALUES ({", ".join(f"new.{name}" for name in COLUMNS)});
"""
_WRITE, _WRITE_LATER, _BEGIN, _END = range(4)
"""What a row of `async_history_new_detailed` is: `kind`, its last column."""
_DETAILED_WIDTH: Final = len(COLUMNS) + 10
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
DROP VIEW IF EXISTS temp.async_history_new_detailed;
CREATE TEMP VIEW async_history_new_detailed AS
SELECT {COLUMN_LIST}, 0 AS memory, '' AS owner, 0 AS expects, '' AS context, '' AS cause,
       0 AS key1, 0 AS key2, 0 AS key3, '' AS more, 0 AS kind
FROM main.history;
CREATE TEMP TRIGGER async_history_write_detailed INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_WRITE}
BEGIN {ADD_OWNER}{_INSERT_RECORD}{ADD_ENTRY}{ADD_DETAILS}
END;
CREATE TEMP TRIGGER async_history_write_few_detailed
INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_WRITE_LATER}
BEGIN {ADD_OWNER_LATER}{_INSERT_RECORD}{ADD_DETAILS_LATER}
END;
CREATE TEMP TRIGGER async_history_begun_detailed INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_BEGIN} AND {TAIL_IS_THERE}
BEGIN {INDEX_TAIL.format(but="0")}
END;
CREATE TEMP TRIGGER async_history_written_detailed INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_END} AND new.memory > 0
BEGIN {NOTE_INDEXED}
END;
CREATE TEMP TRIGGER async_history_written_few_detailed
INSTEAD OF INSERT ON async_history_new_detailed
WHEN new.kind = {_END} AND new.memory = 0 AND {TAIL_IS_LONG}
BEGIN {INDEX_TAIL.format(but="0")}
END;
{KEEP_INDEX}
"""
"""Creates the views and triggers that write records. To be run on each writing connection, and
again after it recreates our tables. They are temporary: the file does not store them.

An insert into a view writes a record, with its index entries or to be indexed later. A row without
an id begins or ends a statement: the last one's `memory` is the number of its records that have
index entries.
"""

STATEMENT_ROWS: Final = (1, 8, 32, 128, 512)
"""Records per statement. There are few sizes, so that each stays prepared; padding fills the
rest."""
_FEW: Final = 8
"""Up to this many records in a statement are indexed later, together with those that follow."""


def _rows_sql(width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"VALUES {', '.join([row] * rows)}"


HAS_OTHER_TRIGGERS: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'
        AND name NOT GLOB 'async_history_*'
)"""
"""SQL condition: the file's owner has triggers on `history`, which may skip, change or add rows."""


def _add_sql(view: str, width: int, rows: int, more_rows: int, condition: str) -> str:
    sql = f"""
        INSERT INTO {view} SELECT * FROM ({_rows_sql(width, rows + more_rows)})
        WHERE column{width} IS NOT NULL AND {condition}
    """
    return f"{sql} AND async_history_begun()" if rows >= WAKEUP_BATCH_MIN else sql


class _Form(NamedTuple):
    """Statements by their number of records, for a store as it should be and for one with other
    triggers.

    SQLite calls `async_history_begun`, which is deterministic and has no arguments, once per
    statement. Small batches do without it: calling it means waiting for the GIL.
    """

    usual: dict[int, str]
    with_triggers: dict[int, str]


def _form(view: str, width: int, more_rows: int, condition: str) -> _Form:
    is_usual = f"{NEARLY_COMPLETE_ALONE} AND {condition}"
    return _Form(
        *(
            {rows: _add_sql(view, width, rows, more_rows, asked) for rows in STATEMENT_ROWS}
            for asked in (is_usual, "true")
        )
    )


_PLAIN: Final = _form("async_history_new", ROW_WIDTH, 1, f"NOT {HAS_OWNERS}")
_DETAILED: Final = _form("async_history_new_detailed", _DETAILED_WIDTH, 2, "true")


class Statement(NamedTuple):
    """A statement and its parameters."""

    sql: str
    parameters: Sequence[Any]


class Expected(NamedTuple):
    """The owner that a record's memory should have, and how that is known: see `EXPECTS_NONE`."""

    owner: Owner | None
    expects: int


def decided(record: HistoryRecord) -> Expected:
    """Return what is expected where this transaction looked at the memory's owner."""
    return Expected(record.owner, EXPECTS_NONE if record.owner is None else EXPECTS_KNOWN)


def add_statement(
    records: Sequence[HistoryRecord],
    owners: Sequence[Expected] | None,
    *,
    has_triggers: bool = False,
) -> Statement:
    """Return the statement that adds at most `STATEMENT_ROWS` records.

    Args:
        owners: of each record; None where no memory in the store has one, and no record has
            details.
        has_triggers: whether the file's owner has triggers on the table.
    """
    is_indexed = len(records) > _FEW and not has_triggers
    rows = next(size for size in STATEMENT_ROWS if size >= len(records))
    if owners is None:
        form, width = _PLAIN, ROW_WIDTH
        values = parameters(records, memory_key if is_indexed else _not_yet)
        values += (*(NULL,) * (ROW_WIDTH - 1), len(records) if is_indexed else 0)
    else:
        form, width = _DETAILED, _DETAILED_WIDTH
        values = [*_marker(0, _BEGIN if is_indexed else NULL)]
        _add_detailed(values, records, owners, is_indexed=is_indexed)
        values += _marker(len(records) if is_indexed else 0, _END)
    values += (NULL,) * (width * (rows - len(records)))
    return Statement((form.with_triggers if has_triggers else form.usual)[rows], values)


def _marker(indexed: int, kind: float) -> Sequence[float]:
    columns = (NULL,) * len(COLUMNS)
    return *columns, indexed, *(NULL,) * (_DETAILED_WIDTH - len(COLUMNS) - 2), kind


_NO_KEYS: Final = ((NULL,) * 4, (NULL,) * 3, (NULL,) * 2, (NULL,))


def _add_detailed(
    values: list[Any],
    records: Sequence[HistoryRecord],
    owners: Sequence[Expected],
    *,
    is_indexed: bool,
) -> None:
    """Append records' parameters in the order of the view's columns."""
    kind = _WRITE if is_indexed else _WRITE_LATER
    for record, (owner, expects) in zip(records, owners, strict=True):
        owner_text, keys = owner_entry(owner)
        context, cause = json_text(record.context), json_text(record.cause)
        values += columns_as_parameters(record)
        values += (
            memory_key(record.memory_id),
            NULL if owner_text is None else owner_text,
            expects,
            NULL if context is None else context,
            NULL if cause is None else cause,
        )
        if not is_indexed:
            values += _NO_KEYS[0]
        else:
            if cause is not None:
                keys += cause_keys(cause)
            if len(keys) <= len(_NO_KEYS) - 1:
                values += keys
                values += _NO_KEYS[len(keys)]
            else:
                values += keys[:3]
                values.append(f"[{','.join(map(str, keys[3:]))}]")
        values.append(kind)


def _not_yet(_: str) -> int:
    return NOT_YET


def has_details(records: Sequence[HistoryRecord]) -> bool:
    """Return whether any record has more than mem0's columns."""
    for record in records:
        if record.owner is not None or record.cause is not None or record.context is not None:
            return True
    return False
