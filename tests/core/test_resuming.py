"""A committed batch resumes its callers' tasks itself, without a callback of the loop for each."""

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from async_history import StorageFull
from async_history._core.writing.committed_batch import CommittedBatch
from async_history._core.writing.wakeups import SLICE, WAKEUP_BATCH_MIN, WakeupScheduler
from async_history._core.writing.writer import GroupCommitWriter
from tests.core.writers import Item, Store, pending_calls, turn
from tests.support.patience import LONG_S


async def waiting(call: "asyncio.Future[None]", n: int, woken: list[int]) -> None:
    await call
    woken.append(n)


async def test_outside_of_tasks_callers_run_before_the_batch_returns() -> None:
    calls = pending_calls(3)
    woken: list[int] = []
    tasks = [asyncio.ensure_future(waiting(call, n, woken)) for n, call in enumerate(calls)]
    await turn()
    calls[1].set_exception(StorageFull("full"))
    batch = CommittedBatch(list(calls), {}, lambda *_: None)
    done: list[bool] = []

    def settle() -> None:
        done.append(batch.settle(2))
        assert woken == [0]
        done.append(batch.settle(2))
        assert woken == [0, 2]

    asyncio.get_running_loop().call_soon(settle)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert done == [True, False]
    assert [type(result) for result in results] == [type(None), StorageFull, type(None)]


async def test_within_a_task_callers_run_in_the_next_turn() -> None:
    calls = pending_calls(2)
    woken: list[int] = []
    tasks = [asyncio.ensure_future(waiting(call, n, woken)) for n, call in enumerate(calls)]
    await turn()
    assert not CommittedBatch(list(calls), {}, lambda *_: None).settle(2)
    assert woken == []
    await asyncio.gather(*tasks)
    assert woken == [0, 1]


async def test_each_caller_runs_in_its_own_context() -> None:
    calls = pending_calls(3)
    number = ContextVar("number", default=-1)

    async def wait(n: int) -> int:
        number.set(n)
        await calls[n]
        return number.get()

    tasks = [asyncio.ensure_future(wait(n)) for n in range(3)]
    await turn()
    batch = CommittedBatch(list(calls), {}, lambda *_: None)
    asyncio.get_running_loop().call_soon(batch.settle, 3)
    assert await asyncio.gather(*tasks) == [0, 1, 2]


async def test_what_was_to_be_called_earlier_is_called_earlier() -> None:
    """An observer's span, or a turn that passes on, ends before the caller continues."""
    (call,) = pending_calls(1)
    woken: list[int] = []
    call.add_done_callback(lambda _: woken.append(0))
    task = asyncio.ensure_future(waiting(call, 1, woken))
    await turn()
    call.add_done_callback(lambda _: woken.append(2))
    batch = CommittedBatch([call], {}, lambda *_: None)
    asyncio.get_running_loop().call_soon(batch.settle, 1)
    await task
    await turn()
    assert woken == [0, 1, 2]


async def test_what_was_removed_is_not_called() -> None:
    (call,) = pending_calls(1)
    woken: list[object] = []
    call.add_done_callback(woken.append, context=copy_context())
    call.add_done_callback(woken.append)
    assert call.remove_done_callback(woken.append) == 2
    assert call.remove_done_callback(woken.append) == 0
    batch = CommittedBatch([call], {}, lambda *_: None)
    asyncio.get_running_loop().call_soon(batch.settle, 1)
    await turn()
    assert call.done()
    assert woken == []


async def test_callers_are_woken_while_one_of_them_runs_the_loop() -> None:
    """As nest_asyncio lets it."""
    calls = pending_calls(3 * SLICE)
    woken: list[int] = []
    seen: list[int] = []

    async def run_loop() -> None:
        await calls[0]
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        asyncio.tasks._leave_task(loop, task)
        try:
            for _ in range(3):
                run_what_is_ready(loop)
        finally:
            asyncio.tasks._enter_task(loop, task)
        seen.extend(woken)

    tasks = [asyncio.ensure_future(run_loop())]
    tasks += [asyncio.ensure_future(waiting(call, n, woken)) for n, call in enumerate(calls) if n]
    await turn()
    scheduler = WakeupScheduler[CommittedBatch[Item]](CommittedBatch.settle)
    batch = CommittedBatch(calls, {}, lambda *_: None)
    count = len(calls)
    asyncio.get_running_loop().call_soon(
        lambda: scheduler.add(batch, callers=count, next_callers=0)
    )
    await asyncio.gather(*tasks)
    assert seen == woken == list(range(1, count))
    assert scheduler.is_idle


def run_what_is_ready(loop: asyncio.AbstractEventLoop) -> None:
    """Run the callbacks of the loop's current iteration from within one of them."""
    ready = loop._ready  # type: ignore[attr-defined]
    for _ in range(len(ready)):
        loop.call_soon(int)  # in its place: the iteration has counted its callbacks
        handle = ready.popleft()
        if not handle.cancelled():
            handle._run()


@pytest.mark.parametrize("callers", [5, WAKEUP_BATCH_MIN + 1])
def test_an_exception_that_stops_the_loop_stops_no_other_caller(callers: int) -> None:
    """As Ctrl-C in a caller's line; the loop runs again to end its tasks."""
    woken: list[int] = []

    async def write(writer: GroupCommitWriter[Item], n: int) -> None:
        await writer.submit(Item(str(n)))
        woken.append(n)
        if n % 2:
            raise KeyboardInterrupt

    async def begin() -> tuple[Store, GroupCommitWriter[Item], list[asyncio.Task[None]]]:
        store = Store()
        writer = GroupCommitWriter(store.commit, finish=store.finish)
        tasks = [asyncio.create_task(write(writer, n)) for n in range(callers)]
        await store.begun.wait()
        store.gate.set()
        return store, writer, tasks

    with asyncio.Runner() as runner:
        _, writer, tasks = runner.run(begin())
        interrupted = 0
        ends = runner.get_loop().create_task(asyncio.wait(tasks, timeout=LONG_S))
        while not ends.done():
            try:
                runner.get_loop().run_until_complete(ends)
            except KeyboardInterrupt:
                interrupted += 1
        assert sorted(woken) == list(range(callers))
        assert interrupted == callers // 2
        for task in tasks:
            task.exception()
        runner.run(writer.aclose(LONG_S))
