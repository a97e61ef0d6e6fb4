"""Where `recording` applies: the table of the guide on owners, row by row."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from async_history import (
    HistoryManager,
    HistoryRecord,
    InvalidInput,
    JsonLines,
    copy_history,
    dump_lines,
    open_history,
    recording,
)

pytestmark = pytest.mark.once

CAUSE = {"request_id": "q"}


@pytest.fixture
async def history() -> AsyncIterator[HistoryManager]:
    async with open_history("memory://") as history:
        yield history


async def change(history: HistoryManager) -> HistoryRecord:
    return await history.add_history("m", None, "x", "ADD")


async def test_it_applies_in_tasks_and_their_threads(history: HistoryManager) -> None:
    loop = asyncio.get_running_loop()

    def in_thread() -> HistoryRecord:
        return asyncio.run_coroutine_threadsafe(change(history), loop).result()

    with recording(cause=CAUSE):
        late = asyncio.ensure_future(_after_a_turn(history))
        made = [
            await change(history),
            await asyncio.create_task(change(history)),
            await asyncio.to_thread(in_thread),
            await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(change, history)),
        ]
        async with anyio.create_task_group() as group:

            async def within() -> None:
                made.append(await change(history))

            group.start_soon(within)
        called = loop.create_future()
        loop.call_soon(lambda: called.set_result(asyncio.ensure_future(change(history))))
    made += [await late, await (await called)]
    assert [record.cause for record in made] == [CAUSE] * 7
    assert (await change(history)).cause is None


async def _after_a_turn(history: HistoryManager) -> HistoryRecord:
    await asyncio.sleep(0.01)
    return await change(history)


async def test_an_executor_needs_a_copied_context(history: HistoryManager) -> None:
    loop = asyncio.get_running_loop()

    def in_thread() -> HistoryRecord:
        return asyncio.run_coroutine_threadsafe(change(history), loop).result()

    with recording(cause=CAUSE), ThreadPoolExecutor(1) as executor:
        plain = await loop.run_in_executor(executor, in_thread)
        copied = await loop.run_in_executor(executor, copy_context().run, in_thread)
    assert (plain.cause, copied.cause) == (None, CAUSE)


async def test_it_does_not_apply_to_tasks_started_before(history: HistoryManager) -> None:
    work: asyncio.Queue[Callable[[], object]] = asyncio.Queue()
    made: list[HistoryRecord] = []

    async def worker() -> None:
        await work.get()
        made.append(await change(history))

    working = asyncio.create_task(worker())
    await asyncio.sleep(0)
    with recording(cause=CAUSE):
        work.put_nowait(print)
        await working
    assert made[0].cause is None


async def test_a_generator_that_yields_inside(history: HistoryManager) -> None:
    async def items() -> AsyncGenerator[int]:
        with recording(cause=CAUSE):
            yield 1

    async with contextlib.aclosing(items()) as given:
        await anext(given)
        assert (await change(history)).cause == CAUSE
    assert (await change(history)).cause is None


def test_a_generator_that_another_context_closes_raises() -> None:
    def items() -> Generator[int]:
        with recording(cause=CAUSE):
            yield 1

    given = items()
    copy_context().run(next, given)  # the cause stays in this context
    failed: list[BaseException] = []

    def close() -> None:
        try:
            given.close()
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert len(failed) == 1


def keys(prefix: str, count: int) -> dict[str, str]:
    return {f"{prefix}{number}": "v" for number in range(count)}


async def test_causes_that_are_joined_have_no_more_keys_than_one(history: HistoryManager) -> None:
    """However a cause is merged, the record can be read back from JSON lines."""
    undone, two = {"request_id": "1"}, keys("c", 2)
    await history.add_history("m", None, "w", "ADD", cause=undone)
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: history.add_history("m", None, "x", "ADD", cause=two),
        lambda: history.update_history("m", "x", cause=two),
        lambda: history.batch_add_history([{"memory_id": "b", "event": "ADD", "cause": two}]),
        lambda: history.undo(cause=undone),  # its own keys are `undo` and `undo_of`
    )
    too_many = pytest.raises(InvalidInput, match="at most 32 keys, and has 33")
    with recording(cause=keys("a", 31)):
        with too_many, recording(cause=two):
            pytest.fail("the inner cause was taken")
        for call in calls:
            with too_many:
                await call()
        with recording(cause=keys("c", 1)):
            await history.add_history("full", None, "x", "ADD", cause=keys("c", 1))
    assert await history.count_history() == 2
    (full,) = await history.get_history("full")
    assert full.cause == {**keys("a", 31), **keys("c", 1)}
    lines = [line async for line in dump_lines(history)]
    async with open_history("memory://") as other:
        assert (await copy_history(JsonLines(lines), other)).written == 2
