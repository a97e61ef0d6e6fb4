"""Every call that reads a history, by name, for tests of properties that all reads share."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from async_history import HistoryManager, dump_lines


async def _page(history: HistoryManager) -> object:
    return await anext(history.query_history(text="x").pages())


async def _walk(history: HistoryManager) -> object:
    return [record async for record in history.query_history(text="x")]


async def _memories_at(history: HistoryManager) -> object:
    return [record async for record in history.memories_at(datetime.now(UTC))]


async def _dump(history: HistoryManager) -> object:
    return [line async for line in dump_lines(history)]


async def _follow(history: HistoryManager) -> object:
    return await anext(history.follow())


READS: Final[dict[str, Callable[[HistoryManager], Awaitable[object]]]] = {
    "get": lambda history: history.get_history("m"),
    "count": lambda history: history.count_history(text="x"),
    "page": _page,
    "walk": _walk,
    "memories_at": _memories_at,
    "memory_at": lambda history: history.memory_at("m", datetime.now(UTC)),
    "diff": lambda history: history.diff("m", datetime.now(UTC), datetime.now(UTC)),
    "dump": _dump,
    "follow": _follow,
    "end": lambda history: history.end_cursor(),
    "messages": lambda history: history.get_last_messages("s"),
    "stats": lambda history: history.stats(),
    "erasures": lambda history: history.erasures(),
    "operations": lambda history: history.operations(),
}
"""Some look for the text "x", which makes them scan. `follow` needs a record to end."""
