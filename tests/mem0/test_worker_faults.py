"""The worker threads if none can start, or if a signal handler's exception comes between."""

import asyncio
import threading
from queue import SimpleQueue

import pytest

from async_history.errors import StorageError
from async_history.mem0._threads.workers import Workers
from tests.mem0.memories import until
from tests.support.line_faults import fault_at_line
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


class ThreadLimit:
    """The number of threads that may still start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if not self.left:
                raise RuntimeError("can't start new thread")
            self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> ThreadLimit:
    return ThreadLimit(monkeypatch)


async def test_calls_without_any_thread_get_an_error(limit: ThreadLimit) -> None:
    """And the next ones a thread if the system has one again."""
    workers = Workers(1)
    for _ in range(2):
        calls = (asyncio.wait_for(workers.run(int), LONG_S) for _ in range(3))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, StorageError) for error in errors), errors
        assert len({id(error) for error in errors}) == 3, "each its own"
    assert not workers.threads
    limit.left = 1
    assert await asyncio.wait_for(workers.run(int), LONG_S) == 0


@pytest.mark.parametrize("left", [1, 2])
async def test_calls_wait_for_the_threads_that_could_start(limit: ThreadLimit, left: int) -> None:
    """`left` is 1: the first thread cannot start the second; 2: a look at waiting calls cannot."""
    workers = Workers(10)
    limit.left = left
    go_on = threading.Semaphore(0)
    calls = [asyncio.ensure_future(workers.run(go_on.acquire, timeout=LONG_S)) for _ in range(5)]
    await until(lambda: workers._begun == left)
    await asyncio.sleep(0.05)  # looks
    assert workers.threads == left
    limit.left = 8
    await until(lambda: workers._begun == 5)
    go_on.release(5)
    assert all(await asyncio.wait_for(asyncio.gather(*calls), LONG_S))


NAMES = ["_hand_over", "_look_later", "_look", "_start", "deliver"]
"""Not `_add_threads`: tracing can raise between a `with` block and its lock's release, which a
signal handler cannot."""


@pytest.mark.parametrize("name", NAMES)
async def test_no_call_is_lost_or_repeated_by_an_exception_at_any_line(name: str) -> None:
    """Three calls need three threads; those beyond the second are added by a look."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # asyncio logs them
    path = Workers.run.__code__.co_filename
    nth, ended = 0, False
    while not ended:
        nth += 1
        workers = Workers(3)
        begun: SimpleQueue[int] = SimpleQueue()
        meeting = threading.Barrier(3)
        with fault_at_line(
            nth, of=lambda code: code.co_name == name and code.co_filename == path
        ) as fault:
            calls = [asyncio.create_task(meet(workers, begun, meeting, n)) for n in range(3)]
            await asyncio.wait(calls, timeout=LONG_S)
        ended = fault.line is None
        assert [call.done() and call.result() for call in calls] == [0, 1, 2], fault.line
        later = meet(workers, begun, threading.Barrier(1), 3)
        assert await asyncio.wait_for(later, LONG_S) == 3, fault.line
        assert sorted(begun.get() for _ in range(begun.qsize())) == [0, 1, 2, 3], fault.line
        workers.end_threads()
    assert nth > 2


async def meet(
    workers: Workers, begun: SimpleQueue[int], meeting: threading.Barrier, number: int
) -> int:
    def call() -> int:
        begun.put(number)
        meeting.wait(LONG_S)
        return number

    done: int = await workers.run(call)
    return done
