"""Histories of a shape in two sizes, and calls whose cost is compared between them.

The shapes are the hard ones: records without times, times in other spellings, one memory with all
records, many memories with one.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from math import isqrt
from typing import Any

from async_history import HistoryManager

SMALL = 1_200
LARGE = SMALL + 5 * 512
"""At the same place of an index block as the small size, and three times as large."""
GROWTH = LARGE / SMALL
LOOSE = 1.5
"""Allowed growth beyond proportion: work that is done once, the depth of a tree."""
START = datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)
Call = Callable[[HistoryManager, int], Awaitable[object]]
"""Make a call on a history of so many records."""


def moment(n: int) -> datetime:
    return START + timedelta(seconds=n)


def row(n: int, memory_id: str, time: str | None, event: str = "ADD") -> tuple[Any, ...]:
    created = time if event == "ADD" else None
    updated = None if event == "ADD" else time
    return (str(n), memory_id, None, f"text {n}", event, created, updated, 0, "actor", "user")


Shape = Callable[[int], tuple[Any, ...]]
SHAPES: dict[str, Shape] = {
    "as we write it": lambda n: row(n, "m", moment(n).isoformat()),
    "no time in one memory": lambda n: row(n, "m", None),
    "no time in any but the first": lambda n: row(n, "m", None if n else moment(0).isoformat()),
    "no time in many memories": lambda n: row(n, f"m{n % 500}", None, "DELETE"),
    "deletions without a time": lambda n: row(n, "m", None, "DELETE"),
    "text that is not a time": lambda n: row(n, "m", "yesterday"),
    "with an offset": lambda n: row(
        n, f"m{n % 500}", moment(n).astimezone(timezone(timedelta(hours=8))).isoformat()
    ),
    "naive": lambda n: row(n, f"m{n}", str(moment(n).replace(tzinfo=None))),
}


def above(grown: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return what grew more than `limit`."""
    return {name: times for name, times in grown.items() if times > limit}


IN_TURNS = 30
"""Records of each memory if many memories are written in turns."""


def in_turns(n: int) -> tuple[Any, ...]:
    return row(n, f"m{n % (SMALL // IN_TURNS)}", moment(n).isoformat())


def ever_longer(n: int) -> tuple[Any, ...]:
    """Memories of 1, 2, 3, … records, one after the other."""
    return row(n, f"m{isqrt(8 * n + 1) - 1 >> 1}", moment(n).isoformat())


def by_two(shape: Shape) -> Shape:
    """Return the shape with two actors in turns, and each text as the next record's old one."""

    def made(n: int) -> tuple[Any, ...]:
        record_id, memory_id, _, new, event, *times, deleted, _, role = shape(n)
        actor = "actor" if n % 2 else "other"
        old = f"text {n - 1}"
        return (record_id, memory_id, old, new, event, *times, deleted, actor, role)

    return made


LONG_SHAPES: dict[str, Shape] = {
    "thirty in each memory, in turns": in_turns,
    "memories that grow longer": ever_longer,
    "one memory": SHAPES["as we write it"],
    "no time in one memory": SHAPES["no time in one memory"],
}


def erase_actor(*, dry_run: bool) -> Call:
    async def erase(history: HistoryManager, size: int) -> None:
        report = await history.erase(actor_id="actor", reason="x", dry_run=dry_run, vacuum=False)
        assert report.records >= size // 2

    return erase


def prune(keep_last: int, *, dry_run: bool = True) -> Call:
    return lambda history, _: history.prune(
        older_than=moment(LARGE), keep_last=keep_last, dry_run=dry_run
    )


REMOVALS: dict[str, Call] = {
    "dry erase of actor": erase_actor(dry_run=True),
    "dry prune but the last": prune(1),
    "dry prune but many": prune(1_000),
    "erase of actor": erase_actor(dry_run=False),
    "prune but a third": lambda history, size: history.prune(
        older_than=moment(LARGE), keep_last=size // 3
    ),
    "prune": prune(1, dry_run=False),
}
