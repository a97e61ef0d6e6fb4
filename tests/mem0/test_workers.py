"""The worker threads of mem0's calls: `async_history.mem0._threads.workers`."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from async_history.errors import InvalidInput
from async_history.mem0 import AsyncMemory
from async_history.mem0._threads.loop_inbox import LoopInbox
from async_history.mem0._threads.workers import Workers, calling
from async_history.mem0._vectors.local_stores import in_store_thread, lock_of
from tests.mem0.fakes import InstantEmbedder, InstantStore
from tests.mem0.memories import IS_V1, Configured, MakeMemory, add, make_instant, until
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


async def test_any_number_of_calls_can_wait_at_the_same_time() -> None:
    """Each waits for all others."""
    workers = Workers(100)
    meeting = threading.Barrier(100)
    await asyncio.gather(*(workers.run(meeting.wait, LONG_S) for _ in range(100)))


async def test_threads_get_the_calls_of_an_iteration_together() -> None:
    """A thread that is woken before only contends with the loop for the GIL."""
    workers = Workers(2)
    await workers.run(int)  # its thread has started
    begun: SimpleQueue[int] = SimpleQueue()

    async def compute() -> None:
        with pytest.raises(Empty):
            begun.get(timeout=0.05)

    await asyncio.gather(*(workers.run(begun.put, number) for number in range(2)), compute())
    assert {begun.get(), begun.get()} == {0, 1}


async def test_no_more_threads_than_the_limit() -> None:
    workers = Workers(3)
    inside = 0
    seen: list[int] = []
    lock = threading.Lock()
    go_on = threading.Semaphore(0)

    def call() -> None:
        nonlocal inside
        with lock:
            inside += 1
            seen.append(inside)
        go_on.acquire(timeout=LONG_S)
        with lock:
            inside -= 1

    calls = [asyncio.ensure_future(workers.run(call)) for _ in range(12)]
    await until(lambda: len(seen) == 3)
    go_on.release(12)
    await asyncio.gather(*calls)
    assert max(seen) == 3
    assert workers.threads == 3


async def test_two_calls_of_an_iteration_get_two_threads_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first look at waiting calls would be too late for short calls."""
    monkeypatch.setattr(Workers, "_look", lambda *_: None)
    meeting = threading.Barrier(2)
    workers = Workers(2)
    await asyncio.gather(*(workers.run(meeting.wait, LONG_S) for _ in range(2)))


async def test_idle_threads_end() -> None:
    workers = Workers(20, idle_s=0.05)
    meeting = threading.Barrier(20)
    await asyncio.gather(*(workers.run(meeting.wait, LONG_S) for _ in range(20)))
    await until(lambda: workers.threads == 0)
    assert await workers.run(lambda: "again") == "again"


class StarvedQueue(SimpleQueue[Any]):
    """Its calls get their threads late, as if these waited for the GIL."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self.go_on.wait(LONG_S)
        return super().get(block, timeout)


async def test_no_thread_is_added_while_threads_wait_for_the_gil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = count_looks(monkeypatch)
    workers = Workers(20)
    workers._calls = queue = StarvedQueue()
    calls = [asyncio.ensure_future(workers.run(int)) for _ in range(20)]
    await until(lambda: len(looks) > 10)
    assert workers.threads == 2
    queue.go_on.set()
    assert set(await asyncio.gather(*calls)) == {0}


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with each look at waiting calls."""
    looks: list[None] = []
    look = Workers._look

    def counted(*arguments: Any) -> None:
        look(*arguments)
        looks.append(None)

    monkeypatch.setattr(Workers, "_look", counted)
    return looks


async def test_threads_that_a_steady_load_does_not_need_end() -> None:
    """Although each of them takes calls more often than the idle time."""
    workers = Workers(20, idle_s=0.5)
    meeting = threading.Barrier(20)
    await asyncio.gather(*(workers.run(meeting.wait, LONG_S) for _ in range(20)))
    assert workers.threads == 20

    async with asyncio.timeout(LONG_S):
        while workers.threads > 2:  # each call takes the next one
            await workers.run(int)
    assert await workers.run(lambda: "again") == "again"


class LateQueue(SimpleQueue[Any]):
    """Keeps the first waiter beyond its timeout, as CPython up to 3.12 may do."""

    is_late = True

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        is_late, self.is_late = self.is_late, False
        return super().get(block, None if is_late else timeout)


async def test_a_thread_that_waits_too_long_ends_with_the_others() -> None:
    workers = Workers(20, idle_s=0.05)
    workers._calls = LateQueue()
    meeting = threading.Barrier(20)
    calls = [asyncio.ensure_future(workers.run(meeting.wait, LONG_S)) for _ in range(19)]
    await until(lambda: workers.threads == 19)
    await asyncio.gather(workers.run(meeting.wait, LONG_S), *calls)
    workers._calls.is_late = True
    assert await workers.run(lambda: "again") == "again"
    await until(lambda: workers.threads == 0)
    assert workers._calls.empty()


async def test_memory_and_threads_are_free_after_a_load(make_memory: MakeMemory) -> None:
    """No call, result, record or thread is kept."""
    meeting = threading.Barrier(100)

    class Meeting(InstantEmbedder):
        def embed(self, *_: Any, **__: Any) -> list[float]:
            meeting.wait(LONG_S)  # needs a thread for each call
            return super().embed()

    async def traced(loads: int) -> int:
        for _ in range(loads):
            text = "likes tea" * 200
            await asyncio.gather(*(memory.update(memory_id, text) for memory_id in ids))
        await until(lambda: workers.threads == 0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with make_memory() as memory:
        ids = [await add(memory, "likes tea") for _ in range(100)]
        workers = Workers(100, idle_s=0.05)
        memory._history_call_in(workers)
        memory.embedding_model = Meeting()
        tracemalloc.start()
        try:
            before = await traced(2)
            grown = await traced(4) - before
        finally:
            tracemalloc.stop()
    assert grown < 200_000, f"{grown:,} bytes of 400 updates are kept"


@pytest.mark.parametrize("how", ["dropped", "closed", "closed on its loop"])
async def test_threads_end_with_their_memory(make_memory: MakeMemory, how: str) -> None:
    """A memory for each request leaves no thread, however long idle threads stay."""
    memory: AsyncMemory | None = make_memory()
    assert memory is not None
    workers = Workers(4, idle_s=10 * LONG_S)
    memory._history_call_in(workers)
    await asyncio.gather(*(memory.add("likes tea", user_id="u", infer=False) for _ in range(5)))
    assert workers.threads
    if how == "closed":
        await memory.aclose()
    elif how == "closed on its loop":
        memory.close()
    else:
        memory = None
    await until(lambda: (gc.collect(), not workers.threads)[1])
    assert await workers.run(lambda: "again") == "again"
    workers.end_threads()


async def test_no_thread_is_started_when_another_ends() -> None:
    """The new one would end instead, and the other would stay for the idle time."""
    workers = Workers(20, idle_s=10 * LONG_S)
    go_on = threading.Semaphore(0)
    calls = [asyncio.ensure_future(workers.run(go_on.acquire, timeout=LONG_S)) for _ in range(5)]
    await until(lambda: workers._begun == 5)
    workers.end_threads()
    await asyncio.sleep(0.1)  # many checks of waiting calls
    go_on.release(5)
    await asyncio.gather(*calls)
    await until(lambda: not workers.threads)
    assert await workers.run(lambda: "again") == "again"
    workers.end_threads()


async def test_context_variables_arguments_and_results() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def call(*arguments: int, **options: int) -> Any:
        found = variable.get(), arguments, options
        variable.set("the thread's own")
        return found

    workers = Workers()
    variable.set("here")
    assert await workers.run(call, 1, 2, three=3) == ("here", (1, 2), {"three": 3})
    assert variable.get() == "here"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt("x"), SystemExit(3)])
async def test_errors_are_raised_where_the_call_is_awaited(error: BaseException) -> None:
    def call() -> None:
        raise error

    workers = Workers(1)
    future = asyncio.ensure_future(_outcome(workers.run(call)))
    assert await future is error
    assert await workers.run(lambda: 1) == 1, "its thread continues"


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except BaseException as error:
        return error


async def test_a_stop_iteration_is_raised_as_another_error() -> None:
    with pytest.raises(RuntimeError, match="the call raised StopIteration") as raised:
        await Workers().run(next, iter(()))
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_a_call_that_is_cancelled_before_it_begins_never_begins() -> None:
    workers = Workers(1)
    held = threading.Event()
    begun: list[str] = []
    first = asyncio.ensure_future(workers.run(held.wait, LONG_S))
    second = asyncio.ensure_future(workers.run(begun.append, "second"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    held.set()
    assert await first
    await workers.run(begun.append, "third")
    assert begun == ["third"]


def test_any_number_of_loops() -> None:
    """At the same time and one after another; also a loop that closes during its call."""
    workers = Workers(4)

    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    async def use() -> int:
        loops.add(asyncio.get_running_loop())
        return sum(await asyncio.gather(*(workers.run(lambda: 1) for _ in range(50))))

    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(use()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert results == [50] * 4

    inside, held, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        inside.set()
        held.wait(LONG_S)
        ended.set()

    async def leave() -> None:
        left = asyncio.ensure_future(workers.run(call))
        await until(inside.is_set)
        left.cancel()

    asyncio.run(leave())
    held.set()
    assert ended.wait(LONG_S)
    assert asyncio.run(use()) == 50
    workers.end_threads()  # a thread may not have dropped the call yet whose result was taken
    asyncio.run(until(lambda: not workers.threads))
    gc.collect()
    assert not loops, "it keeps no loop alive"


async def test_workers_keep_nothing_alive() -> None:
    class Large:
        pass

    workers = Workers(2, idle_s=LONG_S)
    large = Large()
    held = weakref.ref(large)
    await workers.run(lambda given: None, large)
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda given: 1 / 0, large)
    del large
    await until(lambda: not gc.collect() and held() is None)  # its thread is about to drop it


async def _fork_and_use(workers: Workers) -> int:
    await workers.run(lambda: None)
    child = os.fork()
    if child == 0:
        loop = asyncio.new_event_loop()
        asyncio.events._set_running_loop(None)
        os._exit(loop.run_until_complete(workers.run(lambda: 7)))
    status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status[1])


@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_has_its_own_threads() -> None:
    workers = Workers(1)
    async with asyncio.timeout(LONG_S):
        assert await _fork_and_use(workers) == 7
    assert await workers.run(lambda: 8) == 8


_AT_EXIT = """
import asyncio, sys, threading
from async_history.mem0._threads.workers import Workers

inside, go_on = threading.Event(), threading.Event()

def call():
    inside.set()
    go_on.wait()
    print("ended", flush=True)

async def main():
    left = asyncio.ensure_future(Workers().run(call))
    while not inside.is_set():
        await asyncio.sleep(0.001)

asyncio.run(main())
print("loop closed", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), go_on.set()), daemon=True).start()
"""


@pytest.mark.subprocess
def test_a_program_ends_after_its_running_calls() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_EXIT],
        input="",
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=True,
    )
    assert done.stdout.splitlines() == ["loop closed", "ended"]


@pytest.mark.parametrize("threads", [0, -1, "4", 1.5, True])
def test_bad_numbers_of_threads_are_refused(configured: Configured, threads: Any) -> None:
    with pytest.raises(InvalidInput, match="threads"):
        AsyncMemory.from_config(configured(), threads=threads)


class _AsyncStore(InstantStore):
    """A vector store that also has coroutine functions for mem0's most frequent calls."""

    awaited: set[str]

    async def ainsert(self, **options: Any) -> Any:
        self.awaited.add("insert")
        return self.insert(**options)

    async def aupdate(self, **options: Any) -> Any:
        self.awaited.add("update")
        return self.update(**options)

    async def aget(self, **options: Any) -> Any:
        self.awaited.add("get")
        return self.get(**options)

    def keyword_search(self, **_: Any) -> None:
        """It has no keyword search."""

    async def asearch(self, **options: Any) -> Any:
        self.awaited.add("search")
        return self.search(**options)


class _AsyncEmbedder(InstantEmbedder):
    awaited: list[str]

    async def aembed(self, text: str, *_: Any, **__: Any) -> list[float]:
        self.awaited.append(text)
        return self.embed(text)


class _AsyncModel:
    """A model with coroutine functions only."""

    asked = 0

    def generate_response(self, *_: Any, **__: Any) -> str:
        raise AssertionError("called on a thread")

    async def agenerate_response(self, *_: Any, **__: Any) -> str:
        self.asked += 1
        return '{"memory": [], "facts": []}'


async def test_coroutine_functions_are_awaited(memory: AsyncMemory) -> None:
    """Their payloads are seen too: the history has the owner and metadata."""
    make_instant(memory)
    memory.vector_store = store = _AsyncStore()
    memory.embedding_model = embedder = _AsyncEmbedder()
    store.awaited, embedder.awaited = set(), []
    memory.llm = model = _AsyncModel()
    await memory.add("I like tea", user_id="u")
    assert model.asked == 1
    added = await memory.add("likes tea", user_id="u", metadata={"k": "v"}, infer=False)
    memory_id = added["results"][0]["id"]
    await memory.update(memory_id, "likes mate")
    await memory.search("tea", **({"user_id": "u"} if IS_V1 else {"filters": {"user_id": "u"}}))
    assert store.awaited == {"insert", "update", "get", "search"}
    assert {"likes tea", "likes mate"} <= set(embedder.awaited)
    changes = await memory._history_state().manager.get_history(memory_id)
    contexts = [dict(change.context or {}) for change in changes]
    assert contexts == [{"k": "v"}, {} if IS_V1 else {"k": "v"}]  # 1.0 drops them in an update
    assert [change.owner and change.owner.user_id for change in changes] == ["u", "u"]


async def test_how_many_threads_a_memory_has(make_memory: MakeMemory) -> None:
    async with make_memory(threads=1) as memory:
        await asyncio.gather(*(memory.add("likes tea", user_id="u", infer=False) for _ in range(5)))
        assert memory._history_workers is not None
        assert memory._history_workers.threads == 1


async def test_an_assigned_history_is_read_by_the_workers(make_memory: MakeMemory) -> None:
    """Not by the few threads of the event loop's executor."""

    class Own:
        def get_history(self, memory_id: str) -> list[dict[str, Any]]:
            return [{"memory_id": memory_id, "thread": threading.current_thread().name}]

        def close(self) -> None: ...

    async with make_memory() as memory:
        memory.db = Own()
        assert await memory.history("m") == [{"memory_id": "m", "thread": "async_history call"}]


async def test_a_failed_call_makes_no_reference_cycle() -> None:
    class Failed(Exception): ...

    def fail() -> None:
        raise Failed

    async def error_of_a_call() -> "weakref.ref[Failed]":
        try:  # pytest.raises would make a cycle itself
            await Workers().run(fail)
        except Failed as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        error = await error_of_a_call()
        await until(lambda: error() is None)
    finally:
        gc.enable()


async def test_calls_from_threads_and_from_the_loop_keep_their_order() -> None:
    inbox, seen = LoopInbox(), list[str]()
    for name in "ab":
        thread = threading.Thread(target=inbox.submit, args=(lambda name=name: seen.append(name),))
        thread.start()
        thread.join()
    assert not seen
    inbox.submit(lambda: seen.append("loop"))
    assert seen == ["a", "b", "loop"]
    await asyncio.sleep(0)
    assert seen == ["a", "b", "loop"]


class QdrantLocal:
    """Named as Qdrant's client names its store in this process, by which it is recognized."""


class _Client:
    def __init__(self) -> None:
        self._client = QdrantLocal()


class _LocalStore(InstantStore):
    """A store that breaks if two threads use it at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.client = _Client()
        self.inside = 0

    def keyword_search(self, **_: Any) -> None:
        return None


def _alone(function: Any) -> Any:
    @functools.wraps(function)
    def alone(self: Any, *arguments: Any, **options: Any) -> Any:
        self.inside += 1
        time.sleep(0.001)  # other calls come now, if they may
        assert self.inside == 1, f"{function.__name__} during another call"
        try:
            return function(self, *arguments, **options)
        finally:
            self.inside -= 1

    return alone


for _name in ("insert", "update", "delete", "get", "list", "search"):
    setattr(_LocalStore, _name, _alone(getattr(InstantStore, _name)))


async def test_a_store_in_this_process_is_called_by_one_thread_at_a_time(
    memory: AsyncMemory,
) -> None:
    make_instant(memory)
    memory.vector_store = store = _LocalStore()
    with contextlib.suppress(AttributeError):  # mem0 1.0 has none
        memory._entity_store = store

    async def use(number: int) -> None:
        user = f"u{number}"
        added = await memory.add("likes tea", user_id=user, infer=False)
        memory_id = added["results"][0]["id"]
        await memory.update(memory_id, "likes mate")
        await memory.get(memory_id)
        await memory.delete(memory_id)
        await memory.restore(memory_id, to=1)
        await memory.rollback(to=datetime.now(UTC), user_id=user)
        store.rows[memory_id] = {**store.rows[memory_id], "data": "likes nothing"}
        checked = await memory.check(user_id=user, repair="vector", dry_run=False)
        assert checked.differences
        await memory.forget(user_id=user, reason="asked")

    await asyncio.gather(*map(use, range(6)))
    assert store.rows == {}


@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_does_not_wait_for_its_parents_threads(memory: AsyncMemory) -> None:
    """A thread was in the vector store during the fork."""
    memory.vector_store = _LocalStore()
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        leave.wait(LONG_S)

    staying = asyncio.create_task(in_store_thread(memory, stay))
    await until(inside.is_set)
    child = os.fork()
    if child == 0:
        lock = lock_of(memory)
        os._exit(0 if lock is not None and lock.acquire(blocking=False) else 1)
    status = await asyncio.to_thread(os.waitpid, child, 0)
    leave.set()
    await staying
    assert os.waitstatus_to_exitcode(status[1]) == 0


async def test_calls_of_ours_get_the_worker_threads(memory: AsyncMemory) -> None:
    """Every public call of ours gets them, and no other code."""
    make_instant(memory).keyword_search = lambda **_: None  # type: ignore[attr-defined]
    seen: dict[str, str] = {}
    calls = "embed", "search", "get", "list"

    def noting(name: str, function: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            seen[name] = threading.current_thread().name
            return function(*arguments, **options)

        return noted

    for name in calls:
        owner = memory.embedding_model if name == "embed" else memory.vector_store
        setattr(owner, name, noting(name, getattr(owner, name)))
    added = await memory.add("likes tea", user_id="u", infer=False)
    whose: dict[str, Any] = {"user_id": "u"} if IS_V1 else {"filters": {"user_id": "u"}}
    await memory.search("tea", **whose)
    await memory.get_all(**whose)
    await memory.get(added["results"][0]["id"])
    assert seen == dict.fromkeys(calls, "async_history call")
    assert calling.get() is None


@pytest.mark.parametrize(
    "name", ["update", "delete", "delete_all", "restore", "rollback", "undo", "forget", "check"]
)
async def test_all_threads_of_the_executor_may_wait_for_operations(
    name: str, make_memory: MakeMemory
) -> None:
    """As with synchronous agents: an operation needs none of those threads."""
    async with make_memory() as first:
        ids = [
            (await first.add("tea", user_id=f"user{n}", infer=False))["results"][0]["id"]
            for n in range(2)
        ]
    # A new memory: its first operation opens the most.
    async with make_memory() as memory:
        memory.vector_store = first.vector_store
        now = datetime.now(UTC)
        operations: dict[str, Callable[[int], Coroutine[Any, Any, Any]]] = {
            "update": lambda n: memory.update(ids[n], "mate"),
            "delete": lambda n: memory.delete(ids[n]),
            "delete_all": lambda n: memory.delete_all(user_id=f"user{n}"),
            "restore": lambda n: memory.restore(ids[n], to=now),
            "rollback": lambda n: memory.rollback(user_id=f"user{n}", to=now),
            "undo": lambda n: memory.undo(cause={"run": str(n)}),
            "forget": lambda n: memory.forget(user_id=f"user{n}", reason="asked"),
            "check": lambda n: memory.check(),
        }
        loop = asyncio.get_running_loop()
        both_wait = threading.Barrier(2)

        def agent(number: int) -> None:
            both_wait.wait(LONG_S)
            asyncio.run_coroutine_threadsafe(operations[name](number), loop).result(LONG_S)

        with ThreadPoolExecutor(2) as executor:
            loop.set_default_executor(executor)
            await asyncio.gather(*(asyncio.to_thread(agent, number) for number in range(2)))
