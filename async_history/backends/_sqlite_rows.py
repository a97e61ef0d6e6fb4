"""SQLite's rows and our records: one into the other, and nothing else."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from async_history.memory_index import memory_key
from async_history.records import COLUMNS, Event, HistoryRecord, own_time

COLUMN_LIST: Final = ", ".join(COLUMNS)
"""The ten columns as SQL, in the order of `record_from_row`."""

ROW_WIDTH: Final = len(COLUMNS) + 1
"""Parameters of a record: its columns, and its memory's key."""

_EVENTS: Final = {event.value: event for event in Event}
_EVENT_TEXTS: Final[dict[str, str]] = {event: event.value for event in Event}


def parameters(records: Iterable[HistoryRecord]) -> list[Any]:
    """Return the records' parameters, one after the other, as plain types SQLite binds fastest."""
    flat: list[Any] = []
    for record in records:
        flat += (
            record.id,
            record.memory_id,
            record.old_memory,
            record.new_memory,
            _EVENT_TEXTS[record.event],
            record.created_at,
            record.updated_at,
            int(record.is_deleted),
            record.actor_id,
            record.role,
            memory_key(record.memory_id),
        )
    return flat


def record_from_row(row: Iterable[Any], predecessor_time: datetime | None = None) -> HistoryRecord:
    """Return the record of a row.

    `occurred_at` is the row's own time, else `predecessor_time`, else the other of its columns.
    """
    (
        record_id,
        memory_id,
        old_memory,
        new_memory,
        event,
        created_at,
        updated_at,
        is_deleted,
        actor_id,
        role,
    ) = row
    event = _EVENTS.get(event, event)
    created_at, updated_at = _time_text(created_at), _time_text(updated_at)
    occurred_at = own_time(event, created_at, updated_at) or predecessor_time
    return HistoryRecord(
        record_id,
        memory_id,
        old_memory,
        new_memory,
        event,
        created_at,
        updated_at,
        bool(is_deleted),
        actor_id,
        role,
        occurred_at,
    )


def history_from_rows(rows: Iterable[Iterable[Any]]) -> list[HistoryRecord]:
    """Return one memory's records from its rows, oldest first, each knowing the one before."""
    records: list[HistoryRecord] = []
    latest: datetime | None = None
    for row in rows:
        record = record_from_row(row, latest)
        latest = record.occurred_at or latest
        records.append(record)
    return records


def _time_text(value: Any) -> str | None:
    """DATETIME has NUMERIC affinity: what others stored as '2025' comes back as a number."""
    return value if value is None or type(value) is str else str(value)
