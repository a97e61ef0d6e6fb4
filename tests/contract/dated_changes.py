"""Changes of a given age, and the cutoff that tests prune at."""

from datetime import UTC, datetime, timedelta
from typing import Any

from async_history import HistoryManager, HistoryRecord

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=90)


def at(days: float) -> datetime:
    """Return the instant so many days before `NOW`. Older than 90 days is before `CUTOFF`."""
    return NOW - timedelta(days=days)


def change(memory_id: str, event: str, days: float, text: str | None = "x") -> dict[str, Any]:
    name = "created_at" if event == "ADD" else "updated_at"
    return {"memory_id": memory_id, "event": event, "new_memory": text, name: at(days)}


async def everything(history: HistoryManager) -> list[HistoryRecord]:
    return [record async for record in history.query_history()]
