"""Queries by owner and cause."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import product
from random import Random
from typing import Any

from async_history import Event, HistoryManager, HistoryRecord, Order, Owner
from async_history.testing.changes import START
from async_history.testing.fixtures import Cases, OpenStore


def is_asked_for(
    record: HistoryRecord,
    owner: Owner | None,
    *,
    cause: dict[str, str] | None = None,
    since: datetime | None = None,
    **wanted: Any,
) -> bool:
    """A model of a filter."""
    scopes = {} if owner is None else owner.as_dict()
    why: Mapping[str, Any] = record.cause or {}
    return (
        all(
            (
                scopes if name in ("user_id", "agent_id", "run_id", "app_id") else vars_of(record)
            ).get(name)
            == value
            for name, value in wanted.items()
        )
        and all(why.get(key) == value for key, value in (cause or {}).items())
        and (since is None or (record.occurred_at is not None and record.occurred_at >= since))
    )


def vars_of(record: HistoryRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ("memory_id", "event", "actor_id", "role")}


_POSITIONAL = ("memory_id", "new_memory", "event")
_OWNERS = {
    f"m{n}": Owner(user_id=f"u{n % 4}", agent_id="a" if n % 2 else None, app_id="app")
    if n % 5
    else None
    for n in range(16)
}
_FILTERS: tuple[dict[str, Any], ...] = (
    {"user_id": "u1"},
    {"agent_id": "a"},
    {"app_id": "app"},
    {"run_id": "nobody"},
    {"user_id": "u1", "agent_id": "a"},
    {"user_id": "u2", "event": Event.UPDATE},
    {"user_id": "u3", "actor_id": "x1"},
    {"user_id": "u1", "memory_id": "m5"},
    {"user_id": "u1", "memory_id": "m6"},
    {"app_id": "app", "since": START + timedelta(hours=120)},
    {"cause": {"request_id": "q3"}},
    {"cause": {"request_id": "q3", "reason": "r1"}},
    {"cause": {"reason": "r1"}},
    {"cause": {"trace_id": "q3"}},
    {"cause": {"request_id": "q3"}, "user_id": "u1"},
    {"cause": {"reason": "r2"}, "memory_id": "m7", "since": START + timedelta(hours=50)},
)


def _changes() -> list[dict[str, Any]]:
    random = Random(16)  # noqa: S311
    return [
        {
            "memory_id": f"m{n % 16}",
            "new_memory": str(n),
            "event": ("ADD", "UPDATE", "DELETE")[n % 3],
            "created_at": START + timedelta(hours=n),
            "updated_at": START + timedelta(hours=n),
            "actor_id": f"x{n % 3}",
            "owner": _OWNERS[f"m{n % 16}"] if random.random() < 0.5 or n >= 150 else None,
            "cause": {"request_id": f"q{n % 10}", "reason": f"r{n % 4}"} if n % 7 else None,
        }
        for n in range(200)
    ]


async def _record(history: HistoryManager) -> list[HistoryRecord]:
    """Record the changes, half of them in batches and half by single calls."""
    changes = _changes()
    records: list[HistoryRecord] = []
    for at in range(0, 100, 10):
        records += await history.batch_add_history(changes[at : at + 10])
    calls = (
        history.add_history(
            one["memory_id"],
            None,
            one["new_memory"],
            one["event"],
            **{k: v for k, v in one.items() if k not in _POSITIONAL},
        )
        for one in changes[100:]
    )
    return records + await asyncio.gather(*calls)


async def _check_filter(
    history: HistoryManager, records: list[HistoryRecord], asked: dict[str, Any]
) -> None:
    """Check a filter's count, its pages in both orders, and what a follower with it gets."""
    expected = [r for r in records if is_asked_for(r, _OWNERS[r.memory_id], **asked)]
    assert await history.count_history(**asked) == len(expected)
    orders: tuple[Order, ...] = ("oldest", "newest")
    for page_size, order in product((3, 500), orders):
        pages = history.query_history(**asked, page_size=page_size, order=order)
        got = [record async for record in pages]
        assert got == (expected if order == "oldest" else expected[::-1]), asked
        assert all(record.owner == _OWNERS[record.memory_id] for record in got)
    if "event" not in asked and "actor_id" not in asked and "since" not in asked:
        follower = history.follow(**asked)
        followed: list[HistoryRecord] = []
        while len(followed) < len(expected):
            followed += await follower.next_records(limit=500)
        assert followed == expected


async def _check_memories(history: HistoryManager, records: list[HistoryRecord], n: int) -> None:
    """Check the memories of one user, now and at an instant, and those with one cause."""
    living = [
        history_[-1]
        for m, owner in _OWNERS.items()
        if owner is not None
        and owner.user_id == f"u{n}"
        and (history_ := [r for r in records if r.memory_id == m])
        and history_[-1].event != "DELETE"
    ]
    seen = [record async for record in history.memories(user_id=f"u{n}")]
    assert sorted(seen, key=records.index) == sorted(living, key=records.index)
    when = START + timedelta(hours=70)
    then = [r async for r in history.memories_at(when, user_id=f"u{n}")]
    all_at = [r async for r in history.memories_at(when)]
    mine = [r for r in all_at if (o := _OWNERS[r.memory_id]) and o.user_id == f"u{n}"]
    assert sorted(then, key=records.index) == sorted(mine, key=records.index)
    why = {"reason": f"r{n}"}
    for whose, found in (({}, all_at), ({"user_id": f"u{n}"}, mine)):
        caused = [r async for r in history.memories_at(when, **whose, cause=why)]
        expected = [r for r in found if (r.cause or {}).get("reason") == f"r{n}"]
        assert sorted(caused, key=records.index) == sorted(expected, key=records.index)


class OwnerQueryCases(Cases):
    """Results of queries by owner and cause."""

    async def test_queries_by_owner_and_cause(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            records = await _record(history)
            for asked in _FILTERS:
                await _check_filter(history, records, asked)
            for n in range(4):
                await _check_memories(history, records, n)
