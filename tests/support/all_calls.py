"""Every call of a manager, for tests of properties that all calls share."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any, Final

import pytest

from async_history import HistoryConflict, IdConflict, OwnerConflict, dump_lines

DETAILS: Final[dict[str, Any]] = {
    "owner": {"user_id": "ann", "run_id": "r"},
    "context": {"tags": ["tea"]},
    "cause": {"request_id": "1", "why": "asked"},
}


async def write_details(history: Any) -> None:
    """Write owners of new memories, of one that has records, and of none."""
    await history.add_history("late", None, "tea", "ADD")
    await history.add_history("late", None, "tea", "UPDATE", **DETAILS)
    await history.add_history("new", None, "tea", "ADD", **DETAILS)
    await history.update_history("new", "mate", context={})
    with pytest.raises(OwnerConflict):
        await history.update_history("new", "milk", owner={"user_id": "bob"})
    batch = [{"memory_id": f"o{n % 3}", "new_memory": f"{n}", "event": "ADD"} for n in range(9)]
    await history.batch_add_history([{**one, **DETAILS} for one in batch])
    await history.batch_add_history(batch)
    await history.batch_add_history([{**one, "event": "UPDATE", "memory_id": "x"} for one in batch])
    await history.batch_add_history([{**one, **DETAILS, "memory_id": "x"} for one in batch])


async def write_many_details(history: Any) -> None:
    """Write so many records at once that they get a transaction with its own time limit."""
    many = [{"memory_id": f"large {n}", "event": "ADD", **DETAILS} for n in range(3_000)]
    await history.batch_add_history(many)


async def write(history: Any) -> None:
    """Record with every call that records, and be refused."""
    first = await history.add_history("m", None, "tea", "ADD", actor_id="ann", role="user")
    await history.add_history("m", "tea", "mate", "UPDATE", id="named")
    await history.add_history("m", "tea", "mate", "UPDATE", id="named")
    with pytest.raises(IdConflict):
        await history.add_history("m", "tea", "milk", "UPDATE", id="named")
    with pytest.raises(HistoryConflict):
        await history.add_history("m", "x", "y", "UPDATE", if_latest=first)
    await history.update_history("m", "matcha", actor_id="bob")
    batch = [
        {"memory_id": f"m{n % 3}", "new_memory": f"text {n}", "event": "UPDATE"} for n in range(9)
    ]
    await history.batch_add_history(batch)
    await history.batch_add_history([{**one, "id": f"id {n}"} for n, one in enumerate(batch)])
    await asyncio.gather(*(history.batch_add_history([one]) for one in batch))
    undated = {"memory_id": "gone", "event": "DELETE", "created_at": None, "updated_at": None}
    await history.batch_add_history([undated])
    await history.restore("m", to=1)
    for number in range(12):
        await history.save_messages([{"role": "user", "content": str(number)}] * 2, "scope")
    await write_details(history)


async def read(history: Any) -> None:
    """Make every query."""
    now = datetime.now(UTC)
    await history.get_history("m")
    await history.get_last_messages("scope")
    assert not (await history.check()).problems
    filters: list[dict[str, Any]] = [
        {},
        {"memory_id": "m"},
        {"memory_id": ["m", "m1"]},
        {"actor_id": "ann"},
        {"role": "user"},
        {"event": "ADD"},
        {"text": "tea"},
        {"since": now - timedelta(days=1)},
        {"until": now},
    ]
    pairs = [first | second for first in filters for second in filters[-4:]]
    details: list[dict[str, Any]] = [
        {"user_id": "ann"},
        {"agent_id": "ann", "run_id": "r"},
        {"cause": {"request_id": "1"}},
        {"cause": {"why": "asked"}},
    ]
    more: tuple[dict[str, Any], ...] = (
        {},
        {"memory_id": "m"},
        {"event": "ADD", "text": "tea"},
        {"since": now},
    )
    filters += [first | second for first in details for second in more]
    for wanted in filters:
        await history.count_history(**wanted)
    orders: tuple[str, ...] = ("oldest", "newest")
    asked = [(wanted, orders) for wanted in filters]
    asked += [(wanted, orders[n % 2 :][:1]) for n, wanted in enumerate(pairs)]
    for wanted, each in asked:
        for order in each:
            query = history.query_history(**wanted, order=order, page_size=2)
            async with aclosing(query.pages()) as pages:
                for _ in ("at the start", "after a cursor"):
                    await anext(pages, None)
    async with aclosing(history.query_history(page_size=3).pages()) as pages:
        cursor = (await anext(pages)).cursor
    async for _ in history.query_history(after=cursor, page_size=3):
        pass
    for when in (now, now - timedelta(days=1)):
        async for _ in history.memories_at(when):
            pass
        await history.memory_at("m", when)
        async for _ in history.memories_at(when, user_id="ann"):
            pass
    async for _ in history.memories(user_id="ann"):
        pass
    await history.diff("m", 1, 2)
    await history.stats()
    manager = getattr(history, "_history", history)  # a wrapper that notes calls
    assert [line async for line in dump_lines(manager)]


async def follow(history: Any) -> None:
    """Follow all records, and those of one memory."""
    for memory_id in (None, "m"):
        following = history.follow(memory_id=memory_id, poll_interval_s=0.01)
        await anext(following)
        cursor = following.cursor
        await history.add_history("m", "x", "y", "UPDATE")
        async for record in history.follow(after=cursor, memory_id=memory_id):
            if record.new_memory == "y":
                break
    end = await history.end_cursor()
    task = asyncio.ensure_future(anext(history.follow(after=end)))
    await history.add_history("m", "x", "z", "UPDATE")
    await task


async def take_back(history: Any) -> None:
    """Undo and roll back."""
    now = datetime.now(UTC)
    for is_dry in (True, False):
        await history.undo(cause={"request_id": "1"}, dry_run=is_dry)
        await history.undo(run_id="r", dry_run=is_dry)
        await history.rollback(to=now - timedelta(days=1), user_id="ann", dry_run=is_dry)
        await history.rollback(to=now - timedelta(days=1), memory_ids=["m", "m1"], dry_run=is_dry)


async def remove(history: Any) -> None:
    """Erase and prune, and list what was done."""
    once = token_hex(8)  # an owner that was erased is refused afterwards
    await history.add_history(once, None, "tea", "ADD", owner={"user_id": once})
    for is_dry in (True, False):
        await history.erase(memory_ids=["m1"], reason="asked", dry_run=is_dry)
        await history.erase(memory_ids=["m", "m2"], reason="asked", dry_run=is_dry)
        await history.erase(actor_id="ann", reason="asked", dry_run=is_dry)
        await history.erase(session_scopes=["scope"], reason="asked", dry_run=is_dry)
        await history.erase(record_ids=["id 1"], reason="asked", dry_run=is_dry)
        await history.erase(user_id=once, reason="asked", dry_run=is_dry)
        for keep_last in (1, 2, 0):
            older_than = datetime.now(UTC) + timedelta(days=1)
            await history.prune(older_than=older_than, keep_last=keep_last, dry_run=is_dry)
    await history.erasures()
    done = await history.operations()
    await history.operations(before=done[-1].id, limit=1)
