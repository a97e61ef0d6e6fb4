"""Forgetting an owner in mem0: vector store, entities, history; and changes that come too late."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest

from async_history import (
    Erased,
    ErasureReport,
    HistoryClosed,
    HistoryManager,
    InvalidInput,
    open_history,
)
from async_history.mem0 import AsyncMemory, ForgetReport, Memory
from async_history.mem0._steps import LoopSteps, ThreadSteps
from async_history.mem0._vectors.vector_listing import list_rows
from tests.mem0.fakes import CountingStore, GatedEmbedder
from tests.mem0.memories import IS_V1, Configured, Used, infers
from tests.subprocesses.openai_server import DIMENSIONS, Model
from tests.support.docs_examples import example
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

ANN = "ann-7f3a"
SECRETS = (ANN, "secret text", "secret context", "secret cause", "secret message", "Secret Entity")


class Interrupted(Exception):
    """Raised in the middle of a call."""


class PagingStore(CountingStore):
    """A vector store that lists at most three rows."""

    def list(self, *arguments: Any, **options: Any) -> Any:
        return [super().list(*arguments, **options)[0][:3]]


def paged(used: Used) -> PagingStore:
    """Give a memory a vector store and a store of entities that list few rows."""
    used.memory.vector_store = used.store = store = PagingStore()
    if not IS_V1:
        used.memory._entity_store = PagingStore()
    return store


def entities_of(used: Used) -> dict[str, Any]:
    return {} if IS_V1 else dict(used.memory._entity_store.rows)


async def fill(used: Used) -> tuple[str, ...]:
    """Fill a memory with texts of two users; return the memories of the second."""
    metadata = {"note": "secret context"}
    mine = [
        await used.add(f"secret text {n}", user_id=ANN, run_id=f"r{n % 2}", metadata=metadata)
        for n in range(7)
    ]
    await used.update(mine[0], "secret text, changed")
    await used.call("delete", mine[1])
    alone = await used.add("secret text, no run", user_id=ANN, run_id=None, agent_id=None)
    theirs = [await used.add(f"bob's {n}", user_id="bob") for n in range(4)]
    # Cases that the history does not have as hers: none, no owner, another owner, deleted.
    for memory_id in ("unknown", "unowned", "moved", "deleted"):
        payload = {"data": f"secret text {memory_id}", "user_id": ANN}
        used.store.insert([[]], [payload], [memory_id])
    async with open_history(used.path) as history:
        await history.add_history("unowned", None, "secret text", "ADD", cause=CAUSE)
        await history.add_history("moved", None, "secret text", "ADD", owner={"user_id": "old"})
        await history.add_history("deleted", None, "secret text", "ADD")
        await history.add_history("deleted", "secret text", None, "DELETE")
        for scope in (f"user_id={ANN}", f"agent_id=shop&run_id=r1&user_id={ANN}", "user_id=bob"):
            await history.save_messages([{"role": "user", "content": "secret message"}], scope)
    if not IS_V1:
        entities = used.memory._entity_store
        for n in range(5):
            linked = {"linked_memory_ids": [alone], "data": "Secret Entity"}
            entities.insert([[]], [{**linked, "user_id": ANN}], [f"e{n}"])
        entities.insert([[]], [{"linked_memory_ids": theirs, "data": "B", "user_id": "bob"}], ["b"])
    return tuple(theirs)


CAUSE = {"request_id": "secret cause"}


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("history.db*"))


async def assert_forgotten(used: Used, theirs: tuple[str, ...]) -> None:
    """Check that nothing of the first is left, and everything of the second."""
    assert set(used.store.rows) == set(theirs)
    assert set(entities_of(used)) <= {"b"}
    async with open_history(used.path) as history:
        assert await history.count_history(user_id=ANN) == 0
        assert await history.count_history(text="secret") == 0
        assert await history.get_last_messages("user_id=bob")
        for scope in (f"user_id={ANN}", f"agent_id=shop&run_id=r1&user_id={ANN}"):
            assert await history.get_last_messages(scope) == []
        existing = [one async for one in history.memories(user_id="bob")]
        assert {one.memory_id for one in existing} == set(theirs)
        assert all((one.new_memory or "").startswith("bob's") for one in existing)


@pytest.mark.mem0
async def test_nothing_of_an_owner_is_left(used: Used, tmp_path: Path) -> None:
    paged(used)
    theirs = await fill(used)
    assert {word in bytes_of(tmp_path) for word in map(str.encode, SECRETS[:5])} == {True}
    dry = await used.call("forget", user_id=ANN, reason="asked", dry_run=True)
    report: ForgetReport = await used.call("forget", user_id=ANN, reason="asked")
    await assert_forgotten(used, theirs)
    assert (report.done, report.memories, report.entities) == (True, 11, 0 if IS_V1 else 5)
    assert (report.messages, report.later) == (2, 0)
    assert report.records >= dry.records > 0
    assert report.remains
    # The other user's message has the same words.
    kept = bytes_of(tmp_path).replace(b"secret message", b"", 1)
    assert [word for word in SECRETS if word.encode() in kept] == []
    async with open_history(used.path) as history:
        (erasure,) = [one for one in await history.erasures() if one.id == report.erasure_id]
        assert erasure.finished_at is not None
        for memory_id in ("unknown", "unowned", "moved"):
            *_, last = await history.get_history(memory_id)
            assert last.event == "DELETE"
        with pytest.raises(Erased):
            await history.add_history("unowned", None, "secret text", "UPDATE")
    again = await used.call("forget", user_id=ANN, reason="asked")
    assert again.matches_nothing
    assert again.outcome() in (
        "removed 0 memories and 0 entities from the vector store, and erased the texts of "
        "0 records and 0 messages in the history"
    )
    await used.add("hers again", user_id=ANN)
    assert len(await used.records()) > 0


@pytest.mark.parametrize("kind", [AsyncMemory, Memory])
@pytest.mark.mem0
async def test_a_real_vector_store(kind: Any, configured: Configured, tmp_path: Path) -> None:
    """Also memories that no history has, and more memories than it lists by default."""
    memory = kind.from_config(configured())
    used = Used(memory, tmp_path / "history.db", is_instant=False)
    await used.add("likes tea", user_id=ANN)
    kept = await used.add("likes mate", user_id="bob")
    names = [str(uuid4()) for _ in range(110)]
    payloads = [{"data": "likes tea", "user_id": ANN} for _ in names]
    memory.vector_store.insert([[0.1] * DIMENSIONS] * len(names), payloads, names)
    if not IS_V1:
        for user in (ANN, "bob"):
            entity = {"data": "Tea", "linked_memory_ids": names, "user_id": user}
            memory.entity_store.insert([[0.1] * DIMENSIONS], [entity], [str(uuid4())])
    report = await used.call("forget", user_id=ANN, reason="asked")
    assert (report.memories, report.entities) == (111, 0 if IS_V1 else 1)
    for user, count in ((ANN, 0), ("bob", 1)):
        whose: dict[str, Any] = {"user_id": user} if IS_V1 else {"filters": {"user_id": user}}
        found = await used.call("get_all", **whose)
        assert [one["id"] for one in found["results"]] == [kept] * count
        found = await used.call("search", "likes tea", **whose)
        assert len(found["results"]) <= count
        if not IS_V1:
            assert len(list_rows(memory.entity_store, {"user_id": user}, 10)) == count
    await used.close()
    memory.vector_store.client.close()


@pytest.mark.parametrize("owner", [{"agent_id": "shop"}, {"run_id": "r1"}])
async def test_an_agent_and_a_run(used: Used, owner: dict[str, str]) -> None:
    """Other memories stay, even of the same user."""
    paged(used)
    gone = await used.add("secret text", user_id="ann")
    kept = await used.add("kept", user_id="ann", agent_id="other", run_id="r2")
    report = await used.call("forget", **owner, reason="over")
    assert (report.memories, list(used.store.rows)) == (1, [kept])
    records = await used.records(gone)
    assert [one.event for one in records] == ["ADD", "DELETE"]
    assert {one.new_memory for one in records} == {None}
    (scope,) = owner
    assert {getattr(one.owner, scope) for one in records} == {None}
    assert {one.owner and one.owner.user_id for one in records} == {"ann"}
    assert [one.new_memory for one in await used.records(kept)] == ["kept"]


async def test_a_dry_run_changes_nothing(used: Used) -> None:
    paged(used)
    await fill(used)
    rows, entities, records = dict(used.store.rows), entities_of(used), await used.records()
    used.store.calls.clear()
    report = await used.call("forget", user_id=ANN, reason="asked", dry_run=True)
    assert (report.done, report.memories, report.erasure_id) == (False, 3, None)
    assert report.messages == 2
    assert set(used.store.calls) == {"list"}
    assert (used.store.rows, entities_of(used)) == (rows, entities)
    assert await used.records() == records
    async with open_history(used.path) as history:
        assert await history.erasures() == []


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
async def test_interrupted_anywhere_it_continues_when_called_again(
    used: Used, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """Each call of the vector store, the entities and the history fails once."""
    store = paged(used)
    countdown = [-1]

    def failing(kind: Any, name: str) -> None:
        real = getattr(kind, name)

        async def step(self: Any, *arguments: Any) -> Any:
            countdown[0] -= 1
            if countdown[0] == 0 and not is_done:
                raise Interrupted
            answer = await real(self, *arguments)
            if countdown[0] == 0:
                raise Interrupted
            return answer

        monkeypatch.setattr(kind, name, step)

    for kind in (LoopSteps, ThreadSteps):
        failing(kind, "call")
        failing(kind, "ask")
    interrupted = 0
    theirs = await used.add("bob's", user_id="bob")
    async with open_history(used.path) as history:
        await history.save_messages([{"role": "user", "content": "x"}], "user_id=bob")
    while True:
        await used.add("secret text", user_id=ANN)
        await used.call("delete", await used.add("secret text", user_id=ANN))
        store.insert([[]], [{"data": "secret text", "user_id": ANN}], [f"unknown {interrupted}"])
        if not IS_V1:
            used.memory._entity_store.insert([[]], [{"data": "E", "user_id": ANN}], ["e"])
        countdown[0] = interrupted + 1
        try:
            await used.call("forget", user_id=ANN, reason="asked", vacuum=False)
        except Interrupted:
            interrupted += 1
        else:
            break
        await used.call("forget", user_id=ANN, reason="asked", vacuum=False)
        await assert_forgotten(used, (theirs,))
    await assert_forgotten(used, (theirs,))
    assert interrupted > 12


@pytest.mark.parametrize("used", [AsyncMemory], indirect=True)
async def test_the_documentations_example(used: Used, capsys: pytest.CaptureFixture[str]) -> None:
    paged(used)
    await used.add("secret text", user_id=ANN)
    scope: dict[str, Any] = {}
    exec(example("mem0-forget"), scope)
    await scope["close_account"](used.memory, ANN)
    first, second, *remains = capsys.readouterr().out.splitlines()
    assert first.startswith("would remove 1 memory and 0 entities from the vector store, and erase")
    assert second.startswith("removed 1 memory and 0 entities from the vector store, and erased")
    assert remains


async def test_memories_that_are_added_meanwhile(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memories that another process adds before the erasure are removed; later ones are kept."""
    erase = HistoryManager.erase

    async def add(history: HistoryManager, memory_id: str, made: datetime) -> None:
        payload = {"data": "hers", "user_id": ANN, "created_at": made.isoformat()}
        used.store.rows[memory_id] = payload
        if "recorded" in memory_id:
            adding = history.add_history(memory_id, None, "hers", "ADD", owner={"user_id": ANN})
            await asyncio.create_task(adding, context=Context())  # not a part of forgetting

    async def erase_among_others(self: HistoryManager, **asked: Any) -> ErasureReport:
        if asked["dry_run"]:
            return await erase(self, **asked)
        await add(self, "recorded before", datetime.now(UTC))
        await add(self, "before", begun)
        report = await erase(self, **asked)
        await add(self, "recorded after", begun)
        await add(self, "after", datetime.now(UTC))
        return report

    monkeypatch.setattr(HistoryManager, "erase", erase_among_others)
    await used.add("hers", user_id=ANN)
    begun = datetime.now(UTC)
    report = await used.call("forget", user_id=ANN, reason="asked")
    assert list(used.store.rows) == ["recorded after", "after"]
    assert (report.memories, report.later) == (3, 1)
    assert [one.event for one in await used.records("recorded before")] == ["ADD", "DELETE"]
    texts = [one.new_memory for one in await used.records()]
    assert [text for text in texts if text] == ["hers"]


# Changes that come too late


class HeldStore(CountingStore):
    """A vector store that holds back its first answer to `get`, once asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.read, self.listed, self.go = (threading.Event() for _ in range(3))

    def get(self, *arguments: Any, **options: Any) -> Any:
        row = super().get(*arguments, **options)
        if self.holds:
            self.holds = False
            self.read.set()
            assert self.go.wait(LONG_S)
        return row

    def list(self, *arguments: Any, **options: Any) -> Any:
        self.listed.set()
        return super().list(*arguments, **options)


async def forget_here(used: Used) -> None:
    await used.call("forget", user_id=ANN, reason="asked")


async def forget_elsewhere(used: Used) -> None:
    """As another process does. This one finds out when it writes."""
    for memory_id in [key for key, row in used.store.rows.items() if row["user_id"] == ANN]:
        used.store.rows.pop(memory_id)
    async with open_history(used.path) as history:
        await history.erase(user_id=ANN, reason="asked")


FORGET = [pytest.param(forget_here, id="here"), pytest.param(forget_elsewhere, id="elsewhere")]


@pytest.mark.parametrize("forget", FORGET)
@pytest.mark.parametrize("change", ["add", "update"])
async def test_a_change_that_waits_during_the_erasure(
    used: Used, forget: Callable[[Used], Any], change: str
) -> None:
    """The change is refused and leaves nothing in the vector store."""
    theirs = await used.add("bob's", user_id="bob")
    mine = await used.add("secret text", user_id=ANN)
    used.memory.embedding_model = held = GatedEmbedder()
    late = used.add("late", user_id=ANN) if change == "add" else used.update(mine, "late")
    waiting = asyncio.create_task(late)
    await asyncio.to_thread(held.asked.wait, LONG_S)
    await forget(used)
    used.store.calls.clear()
    held.gate.set()
    # As in mem0, an update does not find a removed memory.
    with pytest.raises(Erased if change == "add" else ValueError):
        await waiting
    assert list(used.store.rows) == [theirs]
    assert ("insert" in used.store.calls) is (change == "add" and forget is forget_elsewhere)
    async with open_history(used.path) as history:
        assert await history.count_history(text="late") == 0
        assert await history.count_history(user_id=ANN) == 0
    await used.add("hers again", user_id=ANN)
    await used.update(theirs, "bob's, changed")


@pytest.mark.parametrize("forget", FORGET)
async def test_an_update_that_already_has_its_turn(
    used: Used, forget: Callable[[Used], Any]
) -> None:
    """It has read the memory. Forgetting waits for it; otherwise it would add the memory again."""
    used.memory.vector_store = used.store = store = HeldStore()
    mine = await used.add("secret text", user_id=ANN)
    store.holds = True
    update = asyncio.create_task(used.update(mine, "late"))
    await asyncio.to_thread(store.read.wait, LONG_S)
    forgetting = asyncio.create_task(forget(used))
    await (asyncio.to_thread(store.listed.wait, LONG_S) if forget is forget_here else forgetting)
    store.go.set()
    with contextlib.nullcontext() if forget is forget_here else pytest.raises(Erased):
        await update
    await forgetting
    assert store.rows == {}
    async with open_history(used.path) as history:
        assert await history.count_history(text="late") == 0
        assert await history.count_history(user_id=ANN) == 0


@pytest.mark.parametrize("change", ["update", "restore"])
async def test_an_erasure_that_fails_before_a_change_refuses_no_change(
    used: Used, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await used.add("tea", user_id=ANN)
    used.memory.embedding_model = held = GatedEmbedder()
    arguments: dict[str, Any] = {"data": "mate"} if change == "update" else {"to": 1}
    if change == "restore":
        used.store.rows[mine]["data"] = "unrecorded"
    waiting = asyncio.create_task(used.call(change, mine, **arguments))
    await asyncio.to_thread(held.asked.wait, LONG_S)
    with monkeypatch.context() as patched:
        patched.setattr(type(used.store), "list", MagicMock(side_effect=OSError("no list today")))
        with pytest.raises(OSError, match="today"):
            await used.call("forget", user_id=ANN, reason="asked")
    held.gate.set()
    await waiting
    assert used.store.rows[mine]["data"] == ("mate" if change == "update" else "tea")


async def test_an_update_of_a_memory_that_is_erased_by_its_id(used: Used) -> None:
    used.memory.vector_store = used.store = store = HeldStore()
    mine = await used.add("secret text", user_id=ANN)
    store.holds = True
    update = asyncio.create_task(used.update(mine, "late"))
    await asyncio.to_thread(store.read.wait, LONG_S)
    store.rows.clear()
    async with open_history(used.path) as history:
        await history.erase(memory_ids=[mine], reason="asked", vacuum=False)
        store.go.set()
        with pytest.raises(Erased, match="began"):
            await update
        assert [one.new_memory for one in await history.get_history(mine)] == [None]
    assert store.rows == {}


@pytest.mark.parametrize("forget", FORGET)
async def test_an_add_whose_model_answers_late(
    used: Used, model: Model, forget: Callable[[Used], Any]
) -> None:
    await used.add("bob's", user_id="bob")
    infers(model, "late")
    asked, go = threading.Event(), threading.Event()
    answer = model.script

    def script(messages: Any) -> str:
        asked.set()
        assert go.wait(LONG_S)
        return answer(messages)

    model.script = script
    waiting = asyncio.create_task(used.call("add", "late", user_id=ANN))
    await asyncio.to_thread(asked.wait, LONG_S)
    await forget(used)
    go.set()
    with pytest.raises(Erased):
        await waiting
    assert [row["user_id"] for row in used.store.rows.values()] == ["bob"]
    async with open_history(used.path) as history:
        assert await history.count_history() == 1
        assert await history.get_last_messages(f"user_id={ANN}") == []


@pytest.mark.parametrize("name", ["restore", "rollback"])
async def test_a_memory_that_is_restored_meanwhile(used: Used, name: str) -> None:
    """The restore writes the history first. The erasure comes before it writes the vector store."""
    memory_id = await used.add("secret text", user_id=ANN)
    then = datetime.now(UTC)
    await used.call("delete", memory_id)
    insert = used.store.insert

    def overtaken(*arguments: Any, **options: Any) -> None:
        thread = threading.Thread(target=lambda: asyncio.run(forget_elsewhere(used)))
        thread.start()  # as another process, without running operations of mem0
        thread.join()
        insert(*arguments, **options)

    used.store.insert = overtaken  # type: ignore[method-assign]
    used.store.calls.clear()
    if name == "restore":
        with pytest.raises(Erased):
            await used.call("restore", memory_id, to=1)
    else:
        report = await used.call("rollback", to=then, memory_ids=[memory_id])
        assert [step.action for step in report.steps] == ["conflict"]
    assert "insert" in used.store.calls
    assert used.store.rows == {}


# Refused arguments


async def test_bad_owners_are_refused_before_any_change(used: Used, tmp_path: Path) -> None:
    await used.add("secret text", user_id=ANN)
    used.store.calls.clear()
    for wrong, message in (
        ({"app_id": "x"}, "app_id"),
        ({"user_id": ANN, "app_id": "x"}, "app_id"),
        ({}, "name whom"),
        ({"user_id": ANN, "run_id": "r1"}, "one after the other"),
        ({"user_id": ""}, "user_id must not be empty"),
        ({"user_id": 7}, "user_id must be text"),
        ({"user_id": ANN, "reason": ""}, "reason must not be empty"),
        ({"user_id": ANN, "dry_run": 1}, "dry_run"),
        ({"user_id": ANN, "vacuum": 1}, "vacuum"),
    ):
        with pytest.raises(InvalidInput, match=message):
            await used.call("forget", **{"reason": "asked", **wrong})
    own = used.memory.db
    used.memory.db = SimpleNamespace(close=lambda: None)
    with pytest.raises(InvalidInput, match="SimpleNamespace was assigned"):
        await used.call("forget", user_id=ANN, reason="asked")
    used.memory.db = own
    used.memory.enable_graph = True  # mem0 1.0
    with pytest.raises(InvalidInput, match="graph"):
        await used.call("forget", run_id="r1", reason="asked")
    used.memory.enable_graph = False
    await used.close()
    with pytest.raises(HistoryClosed):
        await used.call("forget", user_id=ANN, reason="asked")
    assert used.store.calls == []
    assert len(await used.records()) == 1
