"""The history of an AsyncMemory: loops, dropped instances, cancelling, closing, refusals."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from async_history import (
    HistoryClosed,
    HistoryError,
    HistoryManager,
    MigrationError,
    open_history,
)
from async_history.mem0 import AsyncMemory, HistoryNotWritten, Memory
from tests.mem0.fakes import InstantStore
from tests.mem0.memories import (
    CHANGES,
    Awaited,
    Configured,
    MakeMemory,
    add,
    held_before_its_change,
    held_update,
    make_instant,
    shell,
)
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


class LoopInThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LONG_S)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class TestLoops:
    @pytest.mark.parametrize("where", ["file", "memory"])
    def test_two_running_loops_have_one_manager_each(
        self,
        where: str,
        make_memory: MakeMemory,
        opened: list[HistoryManager],
    ) -> None:
        memory = make_memory(**({"history": ":memory:"} if where == "memory" else {}))
        loops = [LoopInThread(), LoopInThread()]
        try:
            memory_id = loops[0].call(add(memory, "0"))
            for number in range(1, 12):
                loops[number % 2].call(memory.update(memory_id, str(number)))
            for loop in loops:
                history = loop.call(memory.history(memory_id))
                assert [one["new_memory"] for one in history] == [str(n) for n in range(12)]
            assert len(opened) == (2 if where == "file" else 1)
            loops[0].call(memory.aclose())
        finally:
            for loop in loops:
                loop.end()

    def test_a_history_in_memory_outlives_a_run(self, make_memory: MakeMemory) -> None:
        memory = make_memory(history=":memory:")
        memory_id = asyncio.run(add(memory, "tea"))
        asyncio.run(memory.update(memory_id, "mate"))
        history = asyncio.run(memory.history(memory_id))
        assert [one["new_memory"] for one in history] == ["tea", "mate"]
        memory.close()

    async def test_a_dropped_memory_closes_the_manager_that_it_opened(
        self,
        make_memory: MakeMemory,
        opened: list[HistoryManager],
    ) -> None:
        for _ in range(3):
            await add(make_memory(), "tea")
        assert len(opened) == 3
        async with asyncio.timeout(LONG_S):
            while any(manager._closing is None for manager in opened):
                gc.collect()
                await asyncio.sleep(0)
            await asyncio.gather(*(manager._closing for manager in opened if manager._closing))


class TestUntilTheFirstChange:
    async def test_cancelling_before_the_first_change_leaves_nothing(
        self,
        memory: AsyncMemory,
        tmp_path: Path,
    ) -> None:
        embedder, task = await held_before_its_change(memory)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        embedder.gate.set()
        await memory.aclose()
        assert memory.vector_store.rows == {}
        assert shell(tmp_path / "history.db", "SELECT count(*) FROM history") == [(0,)]

    async def test_closing_cancels_unchanged_operations_and_waits_for_the_others(
        self,
        memory: AsyncMemory,
        tmp_path: Path,
    ) -> None:
        memory_id, changing = await held_update(memory)
        embedder, waiting = await held_before_its_change(memory)
        closing = asyncio.create_task(memory.aclose())
        with pytest.raises(HistoryClosed, match="before its add had changed"):
            await waiting
        assert not closing.done()
        memory.vector_store.gate.set()
        embedder.gate.set()
        await changing
        await closing
        assert list(memory.vector_store.rows) == [memory_id]
        texts = shell(tmp_path / "history.db", "SELECT new_memory FROM history ORDER BY rowid")
        assert texts == [("tea",), ("mate",)]


class TestRefusals:
    """A record that the history would refuse is refused before the vector store changes."""

    @pytest.fixture
    async def filled(
        self,
        make_memory: MakeMemory,
    ) -> AsyncIterator[tuple[str, InstantStore]]:
        async with make_memory() as memory:
            memory_id = await add(memory, "tea")
            await memory.update(memory_id, "mate")
            yield memory_id, memory.vector_store

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("how", ["closed", "never opened", "another loop's"])
    async def test_a_refused_call_changes_nothing(
        self,
        how: str,
        change: str,
        filled: tuple[str, InstantStore],
        make_memory: MakeMemory,
        tmp_path: Path,
    ) -> None:
        memory_id, store = filled
        history = open_history(tmp_path / "history.db")
        other = LoopInThread()
        try:
            if how == "closed":
                await history
                await history.aclose()
            elif how == "another loop's":
                other.call(_opened(history))
            memory = make_memory(history=history)
            memory.vector_store = store
            before = {key: dict(row) for key, row in store.rows.items()}
            with pytest.raises(HistoryError):
                await CHANGES[change](memory, memory_id)
            assert store.rows == before
        finally:
            if how == "another loop's":
                other.call(history.aclose())
            other.end()
        records = shell(tmp_path / "history.db", "SELECT count(*) FROM history")
        assert records == [(2,)]

    @pytest.mark.parametrize(
        "change", ["add", "update", "delete", "delete_all", "restore", "rollback"]
    )
    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_a_refused_call_changes_nothing_if_the_file_must_be_adopted_first(
        self, kind: str, change: str, configured: Configured, tmp_path: Path
    ) -> None:
        path = tmp_path / "history.db"
        shell(path, "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, event TEXT)")
        memory: Any = (AsyncMemory if kind == "async" else Memory).from_config(
            configured(), migrate=False
        )
        store = make_instant(memory)
        store.rows["one"] = {"data": "tea", "user_id": "u"}
        before = {key: dict(row) for key, row in store.rows.items()}
        changing = CHANGES[change](Awaited(memory), "one")
        with pytest.raises(MigrationError, match="migrate=False"):
            await changing
        assert store.rows == before
        await Awaited(memory).close()


async def _opened(history: HistoryManager) -> None:
    await history


class TestNotWritten:
    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_its_records_can_be_submitted_repeatedly(
        self,
        kind: str,
        configured: Configured,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "history.db"
        memory: Any = (AsyncMemory if kind == "async" else Memory).from_config(configured())
        make_instant(memory)

        async def call(name: str, *arguments: Any, **options: Any) -> Any:
            method = getattr(memory, name)
            if kind == "async":
                return await method(*arguments, **options)
            return await asyncio.to_thread(method, *arguments, **options)

        made = await call("add", "tea", user_id="u", infer=False)
        memory_id = made["results"][0]["id"]
        shell(
            path, "CREATE TRIGGER no BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(HistoryNotWritten) as raised:
            await call("update", memory_id, "mate")
        (record,) = raised.value.records
        assert (record["new_memory"], raised.value.unknown_ids) == ("mate", ())
        assert memory.vector_store.rows[memory_id]["data"] == "mate"
        shell(path, "DROP TRIGGER no")
        async with open_history(path) as history:
            for _ in range(2):
                await history.batch_add_history(raised.value.records)
            texts = [one.new_memory for one in await history.get_history(memory_id)]
        assert texts == ["tea", "mate"]
        if kind == "async":
            await memory.aclose()
        else:
            await asyncio.to_thread(memory.close)


class Mine:
    """A user's own history, with the methods that mem0 calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        def called(*_: Any, **__: Any) -> list[Any]:
            self.calls.append(name)
            return []

        return called


async def test_an_object_assigned_to_db_is_used(memory: AsyncMemory, tmp_path: Path) -> None:
    mine = Mine()
    memory.db = mine
    memory_id = await add(memory, "tea")
    await memory.update(memory_id, "mate")
    await memory.delete(memory_id)
    assert "add_history" in mine.calls
    assert memory.db is mine
    assert not (tmp_path / "history.db").exists()
