"""Conversion of SQLite's rows to records, and of records to parameters."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from async_history._core.encryption.sealed_records import SealedValues
from async_history._core.records.records import (
    COLUMNS,
    EVENTS,
    Event,
    Fields,
    HistoryRecord,
    made_record,
)
from async_history._core.records.rows import Details, Row, details_from
from async_history._core.records.values import parse_time
from async_history._sqlite.index import SEPARATOR

Fetch = Callable[[str, Mapping[str, Any]], Awaitable[Sequence[Sequence[Any]]]]
"""A function that runs one SELECT with its parameters."""

COLUMNS_OF_HISTORY: Final = ", ".join(f"history.{name}" for name in COLUMNS)
"""`COLUMN_LIST` for a join: each column with its table's name."""

NULL: Final = float("nan")
"""NULL as a parameter: SQLite stores NaN as NULL. For None, Python's sqlite3 searches an adapter
each time, which takes ten times as long (270 ns on 3.11) with the GIL held."""
ROW_WIDTH: Final = len(COLUMNS) + 1
"""The number of a record's parameters: its columns, and its memory's key in the index."""
NOT_YET: Final = -1
"""The value instead of the key if the record is indexed later."""

_EVENT_TEXTS: Final[dict[str, str]] = {event: event.value for event in Event}
"""The texts of mem0's events. A copied record may have another event, as text."""


MOST_PACKED: Final = 512
"""The most rows to pack into one: unpacking them blocks the event loop for half a millisecond."""
LONGEST_PACKED: Final = 4096
"""The longest text in a packed row, in characters: packing takes time and memory for a copy."""


class PackedColumns(NamedTuple):
    """The columns of rows that are packed.

    Attributes:
        names: all of them.
        untyped: those that may have a BLOB, which JSON can't hold.
        long: those that may have a long text.
    """

    names: Sequence[str]
    untyped: Sequence[str]
    long: Sequence[str]

    @property
    def cannot_be_packed(self) -> str:
        """The SQL condition that a row has a BLOB or a long text.

        SQLite sorts every other value before the empty BLOB.
        """
        is_blob = [f"{name} >= x''" for name in self.untyped]
        is_long = [f"length({name}) > {LONGEST_PACKED}" for name in self.long]
        return " OR ".join([*is_blob, *is_long])

    def and_also(self, *names: str) -> "PackedColumns":
        """Return these columns and others, which have numbers or times."""
        return self._replace(names=(*self.names, *names))


RECORD: Final = PackedColumns(
    (*COLUMNS, "besides"), COLUMNS, ("old_memory", "new_memory", "besides")
)
"""The columns for `record_from_row`."""


def packed_sql(select: str, columns: PackedColumns = RECORD) -> str:
    """Return SQL that packs all rows of a SELECT into one, as a JSON array.

    Python's sqlite3 releases and takes the GIL for each row, which in a busy program takes longer
    than reading the row. With 100 agents, 70 rows took 7 ms, and 2 ms packed into one.
    """
    return f"""
        SELECT json_group_array(
            CASE WHEN {columns.cannot_be_packed} THEN NULL
                ELSE json_array({", ".join(columns.names)}) END
        ) FROM ({select} LIMIT {MOST_PACKED + 1})
    """


def unpack_rows(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]] | None:
    """Return the packed rows; None if they were too many or one could not be packed."""
    if not rows:  # the table is gone
        return None
    try:
        found: list[Any] = _without_floats.decode(rows[0][0])
    except ValueError:
        return None
    return None if len(found) > MOST_PACKED or None in found else found


class PackedSelect:
    """A SELECT for several callers: see `packed_sql` for its arguments."""

    def __init__(self, select: str, columns: PackedColumns = RECORD) -> None:
        self._select = select
        self._packed = packed_sql(select, columns)

    async def rows(
        self, fetch: Fetch, given: Mapping[str, Any], expected: int
    ) -> Sequence[Sequence[Any]]:
        """Return its rows, packed into one if several are expected and that is possible."""
        if expected > 1:
            rows = unpack_rows(await fetch(self._packed, given))
            if rows is not None:
                return rows
        return await fetch(self._select, given)


def _refused(number: str) -> float:
    raise ValueError(f"{number} may have lost digits")


_without_floats: Final = json.JSONDecoder(parse_float=_refused)


def rows_sql(width: int, rows: int) -> str:
    """Return the VALUES of a statement with rows of parameters."""
    row = f"({', '.join('?' * width)})"
    return f"VALUES {', '.join([row] * rows)}"


def parameters(record: Fields, sealed: SealedValues | None) -> tuple[Any, ...]:
    """Return a record's ten columns, as the plain types that SQLite binds fastest.

    Its texts are those of `sealed`, if that is given.
    """
    # Each value has a target: a starred one would make a list, which takes twice as long.
    id_, memory_id, old, new, event, created, updated, deleted, actor, role, _, _, _, _ = record
    if sealed is not None:
        old, new, _, _, _ = sealed
    return (
        id_,
        memory_id,
        NULL if old is None else old,
        NULL if new is None else new,
        _EVENT_TEXTS.get(event, event),
        NULL if created is None else created,
        NULL if updated is None else updated,
        1 if deleted else 0,
        NULL if actor is None else actor,
        NULL if role is None else role,
    )


def besides_of(stored: Any) -> tuple[Any, str | None, str | None, str | None]:
    """Return a row's other values: `time_before`, owner, context and cause as JSON.

    If no record has details, `stored` is only `time_before`; see `Details.besides`.
    """
    if type(stored) is not str or SEPARATOR not in stored:
        return stored, None, None, None
    before, owner, context, cause = stored.split(SEPARATOR)
    return None if before == "-" else before, owner or None, context or None, cause or None


def record_from_row(row: Sequence[Any], previous: HistoryRecord | None = None) -> HistoryRecord:
    """Return the record of a row: its ten columns, and its other values if the row has them.

    A `time_before` of '' means that `previous`, the memory's previous record, dates the record.
    """
    event, created_at, updated_at = row[4], row[5], row[6]
    before, details = None, _NO_DETAILS
    if len(row) > len(COLUMNS) and row[10] is not None:
        before, *texts = besides_of(row[10])
        details = details_from(*texts)
        if isinstance(before, str):
            before = parse_time(before) if before or previous is None else previous.occurred_at
    return made_record(
        row[0],
        row[1],
        row[2],
        row[3],
        EVENTS.get(event, event),
        created_at if type(created_at) is str else _time_text(created_at),
        updated_at if type(updated_at) is str else _time_text(updated_at),
        bool(row[7]),
        row[8],
        row[9],
        before,
        *details,
    )


_NO_DETAILS: Final[Details] = (None, None, None)


def rows_in_current_types(found: Iterable[Sequence[Any]]) -> list[Row]:
    """Return rows in the form of `row_of`, without the last two columns."""
    return [
        (
            *columns,
            created_at if type(created_at) is str else _time_text(created_at),
            updated_at if type(updated_at) is str else _time_text(updated_at),
            bool(is_deleted),
            actor_id,
            role,
            *(_NO_DETAILS if besides is None else besides_of(besides)[1:]),
        )
        for *columns, created_at, updated_at, is_deleted, actor_id, role, besides, _, _ in found
    ]


def _time_text(value: Any) -> str | None:
    """Return a stored time as text: '2025' comes back as a number from a DATETIME column."""
    return None if value is None else str(value)
