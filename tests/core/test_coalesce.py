"""Reads that gather, with a read function that is slow or fails on demand."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from async_history import StorageError, StorageUnreachable
from async_history._core.coalesce import CoalescedReads
from async_history._core.records import HistoryRecord
from tests.support.patience import LONG_S

AT_ONCE = 2


class Reading:
    """Notes what is read together; each read waits until it is let go.

    No read takes so long that it is a long one unless a test says so: the machine may be busy.
    """

    def __init__(self, *, long_s: float = 600.0) -> None:
        self.reads: list[list[str]] = []
        self.broken: set[str] = set()
        self.is_away = False
        self.most_at_once = self._at_once = 0
        self.may_end = asyncio.Event()
        self.gathered = CoalescedReads(self.read, AT_ONCE, long_s=long_s)

    async def read(self, memory_ids: Sequence[str]) -> Mapping[str, list[HistoryRecord]]:
        self.reads.append(list(memory_ids))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.may_end.wait()
        await asyncio.sleep(0)
        self._at_once -= 1
        if self.is_away:
            raise StorageUnreachable("away")
        if self.broken & set(memory_ids):
            raise StorageError(f"broken: {self.broken}")
        return {memory_id: [record(memory_id)] for memory_id in memory_ids}

    def ask(self, memory_id: str) -> "asyncio.Task[list[HistoryRecord]]":
        return asyncio.create_task(self.gathered.of(memory_id))


def record(memory_id: str) -> HistoryRecord:
    return HistoryRecord("id", memory_id, None, "text", "ADD")


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_read_goes_at_once_and_a_crowd_together() -> None:
    reading = Reading()
    tasks = [reading.ask("a")]
    await turns()
    assert reading.reads == [["a"]]
    tasks += [reading.ask(name) for name in ("b", "c", "b", "d")]
    await turns()
    assert reading.reads == [["a"]], "they gather as long as a read is under way"
    reading.may_end.set()
    found = await asyncio.gather(*tasks)
    assert reading.reads == [["a"], ["b", "c", "b", "d"]]
    assert found == [[record(name)] for name in ("a", "b", "c", "b", "d")]


async def test_who_asks_in_the_same_turn_of_the_loop_is_read_together() -> None:
    """As those whom one commit woke: a read for the first alone would keep the others waiting."""
    reading = Reading()
    reading.may_end.set()
    await asyncio.gather(*(reading.ask(name) for name in "abc"))
    assert reading.reads == [["a", "b", "c"]]


async def test_a_crowd_is_read_in_parts() -> None:
    reading = Reading()
    reading.may_end.set()
    names = [str(n) for n in range(200)]
    found = await asyncio.gather(*(reading.gathered.of(name) for name in names))
    assert found == [[record(name)] for name in names]
    assert [name for read in reading.reads for name in read] == names
    assert len(reading.reads) > 2


async def test_nobody_waits_for_a_long_read_as_long_as_there_is_a_connection() -> None:
    reading = Reading(long_s=0.001)
    tasks = [reading.ask("a")]
    await turns()
    tasks += [reading.ask("b"), reading.ask("c")]
    async with asyncio.timeout(LONG_S):
        while len(reading.reads) < AT_ONCE:  # noqa: ASYNC110 - a timer begins it
            await asyncio.sleep(0.001)
    assert reading.reads[1][0] == "b"
    tasks.append(reading.ask("d"))
    await asyncio.sleep(0.05)
    assert len(reading.reads) == AT_ONCE, "as many as there are connections, and no more"
    reading.may_end.set()
    assert [one[0].memory_id for one in await asyncio.gather(*tasks)] == ["a", "b", "c", "d"]


async def test_who_comes_when_a_read_is_long_already_does_not_wait_for_it() -> None:
    reading = Reading(long_s=0.001)
    tasks = [reading.ask("a")]
    await asyncio.sleep(0.05)
    tasks.append(reading.ask("b"))
    await turns()
    assert reading.reads == [["a"], ["b"]]
    reading.may_end.set()
    await asyncio.gather(*tasks)


async def test_what_fails_for_one_is_read_for_the_others() -> None:
    reading = Reading()
    reading.may_end.set()
    reading.broken = {"b"}
    tasks = [reading.ask(name) for name in ("x", "a", "b", "c")]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in found if not isinstance(one, StorageError)] == [
        [record("x")],
        [record("a")],
        [record("c")],
    ]
    assert isinstance(found[2], StorageError)


@pytest.mark.parametrize("broken", [set(), {"a"}], ids=["fine", "broken"])
async def test_who_is_cancelled_leaves_the_others_their_answer(broken: set[str]) -> None:
    reading = Reading()
    reading.broken = broken
    tasks = [reading.ask("x")]
    await turns()
    tasks += [reading.ask(name) for name in ("a", "b")]
    await turns()
    tasks[0].cancel()
    tasks[1].cancel()
    await turns()
    reading.may_end.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found[:2]] == [asyncio.CancelledError] * 2
    assert found[2] == [record("b")]


async def test_nobody_is_read_for_who_was_cancelled_before() -> None:
    reading = Reading()
    tasks = [reading.ask("x")]
    await turns()
    tasks += [reading.ask(name) for name in ("a", "b")]
    await turns()
    tasks[1].cancel()
    reading.may_end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert reading.reads == [["x"], ["b"]]


async def test_where_all_fail_nobody_waits_for_the_others_failures() -> None:
    """As behind a lock that stays: each read takes as long as it may."""
    reading = Reading()
    reading.may_end.set()
    reading.broken = {"a", "b", "c"}
    tasks = [reading.ask(name) for name in "abc"]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [StorageError] * 3
    assert reading.most_at_once == 3


async def test_a_store_that_is_away_is_not_asked_for_each_of_them() -> None:
    """That has taken the time for all tries already."""
    reading = Reading()
    reading.is_away = True
    reading.may_end.set()
    tasks = [reading.ask(name) for name in "abc"]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert reading.reads == [["a", "b", "c"]]
    assert [type(one) for one in found] == [StorageUnreachable] * 3
    assert len(set(map(id, found))) == 3


async def test_a_read_that_is_cancelled_leaves_nobody_waiting() -> None:
    """As when a loop ends, and cancels every task there is."""
    reading = Reading()
    asked = [reading.ask("a")]
    await turns()
    asked.append(reading.ask("b"))
    await turns()
    for task in asyncio.all_tasks() - {asyncio.current_task(), asked[0], asked[1]}:
        task.cancel()
    await asyncio.wait(asked[:1], timeout=LONG_S)
    assert asked[0].cancelled()
    reading.may_end.set()
    assert await asyncio.wait_for(asked[1], LONG_S) == [record("b")]


async def test_a_read_that_nobody_waits_for_is_cancelled() -> None:
    reading = Reading()
    tasks = [reading.ask("x")]
    await turns()
    tasks += [reading.ask(name) for name in ("a", "b")]
    tasks[0].cancel()
    await turns()
    assert reading.reads == [["x"], ["a", "b"]], "the next begins when it has ended"
    tasks[1].cancel()
    await turns()
    reading.may_end.set()
    assert await tasks[2] == [record("b")], "somebody waits still"
