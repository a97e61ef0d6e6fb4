"""Calls that write a history, by name, for tests of properties that all writes share."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from async_history import HistoryManager

WRITES: Final[dict[str, Callable[[HistoryManager], Awaitable[object]]]] = {
    "add": lambda history: history.add_history("m", None, "x", "ADD"),
    "update": lambda history: history.update_history("m", "y"),
    "batch": lambda history: history.batch_add_history([{"memory_id": "n", "event": "ADD"}] * 3),
    "messages": lambda history: history.save_messages([{"role": "user", "content": "x"}], "s"),
    "prune": lambda history: history.prune(older_than=datetime(2001, 1, 1, tzinfo=UTC)),
    "erase": lambda history: history.erase(memory_ids=["none"], reason="test"),
}
