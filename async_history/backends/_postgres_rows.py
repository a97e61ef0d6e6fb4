"""PostgreSQL's rows and our records: one into the other, and nothing else."""

import re
from collections.abc import Iterable, Sequence
from operator import attrgetter
from secrets import token_hex
from typing import Any, Final, cast

from async_history.records import COLUMNS, Event, HistoryRecord

COLUMN_LIST: Final = ", ".join(COLUMNS)
"""mem0's ten columns as SQL."""
RECORD_COLUMNS: Final = (
    f"{COLUMN_LIST}, CASE WHEN event = 'ADD' AND created_at IS NULL"
    " OR event <> 'ADD' AND updated_at IS NULL THEN occurred_at END"
)
"""What `record_from_row` wants: the ten columns, and the instant where the record has no time."""

_EVENTS: Final = {event.value: event for event in Event}


def values_of(record: HistoryRecord) -> tuple[Any, ...]:
    """Return a record's columns, and last its instant as `joined_columns` has it."""
    return *_VALUES(record), *_instants((record,))


def joined_columns(records: Sequence[HistoryRecord]) -> tuple[str, ...]:
    """Return the records' columns, each as one text, then their instants, separator and null.

    `string_to_array(column, separator, null)` gives a column back, behind one element too many
    (of an empty text it would give no element at all). asyncpg takes ten times as long to encode
    arrays: it asks every None and bool in them whether it is a container.

    Instants are ISO 8601 text with an offset: a datetime near year 1 or 9999 can have an offset
    that takes it beyond what the driver can encode.
    """
    values = list(zip(*map(_VALUES, records), strict=True))
    values[_IS_DELETED] = tuple(["t" if is_deleted else "f" for is_deleted in values[_IS_DELETED]])
    values.append(_instants(records))
    nulls = [column.count(None) for column in values]
    separator, null = "\x1f", "\x1e"
    while True:
        columns = [
            separator + separator.join(_without_nulls(column, null) if count else column)
            for column, count in zip(values, nulls, strict=True)
        ]
        if sum([text.count(separator) for text in columns]) == len(records) * len(columns) and sum(
            [text.count(null) for text in columns]
        ) == sum(nulls):
            return *columns, separator, null
        # Some text has one of them in it: take others.
        separator, null = f"\x1f{token_hex(8)}", f"\x1e{token_hex(8)}"


def _without_nulls(column: Sequence[str | None], null: str) -> list[str]:
    return [null if value is None else value for value in column]


def _instants(records: Sequence[HistoryRecord]) -> tuple[str | None, ...]:
    texts = tuple(
        [
            record.created_at if record.event is Event.ADD else record.updated_at
            for record in records
        ]
    )
    if None not in texts:
        written = cast("tuple[str]", texts)
        if set(map(len, written)) == {_WIDTH} and _AS_WE_WRITE_THEM.fullmatch("".join(written)):
            return texts
    moments = [record.occurred_at for record in records]
    return tuple([None if moment is None else moment.isoformat() for moment in moments])


_VALUES: Final = attrgetter(*COLUMNS)
_IS_DELETED: Final = COLUMNS.index("is_deleted")
_AS_WE_WRITE_THEM: Final = re.compile(
    r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00)*", re.ASCII
)
"""Times that need no parsing: nearly all."""
_WIDTH: Final = len("2026-11-20T09:41:15.250000+00:00")


def record_from_row(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row of `RECORD_COLUMNS`."""
    event = row[4]
    return HistoryRecord(
        row[0],
        row[1],
        row[2],
        row[3],
        _EVENTS.get(event, event),
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
    )


def records_by_id(rows: Iterable[Sequence[Any]]) -> dict[str, HistoryRecord]:
    """Return the records of rows by their id."""
    return {record.id: record for record in map(record_from_row, rows)}
