"""Turns between processes on PostgreSQL: advisory locks, whichever process or connection ends."""

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from async_history import (
    HistoryManager,
    InvalidInput,
    StorageError,
    StorageLocked,
    StorageReadOnly,
    open_history,
)
from async_history._core.locking import lock_session
from async_history._core.locking.session_locks import SessionLocks
from async_history.mem0 import AsyncMemory, Memory
from async_history.mem0._turns.store_turns import turns_of
from async_history.mem0._turns.turn_queues import TurnQueues
from async_history.mem0._turns.turns import Turns, number_of
from benchmarks._processes import update_together
from tests.conftest import stores
from tests.mem0.memories import Configured, MakeMemory, add, make_instant
from tests.mem0.turns import Together, taken
from tests.subprocesses.turns import Holder
from tests.support.patience import LONG_S
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


@pytest.fixture
def url(new_schema: Callable[[], str]) -> str:
    return new_schema()


Side = Callable[[], tuple[Turns, SessionLocks]]


@pytest.fixture
async def side(url: str) -> AsyncIterator[Side]:
    """Makes the turns of another process."""
    made = []

    def new() -> tuple[Turns, SessionLocks]:
        locks = locks_of(open_history(url))
        made.append(locks)
        return Turns(TurnQueues(locks)), locks

    yield new
    for locks in made:
        if locks._thread is not None:
            locks._thread.stop()
            await asyncio.to_thread(locks._thread.join)


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Any]:
    """A separate connection."""
    connection = await asyncpg.connect(url.partition("?")[0] + without_schema(url))
    yield connection
    connection.terminate()


def without_schema(url: str) -> str:
    kept = [part for part in url.partition("?")[2].split("&") if not part.startswith("schema=")]
    return f"?{'&'.join(kept)}" if kept else ""


def locks_of(thing: HistoryManager | AsyncMemory | Memory) -> SessionLocks:
    """Return new turns of a manager, or the turns of a memory."""
    if isinstance(thing, HistoryManager):
        locks = thing.backend.new_locks()
    elif isinstance(thing, Memory):
        locks = thing._history_recorder._turns.queues._locks
    else:
        locks = thing._history_states._turns.queues._locks
    assert isinstance(locks, SessionLocks)
    return locks


Either = tuple[Any, Callable[..., Any]]


@pytest.fixture(params=["async", "sync"])
async def either(
    request: pytest.FixtureRequest, url: str, configured: Configured
) -> AsyncIterator[Either]:
    """An AsyncMemory or a Memory, and a function that calls a method by name."""
    kind = AsyncMemory if request.param == "async" else Memory
    memory = kind.from_config(configured(), history=url)
    make_instant(memory)

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(memory, name)
        if isinstance(memory, AsyncMemory):
            return await method(*arguments, **options)
        return await asyncio.to_thread(method, *arguments, **options)

    yield memory, call
    await call("aclose" if isinstance(memory, AsyncMemory) else "close")


SESSIONS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"


async def sessions(admin: Any) -> set[int]:
    """Return the processes that hold locks of turns, without those of transactions."""
    return {pid for (pid,) in await admin.fetch(SESSIONS)}


async def only_session(admin: Any) -> int:
    """Return the process that holds locks of turns, once those of earlier tests have ended."""
    async with asyncio.timeout(LONG_S):
        while len(found := await sessions(admin)) != 1:  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0)
    return found.pop()


async def asked(locks: SessionLocks) -> None:
    """Return when a lock was refused to a waiting process."""
    session = locks._session
    while session is None or not any(request.at for request in list(session._requests.values())):
        await asyncio.sleep(0)
        session = locks._session


@contextlib.contextmanager
def holding(url: str, *, forks: bool = False) -> Iterator[Holder]:
    """Another process has the turn of the memory "m"."""
    holder = Holder(url, forks=forks)
    try:
        yield holder
    finally:
        holder.end()


class TestBetweenProcesses:
    @pytest.mark.subprocess
    @pytest.mark.parametrize("end", ["leaves", "dies", "dies, and its forked child lives"])
    async def test_another_waits_until_it_leaves_or_dies(
        self, url: str, side: Side, end: str
    ) -> None:
        turns, locks = side()
        with holding(url, forks="child" in end) as holder:
            await taken(turns, "another memory")
            waiting = asyncio.create_task(taken(turns))
            await asked(locks)
            assert not waiting.done()
            if end == "leaves":
                holder.go_on()
                holder.says("left it")
            else:
                holder.die()
            await asyncio.wait_for(waiting, LONG_S)
            assert turns.queues.is_idle

    @pytest.mark.subprocess
    async def test_a_thread_waits_for_another_process(self, url: str, side: Side) -> None:
        turns, locks = side()
        has_it = threading.Event()

        def take() -> None:
            with turns.of("m", "store"):
                has_it.set()

        with holding(url) as holder:
            thread = threading.Thread(target=take)
            thread.start()
            await asked(locks)
            assert not has_it.is_set()
            holder.die()
            assert await asyncio.to_thread(has_it.wait, LONG_S)
            thread.join()

    @pytest.mark.subprocess
    async def test_waiting_for_a_stopped_process_raises_in_the_end(
        self, url: str, side: Side
    ) -> None:
        _, locks = side()
        turns = Turns(TurnQueues(locks, timeout_s=0.2))
        late = pytest.raises(StorageLocked, match="another process has had this memory's turn")
        with holding(url), late:
            await taken(turns)
        assert turns.queues.is_idle

    async def test_a_turn_is_kept_until_the_acks(self, side: Side) -> None:
        (mine, _), (others, locks) = side(), side()
        ack = asyncio.get_running_loop().create_future()
        async with mine.of("m", "store") as turn:
            turn.acks.append(ack)
        waiting = asyncio.create_task(taken(others))
        await asked(locks)
        assert not waiting.done()
        ack.set_result(None)
        await asyncio.wait_for(waiting, LONG_S)
        assert mine.queues.is_idle
        assert others.queues.is_idle

    async def test_a_process_that_never_pauses_lets_others_in(self, side: Side) -> None:
        (mine, _), (others, _) = side(), side()
        has_begun, got_in = asyncio.Event(), asyncio.Event()

        async def never_pausing() -> None:
            while not got_in.is_set():
                await taken(mine)
                has_begun.set()

        async def other() -> None:
            async with others.of("m", "store"):
                got_in.set()

        busy = [asyncio.create_task(never_pausing()) for _ in range(5)]
        await has_begun.wait()
        await asyncio.wait_for(other(), LONG_S)
        await asyncio.gather(*busy)

    async def test_several_memories_in_any_order(self, side: Side) -> None:
        sides = [side()[0] for _ in range(3)]
        together = {memory_id: Together() for memory_id in "abc"}
        chance = random.Random(3)  # noqa: S311 - a test

        async def many(turns: Turns) -> None:
            loop = asyncio.get_running_loop()
            for memory_id in chance.choices("abc", k=12):
                async with turns.of(memory_id, "store") as turn:
                    with together[memory_id].one_more():
                        ack = loop.create_future()
                        turn.acks.append(ack)
                        await asyncio.sleep(0)
                        loop.call_later(0.001, ack.set_result, None)
            await ack
            await asyncio.sleep(0)  # its callbacks

        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*(many(turns) for turns in sides for _ in range(3)))
        assert {one.most for one in together.values()} == {1}
        assert all(turns.queues.is_idle for turns in sides)

    async def test_time_that_passes_between_two_looks_skips_no_waiter(
        self, side: Side, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a busy machine a lock becomes due between two reads of the clock."""
        clock = itertools.count(1_000.0, 0.0015)
        monkeypatch.setattr(lock_session, "monotonic", lambda: next(clock))
        (mine, _), (others, locks) = side(), side()

        async def one(turns: Turns) -> None:
            for _ in range(20):
                await taken(turns)

        async with mine.of("m", "store"):
            waiting = asyncio.create_task(one(others))
            await asked(locks)
        await asyncio.wait_for(asyncio.gather(waiting, one(mine)), LONG_S)

    async def test_a_cancelled_task_leaves_no_lock(self, side: Side, admin: Any) -> None:
        """Cancelled while it waits, as its turn comes, or while it has it."""
        (turns, _), (others, _) = side(), side()
        chance = random.Random(7)  # noqa: S311 - a test
        for _ in range(40):
            tasks = [asyncio.create_task(taken(turns, "m")) for _ in range(3)]
            tasks.append(asyncio.create_task(taken(others, "m")))
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
            chance.choice(tasks).cancel()
            await asyncio.wait(tasks)
        assert turns.queues.is_idle
        assert others.queues.is_idle
        async with asyncio.timeout(LONG_S):
            while await sessions(admin):  # noqa: ASYNC110 - a lock is released soon after
                await asyncio.sleep(0)

    async def test_each_schema_has_its_own_turns(
        self, side: Side, new_schema: Callable[[], str]
    ) -> None:
        turns, _ = side()
        locks = open_history(new_schema()).backend.new_locks()
        async with turns.of("m", "store"):
            await asyncio.wait_for(taken(Turns(TurnQueues(locks))), LONG_S)

    async def test_more_memories_than_locks_at_a_time(self, side: Side) -> None:
        turns, locks = side()
        locks.most_locks = 3
        most = 0
        three_have_theirs = asyncio.Barrier(3)

        async def one(number: int) -> None:
            nonlocal most
            async with turns.of(str(number), "store"):
                assert locks._session is not None
                await three_have_theirs.wait()
                most = max(most, len(locks._session._held_since))

        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*(one(number) for number in range(51)))
        assert most == 3


class TestLostConnections:
    async def test_a_lost_lock_that_no_other_took_is_taken_again(
        self, side: Side, admin: Any
    ) -> None:
        turns, locks = side()
        number = number_of("m")
        async with turns.of("m", "store") as turn:
            lost = await only_session(admin)
            await admin.fetchval("SELECT pg_terminate_backend($1)", lost)
            async with asyncio.timeout(LONG_S):
                while await sessions(admin) in (set(), {lost}):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                while locks.is_lost(number):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            turn.require_kept()
            others, its_locks = side()
            waiting = asyncio.create_task(taken(others))
            await asked(its_locks)
            assert not waiting.done()
        await asyncio.wait_for(waiting, LONG_S)

    async def test_a_lost_lock_that_another_took_is_noticed_before_the_change(
        self, url: str, admin: Any, either: Either, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory, call = either
        made = await call("add", "tea", user_id="u", infer=False)
        memory_id = made["results"][0]["id"]
        store = memory.vector_store
        get = store.get
        loop = asyncio.get_running_loop()

        def held(vector_id: str) -> Any:
            asyncio.run_coroutine_threadsafe(steal(), loop).result(LONG_S)
            return get(vector_id)

        async def steal() -> None:
            store.get = get
            locks = locks_of(memory)
            key = locks._of(number_of(memory_id))
            pid = await only_session(admin)
            waiting = asyncio.ensure_future(admin.execute("SELECT pg_advisory_lock($1)", key))
            # It asks for the lock before that is lost, so that it gets it first.
            other = await asyncpg.connect(url.partition("?")[0] + without_schema(url))
            while not await other.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                pass
            await other.fetchval("SELECT pg_terminate_backend($1)", pid)
            await waiting
            await other.close()
            assert locks._session is not None
            while not locks._session._taken_by_others:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)

        store.get = held
        with pytest.raises(StorageLocked, match="the lock of this memory's turn was lost"):
            await call("update", memory_id, "mate")
        assert store.rows[memory_id]["data"] == "tea"
        assert any("other processes have taken 1 of them" in each for each in caplog.messages)
        await admin.execute("SELECT pg_advisory_unlock_all()")
        await call("update", memory_id, "mate")
        history = await call("history", memory_id)
        assert [each["new_memory"] for each in history] == ["tea", "mate"]

    async def test_an_unreachable_server_is_noticed_before_the_change(
        self, make_memory: MakeMemory, url: str
    ) -> None:
        async with make_memory(history=url, acquire_timeout_s=1.0) as memory:
            memory_id = await add(memory, "tea")
            locks = locks_of(memory)
            away = open_history("postgresql://owner@127.0.0.1:9/none", retry_timeout_s=0.2)
            locks._options = locks_of(away)._options
            with pytest.raises(StorageError):
                await memory.update(memory_id, "mate")
            with pytest.raises(
                StorageError
            ):  # where mem0 only counts the memories that it could not delete
                await memory.delete_all(user_id="u")
            assert memory.vector_store.rows[memory_id]["data"] == "tea"


class TestOfAMemory:
    @pytest.mark.parametrize("end", ["closed", "dropped"])
    async def test_the_connection_closes_with_its_memory(
        self, end: str, url: str, admin: Any, make_memory: MakeMemory
    ) -> None:
        begun = set(threading.enumerate())
        memory = make_memory(history=url)
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        assert turns_of(open_history(url)).queues is memory._history_states._turns.queues
        if end == "closed":
            await memory.aclose()
        else:
            del memory
        async with asyncio.timeout(LONG_S):
            while any("blocking" in each.name for each in set(threading.enumerate()) - begun):
                gc.collect()
                await asyncio.sleep(0)

    @pytest.mark.subprocess
    async def test_turns_between_processes_can_be_turned_off(
        self, url: str, make_memory: MakeMemory, configured: Configured
    ) -> None:
        with holding(url):
            for where in (url, None):
                memory = make_memory(history=where, turns_between_processes=False)
                async with memory:
                    memory_id = await add(memory, "tea")
                    async with memory._history_states._turns.of("m", "store"):
                        pass
                    await memory.update(memory_id, "mate")
            assert not list(Path(configured()["history_db_path"]).parent.glob("*-turns"))
        kind: Any
        for kind in (AsyncMemory, Memory):
            with pytest.raises(InvalidInput, match="turns_between_processes must be True or"):
                kind.from_config(configured(), turns_between_processes="no")

    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_behind_a_pooler_it_warns_that_turns_hold_within_the_process(
        self,
        kind: str,
        pooled: str,
        url: str,
        configured: Configured,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        through = f"{pooled}{'&' if '?' in pooled else '?'}schema={url.rpartition('=')[2]}"
        caplog.set_level(logging.WARNING, "async_history")
        memory = (AsyncMemory if kind == "async" else Memory).from_config(
            configured(), history=through
        )
        make_instant(memory)

        async def call(name: str, *arguments: Any, **options: Any) -> Any:
            method = getattr(memory, name)
            if kind == "async":
                return await method(*arguments, **options)
            return await asyncio.to_thread(method, *arguments, **options)

        made = await call("add", "0", user_id="u", infer=False)
        memory_id = made["results"][0]["id"]
        await asyncio.gather(*(call("update", memory_id, str(n)) for n in range(1, 9)))
        history = await call("history", memory_id)
        assert [one["old_memory"] for one in history[1:]] == [
            one["new_memory"] for one in history[:-1]
        ]
        (said,) = [each for each in caplog.messages if "pooler" in each]
        assert "within this process only" in said
        await (memory.aclose() if kind == "async" else asyncio.to_thread(memory.close))


@pytest.mark.parametrize("where", stores("file", "postgres"))
def test_processes_that_change_the_same_memories_keep_the_chains(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if where == "file" and sys.platform != "linux":
        pytest.skip("locks of an open file description are Linux's")
    url = str(tmp_path / "history.db")
    if where == "postgres":
        url = request.getfixturevalue("url")
    done = update_together(
        "ours", url, tmp_path, processes=2, memories=3, rounds=15, takes_back=True
    )
    assert (done.breaks, done.wrong) == (0, 0)
    assert done.records > 3 + 2 * 3 * 5


@pytest.mark.skipif(not are_installed(), reason="needs servers of its own")
async def test_turns_are_taken_on_the_primary_after_a_failover_too(tmp_path: Path) -> None:
    """A standby has its own locks, which no other server sees."""
    primary = PostgresServer(fsync="off").create().start()
    standby = primary.standby()
    try:
        standby.start()
        alone = locks_of(open_history(standby.url(), retry_timeout_s=0.2))
        with pytest.raises(StorageReadOnly, match="is a standby"):
            await taken(Turns(TurnQueues(alone)))
        assert alone._thread is not None
        alone._thread.stop()
        url = with_query(
            "postgresql://owner:secret@/postgres",
            host=f"{primary.folder},{standby.folder}",
            port=f"{primary.port},{standby.port}",
            target_session_attrs="read-write",
        )
        locks = locks_of(open_history(url))
        async with Turns(TurnQueues(locks)).of("m", "store") as turn:
            primary.stop("immediate")
            standby.promote()
            admin = await asyncpg.connect(standby.url())
            async with asyncio.timeout(LONG_S):
                while not await sessions(admin):  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0)
                while locks.is_lost(number_of("m")):  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0)
            turn.require_kept()
            await admin.close()
        assert locks._thread is not None
        locks._thread.stop()
    finally:
        standby.remove()
        primary.remove()
