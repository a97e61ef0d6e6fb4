"""Operations that are cancelled, closed, refused, outlived, or run in a forked child."""

import asyncio
import inspect
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mem0.memory import main as mem0_main

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryManager,
    StorageMissing,
    open_history,
)
from async_history._core.writing.writer import GroupCommitWriter
from async_history.mem0 import AsyncMemory, HistoryNotWritten, Memory, _loop_state
from tests.mem0.fakes import GatedEmbedder
from tests.mem0.memories import (
    CHANGES,
    Awaited,
    Configured,
    Kind,
    MakeMemory,
    add,
    held_before_its_change,
    held_update,
    infers,
    make_instant,
    release_all,
    shell,
)
from tests.subprocesses.openai_server import Model
from tests.support.moved_files import log_of, move_away, replace_with_a_copy
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


async def test_a_cancelled_operation_ends_without_a_change(
    memory: AsyncMemory, tmp_path: Path
) -> None:
    """The memory stays open until the operation has ended, so closing does not end it."""
    embedder, task = await held_before_its_change(memory)
    running = list(memory._history_state().running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    embedder.gate.set()
    await asyncio.wait(running)
    assert memory.vector_store.rows == {}
    assert shell(tmp_path / "history.db", "SELECT count(*) FROM history") == [(0,)]


async def test_closing_does_not_wait_for_operations_without_a_change(
    memory: AsyncMemory, caplog: pytest.LogCaptureFixture
) -> None:
    embedder, task = await held_before_its_change(memory)
    try:
        with caplog.at_level(logging.ERROR, "async_history"):
            await memory.aclose()
        assert not any("left" in one.getMessage() for one in caplog.records)
        with pytest.raises(HistoryClosed):
            await task
    finally:
        embedder.gate.set()


@pytest.mark.parametrize("change", ["add", "update", "restore"])
async def test_a_manager_that_is_closed_before_the_first_change(
    change: str, make_memory: MakeMemory, tmp_path: Path
) -> None:
    """The operation began with an open manager, and is held while it waits for an embedding."""
    async with open_history(tmp_path / "history.db") as history:
        memory = make_memory(history=history)
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        before = {key: dict(row) for key, row in memory.vector_store.rows.items()}
        memory.embedding_model = embedder = GatedEmbedder()
        task = asyncio.ensure_future(CHANGES[change](memory, memory_id))
        await asyncio.to_thread(embedder.asked.wait, LONG_S)
    embedder.gate.set()
    with pytest.raises(HistoryClosed):
        await task
    assert memory.vector_store.rows == before


async def test_closing_logs_the_operations_that_it_left(
    make_memory: MakeMemory, caplog: pytest.LogCaptureFixture
) -> None:
    memory = make_memory()
    memory._history_state().close_timeout_s = 0.0
    _, changing = await held_update(memory)
    with caplog.at_level(logging.ERROR, "async_history"):
        await memory.aclose()
    release_all(memory)
    await changing
    (said,) = [one.getMessage() for one in caplog.records if "left" in one.getMessage()]
    assert "1 operation of" in said
    assert "update" in said


async def test_the_error_names_what_may_have_been_written(
    memory: AsyncMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_id = await add(memory, "tea")
    submit = GroupCommitWriter.submit

    def unsure(self: GroupCommitWriter[Any], submission: Any) -> "asyncio.Future[None]":
        submit(self, submission)
        unknown: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unknown.set_exception(CommitUnknown("the server went away"))
        return unknown

    with monkeypatch.context() as patched:
        patched.setattr(GroupCommitWriter, "submit", unsure)
        with pytest.raises(HistoryNotWritten) as raised:
            await memory.update(memory_id, "mate")
    (record,) = raised.value.records
    assert raised.value.unknown_ids == (record["id"],)


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_forked_child_can_use_the_memory(where: str, make_memory: MakeMemory) -> None:
    memory = make_memory(**({"history": ":memory:"} if where == "memory" else {}))
    asyncio.run(add(memory, "tea"))
    child = os.fork()
    if not child:
        status = 1
        try:

            async def go_on() -> int:
                memory_id = await add(memory, "mate")
                return len(await memory.history(memory_id))

            status = 0 if asyncio.run(asyncio.wait_for(go_on(), LONG_S)) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.close()


async def test_a_manager_that_is_closed_while_the_model_is_asked(
    make_memory: MakeMemory, model: Model, tmp_path: Path
) -> None:
    """Its answer is stored in one step: many memories at once."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(_: Any) -> str:
        asked.set()
        go_on.wait(LONG_S)
        return (
            '{"facts": ["likes tea"], "memory": [{"id": "0", "text": "likes tea", "event": "ADD"}]}'
        )

    model.script = answer
    async with open_history(tmp_path / "history.db") as history:
        memory = make_memory(history=history)
        task = asyncio.create_task(memory.add("I like tea", user_id="u"))
        await asyncio.to_thread(asked.wait, LONG_S)
    go_on.set()
    with pytest.raises(HistoryClosed):
        await task
    assert memory.vector_store.rows == {}


def remove_log(path: Path) -> None:
    log_of(path).unlink()


@pytest.mark.parametrize("go", [move_away, replace_with_a_copy, remove_log])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_nothing_changes_if_the_file_is_gone(
    kind: str, go: Callable[[Path], None], configured: Configured, tmp_path: Path
) -> None:
    memory: Any = (AsyncMemory if kind == "async" else Memory).from_config(configured())
    awaited = Awaited(memory)
    store = make_instant(memory)
    memory_id = await add(awaited, "tea")
    await awaited.update(memory_id, "mate")
    before = {key: dict(row) for key, row in store.rows.items()}
    go(tmp_path / "history.db")
    for change in CHANGES.values():
        with pytest.raises(StorageMissing):
            await change(awaited, memory_id)
        assert store.rows == before
    await awaited.close()


async def test_no_further_memory_is_added_once_the_file_is_gone(
    make_memory: MakeMemory, tmp_path: Path
) -> None:
    """Even in an operation that has already made a change."""
    async with make_memory() as memory:

        async def add_two() -> None:
            await memory._create_memory("tea", {"tea": []}, {"user_id": "u"})
            acks = memory._history_recorder.require_operation().acks
            while not acks:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
            await asyncio.wait(acks)
            await asyncio.to_thread(move_away, tmp_path / "history.db")
            await memory._create_memory("mate", {"mate": []}, {"user_id": "u"})

        with pytest.raises(StorageMissing):
            await memory._history_run(add_two)
        assert len(memory.vector_store.rows) == 1


async def test_an_update_checks_for_its_file_twice(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it begins, and before the vector store changes."""
    check = HistoryManager.require_writable
    checks = 0

    def counted(manager: HistoryManager) -> None:
        nonlocal checks
        checks += 1
        check(manager)

    monkeypatch.setattr(HistoryManager, "require_writable", counted)
    async with make_memory() as memory:
        memory_id = await add(memory, "tea")
        checks = 0
        await memory.update(memory_id, "mate")
    assert checks == 2


@pytest.mark.parametrize("change", ["add", "update", "delete_all", "reset"])
async def test_a_closed_manager_with_a_mem0_whose_changes_are_not_seen(
    change: str, make_memory: MakeMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mem0 whose `to_thread` is not ours, the check comes before the operation."""
    async with open_history(tmp_path / "history.db") as history:
        memory = make_memory(history=history)
        memory_id = await add(memory, "tea")
        before = {key: dict(row) for key, row in memory.vector_store.rows.items()}
    monkeypatch.setattr(_loop_state, "sees_changes", lambda: False)
    with pytest.raises(HistoryClosed):
        await CHANGES[change](memory, memory_id)
    assert memory.vector_store.rows == before


async def test_with_a_closed_manager_no_model_is_called(
    make_memory: MakeMemory, model: Model, tmp_path: Path
) -> None:
    async with open_history(tmp_path / "history.db") as history:
        memory = make_memory(history=history)
    with pytest.raises(HistoryClosed):
        await memory.add("I like tea", user_id="u")
    assert model.chats == []


async def test_an_operation_that_closing_left_begins_no_further_part(
    make_memory: MakeMemory,
) -> None:
    """The second deletion is waiting for its turn then."""
    memory = make_memory()
    memory._history_state().close_timeout_s = 0.0
    memory_id = await add(memory, "tea")
    store = memory.vector_store
    store.gate = threading.Event()
    store.changed.clear()
    deleted: list[str] = []
    delete = store.delete

    def noted(vector_id: str) -> None:
        deleted.append(vector_id)
        delete(vector_id)

    store.delete = noted
    list_ = store.list
    store.list = lambda *arguments, **options: [2 * list_(*arguments, **options)[0]]
    deleting = asyncio.create_task(memory.delete_all(user_id="u"))
    await asyncio.to_thread(store.changed.wait, LONG_S)
    await memory.aclose()
    store.rows[memory_id] = {"data": "tea", "user_id": "u"}  # or it would not be found again
    release_all(memory)
    with pytest.raises(HistoryClosed):
        await deleting
    assert deleted == [memory_id]


class Noisy(AsyncMemory):
    """A memory that records values that no history accepts."""

    async def _create_memory(self, *arguments: Any, **options: Any) -> Any:
        memory_id = await super()._create_memory(*arguments, **options)
        self.db.add_history(memory_id, None, "tea", "NOISE")
        return memory_id


async def test_refused_records_have_ids(configured: Configured) -> None:
    """So that they can be corrected and submitted again as the same records."""
    memory = Noisy.from_config(configured())
    make_instant(memory)
    async with memory:
        with pytest.raises(HistoryNotWritten, match="NOISE") as raised:
            await add(memory, "tea")
        (record,) = raised.value.records
        again = [{**record, "event": "UPDATE"}]
        async with open_history(configured()["history_db_path"]) as history:
            for _ in range(2):
                await history.batch_add_history(again)
            found = await history.get_history(record["memory_id"])
        assert [one.id for one in found[1:]] == [record["id"]]


class Panic(BaseException):
    """As libraries in Rust raise it."""


async def test_an_error_that_is_not_an_exception_reaches_the_caller(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: Any) -> None:
        raise Panic

    async with make_memory() as memory:
        monkeypatch.setattr(memory.embedding_model, "embed", panic)
        with pytest.raises(Panic):
            await add(memory, "tea")


_OWN_NAMES = (
    *("_assigned", "_change", "_history", "_lock", "_recorder", "_reset", "_run", "_state"),
    *("_states", "_steps", "_store", "_within", "_workers"),
)
"""Names that a program may give to attributes of its own memory class."""


@pytest.mark.parametrize("ours", [AsyncMemory, Memory])
async def test_a_program_derives_a_class_with_names_of_its_own(
    ours: Any, configured: Configured, tmp_path: Path
) -> None:
    class Own(ours):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.__dict__.update(dict.fromkeys(_OWN_NAMES, "own"))
            super().__init__(*arguments, **options)

    kind = Kind(Own, configured(), tmp_path / "history.db")
    kind.be_instant()
    memory_id = await kind.add("tea")
    await kind.update(memory_id, "mate")
    await kind.call("restore", memory_id, to=1)
    await kind.call("delete", memory_id)
    assert len(await kind.call("history", memory_id)) == 4
    await kind.call("reset")
    assert await kind.call("history", memory_id) == []
    await kind.close()
    assert {getattr(kind.memory, name) for name in _OWN_NAMES} == {"own"}
    plain = getattr(mem0_main, ours.__name__)
    private = {name for name in set(dir(ours)) - set(dir(plain)) if not name.endswith("__")}
    assert [name for name in private if name.startswith("_history_")]
    assert not [name for name in private if re.match("_(?!history_)", name)]


class Positional(AsyncMemory):
    """A memory that gives mem0's own functions all their arguments by position, as mem0 may."""


def _positional(name: str) -> Callable[..., Any]:
    signature = inspect.signature(getattr(mem0_main.AsyncMemory, name))

    async def function(self: Positional, *arguments: Any, **options: Any) -> Any:
        given = signature.bind(self, *arguments, **options)
        given.apply_defaults()
        return await getattr(super(Positional, self), name)(*given.args[1:])

    return function


for _name in ("_add_to_vector_store", "_create_memory", "_update_memory", "_delete_memory"):
    setattr(Positional, _name, _positional(_name))


async def test_functions_of_mem0_take_their_arguments_by_position(
    configured: Configured, model: Model
) -> None:
    """Also on a loop whose task factory takes no context and no name, as CPython 3.14 calls it."""
    loop = asyncio.get_running_loop()
    infers(model, "coffee")
    memory = Positional.from_config(configured())
    make_instant(memory)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "create_task", lambda coroutine: asyncio.Task(coroutine, loop=loop))
        async with memory:
            memory_id = await add(memory, "tea")
            await memory.update(memory_id, "mate")
            await memory.delete(memory_id)
            (coffee,) = (await memory.add("coffee", user_id="u"))["results"]
            assert [len(await memory.history(each)) for each in (memory_id, coffee["id"])] == [3, 1]


class Lasting(AsyncMemory):
    """A memory whose operation begins a task that outlives it."""

    later: "asyncio.Task[Any]"

    async def _add_to_vector_store(self, *arguments: Any, **options: Any) -> Any:
        self.go_on = asyncio.Event()

        async def add_another() -> Any:
            await self.go_on.wait()
            return await self._create_memory("mate", {"mate": [0.0] * 8}, {"user_id": "u"})

        self.later = asyncio.create_task(add_another())
        return await super()._add_to_vector_store(*arguments, **options)


async def test_a_task_that_outlives_its_operation_is_an_operation(
    configured: Configured, tmp_path: Path
) -> None:
    """It waits for its records, and raises if they can't be written."""
    path = tmp_path / "history.db"
    memory = Lasting.from_config(configured())
    make_instant(memory)
    async with memory:
        await add(memory, "tea")
        memory.go_on.set()
        memory_id = await memory.later
        texts = shell(path, f"SELECT new_memory FROM history WHERE memory_id = '{memory_id}'")
        assert texts == [("mate",)]
        await add(memory, "tea")
        shell(
            path, "CREATE TRIGGER no BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        memory.go_on.set()
        with pytest.raises(HistoryNotWritten):
            await memory.later


def test_a_loop_closed_with_pending_tasks_leaves_nothing_open(
    make_memory: MakeMemory, opened: list[HistoryManager]
) -> None:
    """Unlike in `asyncio.run`, the tasks are never cancelled."""
    memory = make_memory()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(add(memory, "tea"))
        loop.close()
    assert [manager._closed for manager in opened] == [True, True, False]
    memory.close()
    assert all(manager._closed for manager in opened)


@pytest.mark.parametrize("kind", [AsyncMemory, Memory])
async def test_a_memory_that_is_deleted_before_its_add_has_recorded_it(
    kind: Any, configured: Configured
) -> None:
    memory = kind.from_config(configured())
    store = make_instant(memory)

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        function = getattr(memory, name)
        if kind is AsyncMemory:
            return await function(*arguments, **options)
        return await asyncio.to_thread(function, *arguments, **options)

    gate = store.gate = threading.Event()
    adding = asyncio.create_task(call("add", "tea", user_id="u", infer=False))
    await asyncio.to_thread(store.changed.wait, LONG_S)
    store.gate = None
    (memory_id,) = store.rows
    deleting = asyncio.create_task(call("delete", memory_id))
    await asyncio.wait([deleting], timeout=0.5)  # long enough for a deletion that does not wait
    gate.set()
    await adding
    await deleting
    assert [one["event"] for one in await call("history", memory_id)] == ["ADD", "DELETE"]
    assert not store.rows
    await (memory.aclose() if kind is AsyncMemory else asyncio.to_thread(memory.close))
