"""Changes as mem0 would record them, at chosen hours, and the states they lead to."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from async_history import HistoryManager, HistoryRecord, RollbackReport

START = datetime(2026, 1, 1, tzinfo=UTC)


State = tuple[str | None, object] | None
"""A memory's text and context; None if it does not exist."""


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def state_after(records: Sequence[HistoryRecord]) -> State:
    if not records or records[-1].event == "DELETE":
        return None
    return records[-1].new_memory, records[-1].context


def actions(report: RollbackReport) -> dict[str, str]:
    return {step.memory_id: str(step.action) for step in report.steps}


async def change(
    history: HistoryManager, memory_id: str, text: str | None, hour: float, **more: Any
) -> HistoryRecord:
    """Record a change as mem0 would: an ADD, an UPDATE, or for None a DELETE."""
    records = await history.get_history(memory_id)
    latest = records[-1] if records and records[-1].event != "DELETE" else None
    event = "DELETE" if text is None else "UPDATE" if latest else "ADD"
    return await history.add_history(
        memory_id,
        None if latest is None else latest.new_memory,
        text,
        event,
        created_at=at(hour),
        updated_at=None if event == "ADD" else at(hour),
        **more,
    )


async def everything(
    history: HistoryManager, memory_ids: Sequence[str]
) -> dict[str, list[HistoryRecord]]:
    return {memory_id: await history.get_history(memory_id) for memory_id in memory_ids}
