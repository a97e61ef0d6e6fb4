"""The time limit of operations that follow each other."""

import asyncio
from typing import Any

import pytest

from async_history._core.concurrency.deadline import TimeLimit
from tests.support.patience import SOON_S

LONG_S = 3600.0
SHORT_S = 0.01


async def never() -> None:
    """Wait for what never happens; fail if nothing ends it."""
    try:
        async with asyncio.timeout(SOON_S):
            await asyncio.Event().wait()
    except TimeoutError:
        pytest.fail("it was not timed out")


async def test_a_body_that_takes_too_long_raises_timeout_error() -> None:
    limit = TimeLimit()
    for _ in range(2):
        with pytest.raises(TimeoutError), limit.within(SHORT_S):
            await never()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_one_timer_serves_many_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that fires while a later body has time left is set again for that body."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    call_later = loop.call_later

    def counted(delay: float, *arguments: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *arguments)

    monkeypatch.setattr(loop, "call_later", counted)
    limit = TimeLimit()
    for _ in range(100):
        with limit.within(LONG_S):
            await asyncio.sleep(0)
    assert len(delays) == 1
    with limit.within(SHORT_S):
        pass
    begun = loop.time()
    with pytest.raises(TimeoutError), limit.within(5 * SHORT_S):
        await never()
    assert loop.time() - begun >= 5 * SHORT_S


async def test_a_shorter_time_than_the_last_one_is_kept() -> None:
    limit = TimeLimit()
    with limit.within(LONG_S):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), limit.within(SHORT_S):
        await never()


async def test_between_bodies_nothing_is_cancelled() -> None:
    limit = TimeLimit()
    with limit.within(SHORT_S):
        pass
    await asyncio.sleep(3 * SHORT_S)
    with limit.within(LONG_S):
        await asyncio.sleep(0)
    limit.stop()


async def test_a_cancellation_from_outside_stays_one() -> None:
    limit = TimeLimit()

    async def body() -> None:
        with limit.within(LONG_S):
            await never()

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_same_time_as_the_timeout_stays_one() -> None:
    limit = TimeLimit()

    async def body() -> None:
        with limit.within(SHORT_S):
            try:
                await never()
            finally:
                task.cancel()

    task = asyncio.create_task(body())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_is_raised() -> None:
    with pytest.raises(OSError, match="lost"), TimeLimit().within(LONG_S):
        raise OSError("lost")
