"""A call that has nothing to wait for still yields to the event loop now and then."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from async_history import HistoryManager, open_history
from async_history._core.concurrency.yielding import CALLS_AT_ONCE, RECORDS_AT_ONCE
from tests.conftest import OpenStore

Call = Callable[[HistoryManager], Awaitable[object]]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def query(history: HistoryManager) -> None:
    async for _ in history.query_history():
        pass


async def states(history: HistoryManager) -> None:
    async for _ in history.memories_at(NOW):
        pass


EMPTY: dict[str, Call] = {
    "batch": lambda history: history.batch_add_history([]),
    "messages": lambda history: history.save_messages([], "scope"),
}
OF_NULL: dict[str, Call] = {
    **EMPTY,
    "add": lambda history: history.add_history("m", None, "x", "ADD"),
    "add_many": lambda history: history.batch_add_history([{"memory_id": "m", "event": "ADD"}]),
    "update": lambda history: history.update_history("m", "x"),
    "save": lambda history: history.save_messages([{"content": "x"}], "scope"),
    "get": lambda history: history.get_history("m"),
    "last": lambda history: history.get_last_messages("scope"),
    "count": lambda history: history.count_history(),
    "query": query,
    "states": states,
    "at": lambda history: history.memory_at("m", NOW),
    "diff": lambda history: history.diff("m", NOW, NOW),
    "end": lambda history: history.end_cursor(),
    "stats": lambda history: history.stats(),
    "reset": lambda history: history.reset(),
    "prune": lambda history: history.prune(older_than=timedelta()),
    "erase": lambda history: history.erase(memory_ids=["m"], reason="asked"),
    "operations": lambda history: history.operations(),
}


class Turns:
    """Counts the loop's turns."""

    def __init__(self) -> None:
        self.count = 0


@asynccontextmanager
async def counted() -> AsyncIterator[Turns]:
    turns = Turns()

    async def count() -> None:
        while True:
            turns.count += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    yield turns
    task.cancel()


async def check_turns(history: HistoryManager, call: Call) -> None:
    """Many tasks that only make calls: between two turns of the loop each makes one or a few."""
    tasks, calls = 20, 20 * CALLS_AT_ONCE
    most = made = last = 0

    async with counted() as turns:

        async def agent() -> None:
            nonlocal most, made, last
            for _ in range(calls // tasks * 2):
                await call(history)
                if turns.count != last:
                    last, made = turns.count, 0
                made += 1
                most = max(most, made)

        await asyncio.gather(*(agent() for _ in range(tasks)))
    assert most <= 2 * (CALLS_AT_ONCE + tasks)


@pytest.mark.parametrize("name", OF_NULL)
async def test_calls_on_the_null_manager_yield(name: str) -> None:
    async with open_history("null://") as history:
        await check_turns(history, OF_NULL[name])


async def test_cancelled_calls_do_not_delay_others() -> None:
    async with open_history("null://") as history:
        for _ in range(2):
            calls = [asyncio.create_task(history.get_history("m")) for _ in range(60)]
            await asyncio.sleep(0)
            for call in calls[CALLS_AT_ONCE::3]:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            left = [call.cancelled() for call in calls]
            assert left == [n in range(CALLS_AT_ONCE, 60, 3) for n in range(60)]
            assert outcomes.count([]) == left.count(False)


@pytest.mark.parametrize("name", EMPTY)
async def test_calls_that_write_nothing_yield(open_store: OpenStore, name: str) -> None:
    async with open_store() as history:
        await check_turns(history, EMPTY[name])


async def test_iterating_within_a_page_yields(open_keeping_store: OpenStore) -> None:
    many = 5 * RECORDS_AT_ONCE
    async with open_keeping_store() as history:
        await history.batch_add_history(
            [{"memory_id": f"m{n}", "new_memory": "x", "event": "ADD"} for n in range(many)]
        )

        async def follow() -> None:
            seen = 0
            async for _ in history.follow():
                seen += 1
                if seen == many:
                    return

        async def read() -> None:
            async for _ in history.query_history(page_size=many):
                pass

        async def find() -> None:
            async for _ in history.memories_at(datetime.now(UTC) + timedelta(days=1)):
                pass

        for iterate in (read, follow, find):
            async with counted() as turns:
                await iterate()
                assert turns.count >= many // RECORDS_AT_ONCE


async def test_a_cancelled_call_is_cancelled() -> None:
    async with open_history("null://") as history:
        for _ in range(CALLS_AT_ONCE):
            await history.add_history("m", None, "x", "ADD")
        task = asyncio.create_task(history.add_history("m", None, "x", "ADD"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await history.add_history("m", None, "x", "ADD")
