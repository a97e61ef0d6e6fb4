"""Coalesced reads, with a read function that is slow or fails on demand."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import pytest

from async_history import StorageError, StorageUnreachable
from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.records.records import HistoryRecord
from tests.support.patience import LONG_S

AT_ONCE = 2


class Reading:
    """Notes what is read together. Each read waits until `may_end` is set.

    No read counts as long unless a test says so: the machine may be busy.
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


async def test_a_lone_read_starts_at_once_and_later_reads_share_one() -> None:
    reading = Reading()
    tasks = [reading.ask("a")]
    await turns()
    assert reading.reads == [["a"]]
    tasks += [reading.ask(name) for name in ("b", "c", "b", "d")]
    await turns()
    assert reading.reads == [["a"]], "they gather while a read is running"
    reading.may_end.set()
    found = await asyncio.gather(*tasks)
    assert reading.reads == [["a"], ["b", "c", "b", "d"]]
    assert found == [[record(name)] for name in ("a", "b", "c", "b", "d")]


async def test_calls_of_one_turn_of_the_loop_share_a_read() -> None:
    """As the callers that one commit woke. A read for the first alone would delay the others."""
    reading = Reading()
    reading.may_end.set()
    await asyncio.gather(*(reading.ask(name) for name in "abc"))
    assert reading.reads == [["a", "b", "c"]]


async def test_many_calls_are_read_in_parts() -> None:
    reading = Reading()
    reading.may_end.set()
    names = [str(n) for n in range(200)]
    found = await asyncio.gather(*(reading.gathered.of(name) for name in names))
    assert found == [[record(name)] for name in names]
    assert [name for read in reading.reads for name in read] == names
    assert len(reading.reads) > 2


async def test_a_long_read_delays_nothing_while_a_connection_is_free() -> None:
    reading = Reading(long_s=0.001)
    tasks = [reading.ask("a")]
    await turns()
    tasks += [reading.ask("b"), reading.ask("c")]
    async with asyncio.timeout(LONG_S):
        while len(reading.reads) < AT_ONCE:  # noqa: ASYNC110 - a timer starts the read
            await asyncio.sleep(0.001)
    assert reading.reads[1][0] == "b"
    tasks.append(reading.ask("d"))
    await asyncio.sleep(0.05)
    assert len(reading.reads) == AT_ONCE, "as many as there are connections, and no more"
    reading.may_end.set()
    assert [one[0].memory_id for one in await asyncio.gather(*tasks)] == ["a", "b", "c", "d"]


async def test_a_call_that_comes_during_a_long_read_does_not_wait_for_it() -> None:
    reading = Reading(long_s=0.001)
    tasks = [reading.ask("a")]
    await asyncio.sleep(0.05)
    tasks.append(reading.ask("b"))
    await turns()
    assert reading.reads == [["a"], ["b"]]
    reading.may_end.set()
    await asyncio.gather(*tasks)


async def test_an_error_of_one_call_does_not_fail_the_others() -> None:
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
async def test_a_cancelled_call_leaves_the_others_their_answer(broken: set[str]) -> None:
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


async def test_a_call_that_was_cancelled_before_is_not_read() -> None:
    reading = Reading()
    tasks = [reading.ask("x")]
    await turns()
    tasks += [reading.ask(name) for name in ("a", "b")]
    await turns()
    tasks[1].cancel()
    reading.may_end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert reading.reads == [["x"], ["b"]]


async def test_calls_that_all_fail_do_so_at_the_same_time() -> None:
    """As when a lock stays: each read takes its whole time limit."""
    reading = Reading()
    reading.may_end.set()
    reading.broken = {"a", "b", "c"}
    tasks = [reading.ask(name) for name in "abc"]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [StorageError] * 3
    assert reading.most_at_once == 3


async def test_an_unreachable_store_is_not_read_for_each_call() -> None:
    """The first read has used up the time for all attempts."""
    reading = Reading()
    reading.is_away = True
    reading.may_end.set()
    tasks = [reading.ask(name) for name in "abc"]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert reading.reads == [["a", "b", "c"]]
    assert [type(one) for one in found] == [StorageUnreachable] * 3
    assert len(set(map(id, found))) == 3


async def test_a_cancelled_read_leaves_no_call_waiting() -> None:
    """As at the end of a loop, which cancels every task."""
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


async def test_a_read_without_callers_is_cancelled() -> None:
    reading = Reading()
    tasks = [reading.ask("x")]
    await turns()
    tasks += [reading.ask(name) for name in ("a", "b")]
    tasks[0].cancel()
    await turns()
    assert reading.reads == [["x"], ["a", "b"]], "the next read begins when it has ended"
    tasks[1].cancel()
    await turns()
    reading.may_end.set()
    assert await tasks[2] == [record("b")], "a caller still waits"


async def test_a_read_that_ends_as_it_becomes_long_lets_the_next_begin() -> None:
    long_s = 0.001
    reading = Reading(long_s=long_s)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    first = reading.ask("first")
    for _ in range(3):
        await asyncio.sleep(0)
    reading.may_end.set()
    await asyncio.sleep(0)  # the read is about to end
    second = reading.ask("second")
    time.sleep(2 * long_s)  # noqa: ASYNC251 - the timer is due with the read's last step
    await asyncio.wait_for(asyncio.gather(first, second), LONG_S)
    for name in ("third", "fourth"):
        await asyncio.wait_for(reading.ask(name), LONG_S)
    assert faults == []
