"""SQLite's rows and our records: one into the other, and nothing else."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from async_history._core.records import (
    COLUMN_LIST,
    COLUMNS,
    EVENTS,
    Event,
    HistoryRecord,
    Row,
    parse_time,
)

Fetch = Callable[[str, Mapping[str, Any]], Awaitable[Sequence[Sequence[Any]]]]
"""Run one SELECT with its parameters."""

COLUMNS_OF_HISTORY: Final = ", ".join(f"history.{name}" for name in COLUMNS)
"""`COLUMN_LIST`, where other tables are near."""

NULL: Final = float("nan")
"""NULL as a parameter: SQLite stores it for NaN. For None, Python's sqlite3 looks for an adapter
each time, which takes ten times as long (270 ns on 3.11), with the GIL held while others wait."""
ROW_WIDTH: Final = len(COLUMNS) + 1
"""Parameters of a record: its columns, and its memory's key in the index."""
NOT_YET: Final = -1
"""Instead of the key, where the record is to be indexed later."""

_EVENT_TEXTS: Final[dict[str, str]] = {event: event.value for event in Event}
"""Of the events there are; a copied record may have another, as text."""


MOST_PACKED: Final = 512
"""Most rows that come as one: taking them apart keeps the event loop for half a millisecond."""
LONGEST_PACKED: Final = 4096
"""Longest text of such a row, in characters: long texts take long, and memory for a copy."""
_IS_ODD: Final = " OR ".join(
    (
        *(f"{name} >= x''" for name in COLUMNS),
        *(f"length({name}) > {LONGEST_PACKED}" for name in ("old_memory", "new_memory")),
    )
)
"""SQL: whether a row has a BLOB, which JSON can't hold, or a long text. To SQLite everything that
is no BLOB is less than the empty one."""


def packed(select: str) -> str:
    """Return SQL for all rows of a SELECT, which `record_from_row` takes, as one.

    Python's sqlite3 lets go of the GIL at every row and asks for it again, which in a busy program
    takes longer than the row: beside 100 agents 70 rows took 7 ms, and as one 2.
    """
    return f"""
        SELECT json_group_array(
            CASE WHEN {_IS_ODD} THEN NULL ELSE json_array({COLUMN_LIST}, time_before) END
        ) FROM ({select} LIMIT {MOST_PACKED + 1})
    """


def unpacked(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]] | None:
    """Return the rows that came as one, or None where they did not: too many, or an odd one."""
    if not rows:  # the table is gone
        return None
    try:
        found: list[Any] = _without_floats.decode(rows[0][0])
    except ValueError:
        return None
    return None if len(found) > MOST_PACKED or None in found else found


def _refused(number: str) -> float:
    raise ValueError(f"{number} may have lost digits")


_without_floats: Final = json.JSONDecoder(parse_float=_refused)


def parameters(records: Iterable[HistoryRecord], key: Callable[[str], int]) -> list[Any]:
    """Return the records' parameters, one after the other, as plain types SQLite binds fastest.

    `key` gives the last one, of the memory's id.
    """
    flat: list[Any] = []
    for record in records:
        flat += (
            record.id,
            record.memory_id,
            NULL if (text := record.old_memory) is None else text,
            NULL if (text := record.new_memory) is None else text,
            _EVENT_TEXTS.get(record.event, record.event),
            NULL if (text := record.created_at) is None else text,
            NULL if (text := record.updated_at) is None else text,
            int(record.is_deleted),
            NULL if (text := record.actor_id) is None else text,
            NULL if (text := record.role) is None else text,
            key(record.memory_id),
        )
    return flat


def record_from_row(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row: its ten columns, and then, if asked for, `time_before`.

    That is an instant or its text, or '' where nobody knows.
    """
    event, created_at, updated_at = row[4], row[5], row[6]
    before = row[10] if len(row) > len(COLUMNS) else None
    return HistoryRecord(
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
        parse_time(before) if isinstance(before, str) else before,
    )


def rows_in_todays_types(found: Iterable[Sequence[Any]]) -> list[Row]:
    """Return rows' ten columns, without the two behind them, as `row_of` their records would be."""
    return [
        (
            *columns,
            created_at if type(created_at) is str else _time_text(created_at),
            updated_at if type(updated_at) is str else _time_text(updated_at),
            bool(is_deleted),
            actor_id,
            role,
        )
        for *columns, created_at, updated_at, is_deleted, actor_id, role, _, _ in found
    ]


def _time_text(value: Any) -> str | None:
    """DATETIME has NUMERIC affinity: what others stored as '2025' comes back as a number."""
    return None if value is None else str(value)
