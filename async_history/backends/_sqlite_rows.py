"""SQLite's rows and our records: one into the other, and nothing else."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from async_history.memory_index import memory_key
from async_history.records import COLUMNS, Event, HistoryRecord

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


def record_from_row(row: Iterable[Any]) -> HistoryRecord:
    """Return the record of a row, with its columns in the order of `COLUMN_LIST`."""
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
    return HistoryRecord(
        record_id,
        memory_id,
        old_memory,
        new_memory,
        _EVENTS.get(event, event),
        _time_text(created_at),
        _time_text(updated_at),
        bool(is_deleted),
        actor_id,
        role,
    )


def history_from_rows(rows: Iterable[Iterable[Any]]) -> list[HistoryRecord]:
    """Return one memory's records from its rows, oldest first, each knowing the one before."""
    records: list[HistoryRecord] = []
    for row in rows:
        record = record_from_row(row)
        if records and record.occurred_at is None:
            record = replace(record, time_before=records[-1].occurred_at)
        records.append(record)
    return records


def _time_text(value: Any) -> str | None:
    """DATETIME has NUMERIC affinity: what others stored as '2025' comes back as a number."""
    return value if value is None or type(value) is str else str(value)
