"""Rolling memories back to an instant, or undoing a run: the vector store follows."""

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryClosed, RollbackReport, open_history, recording
from async_history.mem0 import AsyncMemory, RollbackIncomplete
from tests.mem0.fakes import InstantEmbedder, InstantStore
from tests.mem0.memories import BEFORE_ALL, IS_V1, Configured, Kind, actions
from tests.subprocesses.openai_server import DIMENSIONS
from tests.support.docs_examples import example
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


class Stopped(BaseException):
    """Raised like Ctrl-C or a kill: no code catches it."""


class Embedder:
    """An embedder that counts its calls, and refuses one text."""

    refused = ""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, text: str, *_: Any, **__: Any) -> list[float]:
        if text == self.refused:
            raise OSError("no embedding today")
        self.texts.append(text)
        return [0.0] * DIMENSIONS


class BatchEmbedder(Embedder):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def embed_batch(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
        if self.refused in texts:
            raise OSError("no embeddings today")
        self.batches.append(texts)
        return [[0.0] * DIMENSIONS for _ in texts]


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.mem0
async def test_an_owner_finds_the_memories_of_that_time(kind: Kind) -> None:
    """With real vectors and embeddings, through the owner's list and search."""
    names = ("same", "changed", "tagged", "deleted")
    ids = {name: await kind.add(f"{name} tea", n=1, deep={"x": [1]}) for name in names}
    bobs = await kind.add("bob's tea", "bob")
    then, was = now(), await kind.listed()
    await kind.update(ids["changed"], "changed mate", n=2)
    await kind.update(ids["tagged"], "tagged tea", n=2)
    await kind.call("delete", ids["deleted"])
    ids["later"] = await kind.add("later cocoa")
    await kind.update(bobs, "bob's mate")
    after, bob = await kind.listed(), await kind.listed("bob")

    planned = await kind.call("rollback", to=then, user_id="ann", dry_run=True)
    assert await kind.listed() == after
    report = await kind.call("rollback", to=then, user_id="ann", actor_id="eve", role="admin")
    assert (planned.done, report.done) == (False, True)
    assert planned.steps == report.steps
    did = actions(report)
    assert {name: did[memory_id] for name, memory_id in ids.items()} == {
        "same": "nothing",
        "changed": "restore",
        "tagged": "restore",
        "deleted": "restore",
        "later": "delete",
    }
    assert await kind.listed() == was
    assert await kind.found("later cocoa") != "later cocoa"
    assert await kind.found("changed tea") == "changed tea"
    assert await kind.found("deleted tea") == "deleted tea"
    for step in report.steps:
        *_, last = await kind.records(step.memory_id)
        if step.record_id is not None:
            assert (last.id, last.cause) == (step.record_id, {"rollback": report.id})
            assert (last.actor_id, last.role) == ("eve", "admin")
            assert last.owner is not None
            assert last.owner.user_id == "ann"
    again = await kind.call("rollback", to=then, user_id="ann")
    assert again.unchanged == 5
    await kind.call("undo", cause={"rollback": report.id})
    assert await kind.listed() == after
    assert await kind.listed("bob") == bob


@pytest.mark.skipif(IS_V1, reason="mem0 1.0 has no entities")
@pytest.mark.mem0
async def test_entities_go_with_their_memory(kind: Kind) -> None:
    """Also in a process that has not used entities yet."""
    memory_id = await kind.add("tea")
    entity = {"data": "Tea", "user_id": "ann", "linked_memory_ids": [memory_id]}

    def entities() -> Any:
        return kind.memory.entity_store.list(filters={"user_id": "ann"})[0]

    def link() -> None:
        name = "00000000-0000-4000-8000-000000000001"
        kind.memory.entity_store.insert(vectors=[[1.0] * DIMENSIONS], ids=[name], payloads=[entity])

    await asyncio.to_thread(link)
    assert len(await asyncio.to_thread(entities)) == 1
    await kind.reopen()
    await kind.call("rollback", to=BEFORE_ALL, user_id="ann")
    assert await kind.listed() == {}
    assert await asyncio.to_thread(entities) == []


async def test_changes_after_a_run_stay(instant: Kind) -> None:
    kind = instant
    mine, others, gone = [await kind.add(name, n=1) for name in ("mine", "others'", "gone")]
    with recording(cause={"run_id": "r"}):
        await kind.update(mine, "mine by the run", n=2)
        await kind.update(others, "others' by the run", n=2)
        await kind.call("delete", gone)
        added = await kind.add("by the run")
    await kind.update(others, "others' own", n=3)
    untouched = await kind.add("untouched")
    report = await kind.call("undo", run_id="r")
    assert actions(report) == {
        mine: "restore",
        others: "conflict",
        gone: "restore",
        added: "delete",
    }
    assert {key: (row["data"], row.get("n")) for key, row in kind.store.rows.items()} == {
        mine: ("mine", 1),
        others: ("others' own", 3),
        gone: ("gone", 1),
        untouched: ("untouched", None),
    }
    before = {key: dict(row) for key, row in kind.store.rows.items()}
    again = await kind.call("undo", run_id="r")
    assert (again.unchanged, len(again.conflicts)) == (3, 1)
    assert kind.store.rows == before
    await kind.check()


class TestFailures:
    async def changed(self, kind: Kind) -> tuple[datetime, dict[str, str]]:
        """Return an instant, and memories that each need another change to be as they were then."""
        ids = {name: await kind.add(name, n=1) for name in ("a", "b", "tagged", "deleted")}
        then = now()
        for name in ("a", "b"):
            await kind.update(ids[name], f"{name}!", n=1)
        await kind.update(ids["tagged"], "tagged", n=2)
        await kind.call("delete", ids["deleted"])
        ids["later"] = await kind.add("later")
        return then, ids

    def texts(self, kind: Kind) -> dict[str, Any]:
        return {row["data"]: row.get("n") for row in kind.store.rows.values()}

    async def test_a_vector_store_that_fails_for_one_memory_stops_only_that_one(
        self, instant: Kind
    ) -> None:
        """A second call changes the vector store, without a second record."""
        kind = instant
        then, ids = await self.changed(kind)
        fails = {ids[name] for name in ids if name != "a"}
        kind.store.fails_to_change = set(fails)
        with pytest.raises(RollbackIncomplete, match=r"4 memories .*Call it again") as raised:
            await kind.call("rollback", to=then, user_id="ann")
        assert set(raised.value.failed) == fails
        assert {step.memory_id for step in raised.value.report.conflicts} == fails
        assert all("did not follow" in str(one.reason) for one in raised.value.report.conflicts)
        assert "call it again" in "".join(raised.value.failed[ids["b"]].__notes__)
        assert self.texts(kind) == {"a": 1, "b!": 1, "tagged": 2, "later": None}
        lengths = {one: len(await kind.records(one)) for one in ids.values()}
        kind.store.fails_to_change.clear()
        planned = await kind.call("rollback", to=then, user_id="ann", dry_run=True)
        report = await kind.call("rollback", to=then, user_id="ann")
        assert planned.steps == report.steps
        assert (report.restored, report.deleted, report.unchanged) == (3, 1, 1)
        assert {step.record_id for step in report.steps} == {None}
        assert self.texts(kind) == {"a": 1, "b": 1, "tagged": 1, "deleted": 1}
        assert {one: len(await kind.records(one)) for one in ids.values()} == lengths
        assert (await kind.call("rollback", to=then, user_id="ann")).unchanged == 5
        await kind.check()

    async def test_a_failure_before_the_first_change_changes_nothing(self, instant: Kind) -> None:
        kind = instant
        then, ids = await self.changed(kind)
        kind.memory.embedding_model = embedder = Embedder()
        embedder.refused = "a"
        kind.store.fails_to_read = {ids["b"]}
        with pytest.raises(RollbackIncomplete) as raised:
            await kind.call("rollback", to=then, user_id="ann")
        assert set(raised.value.failed) == {ids["a"], ids["b"]}
        assert {one.record_id for one in raised.value.report.conflicts} == {None}
        assert self.texts(kind) == {"a!": 1, "b!": 1, "tagged": 1, "deleted": 1}
        await kind.check()
        embedder.refused = ""
        kind.store.fails_to_read.clear()
        assert (await kind.call("rollback", to=then, user_id="ann")).restored == 2
        await kind.check()

    async def test_stopped_between_the_history_and_the_vector_store(self, instant: Kind) -> None:
        kind = instant
        then, ids = await self.changed(kind)
        kind.store.error = Stopped()
        for name in ("a", "tagged", "deleted", "later"):
            kind.store.fails_to_change = {ids[name]}
            with pytest.raises((Stopped, asyncio.CancelledError)):
                await kind.call("rollback", to=then, memory_ids=[ids[name]])
        kind.store.fails_to_change.clear()
        report = await kind.call("rollback", to=then, user_id="ann")
        assert (report.restored, report.deleted) == (4, 1)
        assert self.texts(kind) == {"a": 1, "b": 1, "tagged": 1, "deleted": 1}
        await kind.check()

    async def test_a_vector_store_that_is_down_ends_the_rollback(self, instant: Kind) -> None:
        kind = instant
        ids = [str(n) for n in range(300)]
        whose = {"user_id": "ann"}
        async with open_history(kind.path) as history:
            await history.batch_add_history(
                [{"memory_id": one, "event": "ADD", "owner": whose} for one in ids]
            )
        kind.store.fails_to_read = set(ids)
        with pytest.raises(RollbackIncomplete) as raised:
            await kind.call("rollback", to=BEFORE_ALL, user_id="ann")
        assert len(raised.value.report.steps) == len(raised.value.failed) == 256


class TestAtTheSameTime:
    async def test_two_rollbacks_at_the_same_time(self, instant: Kind) -> None:
        kind = instant
        ids = [await kind.add(str(n)) for n in range(20)]
        then = now()
        for memory_id in ids:
            await kind.update(memory_id, "changed")
        reports = await asyncio.gather(
            kind.call("rollback", to=then, user_id="ann"),
            kind.call("rollback", to=then, memory_ids=ids[::-1]),
            kind.call("rollback", to=BEFORE_ALL, memory_ids=ids[:10]),
        )
        assert [report.conflicts for report in reports] == [()] * 3
        await kind.check()
        for n, memory_id in enumerate(ids):
            assert n < 10 or kind.store.rows[memory_id]["data"] == str(n)
            assert len(await kind.records(memory_id)) <= (5 if n < 10 else 3)

    async def test_a_rollback_during_writes(self, instant: Kind) -> None:
        kind = instant
        ids = [await kind.add(str(n)) for n in range(10)]
        then = now()
        done = asyncio.Event()

        async def write(memory_id: str) -> None:
            for n in range(100):
                if done.is_set():
                    return
                if memory_id in kind.store.rows:
                    await kind.update(memory_id, f"text {n}")
                await kind.add("more")

        writers = [asyncio.create_task(write(memory_id)) for memory_id in ids]
        await asyncio.sleep(0)
        report = await kind.call("rollback", to=then, memory_ids=ids)
        done.set()
        await asyncio.gather(*writers)
        assert report.conflicts == ()
        for n, step in enumerate(report.steps):
            records = await kind.records(step.memory_id)
            made = [one.new_memory for one in records if one.id == step.record_id]
            assert made == ([str(n)] if step.action == "restore" else [])
        await kind.check()

    async def test_writers_without_turns(self, instant: Kind) -> None:
        """They write a record just before ours: the memory is planned again."""
        kind = instant
        memory_id = await kind.add("tea")
        then = now()
        await kind.update(memory_id, "mate")

        async def write() -> None:
            async with open_history(kind.path, migrate=False) as history:
                await history.update_history(memory_id, "by others")

        class Meanwhile(Embedder):
            def embed(self, text: str, *_: Any, **__: Any) -> list[float]:
                if not self.texts:
                    asyncio.run(write())
                return super().embed(text)

        kind.memory.embedding_model = Meanwhile()
        report = await kind.call("rollback", to=then, user_id="ann")
        assert actions(report) == {memory_id: "restore"}
        texts = [one.new_memory for one in await kind.records(memory_id)]
        assert texts == ["tea", "mate", "by others", "tea"]
        await kind.check()

    async def test_an_erasure_during_a_rollback(self, instant: Kind) -> None:
        """The owner is erased just before a memory is written: its text does not come back."""
        kind = instant
        secret, other = await kind.add("secret"), await kind.add("tea", "bob")
        then = now()
        for memory_id in (secret, other):
            await kind.update(memory_id, "mate")

        async def erase() -> None:
            async with open_history(kind.path, migrate=False) as history:
                await history.erase(user_id="ann", reason="asked for", vacuum=False)

        class Meanwhile(Embedder):
            def embed(self, text: str, *_: Any, **__: Any) -> list[float]:
                if text == "secret":
                    asyncio.run(erase())
                return super().embed(text)

        kind.memory.embedding_model = Meanwhile()
        report = await kind.call("rollback", to=then, memory_ids=[secret, other])
        assert actions(report) == {other: "restore", secret: "conflict"}
        assert [one.new_memory for one in await kind.records(secret)] == [None, None]
        assert [one.new_memory for one in await kind.records(other)][-1] == "tea"

    @pytest.mark.parametrize("how", ["cancelled", "closed"])
    async def test_cancelling_or_closing_stops_it_between_two_memories(
        self, configured: Configured, tmp_path: Path, how: str
    ) -> None:
        kind = Kind(AsyncMemory, configured(), tmp_path / "history.db")
        kind.be_instant()
        ids = {await kind.add(str(n)) for n in range(40)}
        store = kind.store
        store.changed.clear()
        store.gate = threading.Event()
        task = asyncio.create_task(kind.call("rollback", to=BEFORE_ALL, user_id="ann"))
        await asyncio.to_thread(store.changed.wait, LONG_S)
        closing = asyncio.create_task(asyncio.sleep(0) if how == "cancelled" else kind.close())
        await asyncio.sleep(0)
        if how == "cancelled":
            task.cancel()
        store.gate.set()
        await asyncio.wait([task, closing])
        expected = asyncio.CancelledError if how == "cancelled" else HistoryClosed
        with pytest.raises(expected):
            task.result()
        await kind.close()
        assert set() < set(store.rows) < ids
        await kind.check()
        again = Kind(AsyncMemory, configured(), tmp_path / "history.db")
        again.be_instant()
        again.memory.vector_store = store
        report = await again.call("rollback", to=BEFORE_ALL, user_id="ann")
        assert report.deleted + report.unchanged == 40
        assert store.rows == {}
        await again.close()


class TestEmbeddings:
    async def restored(self, kind: Kind, embedder: Any, refused: str = "") -> RollbackReport:
        """Change twelve memories, two with the same text, and roll them back."""
        ids = [await kind.add(str(n)) for n in [*range(11), 0]]
        then = now()
        for memory_id in ids:
            await kind.update(memory_id, "changed")
        embedder.refused = refused
        kind.memory.embedding_model = embedder
        try:
            report: RollbackReport = await kind.call("rollback", to=then, user_id="ann")
        except RollbackIncomplete as error:
            report = error.report
        await kind.check()
        return report

    @pytest.mark.mem0
    async def test_embeddings_are_computed_in_batches(self, instant: Kind) -> None:
        embedder = BatchEmbedder()
        assert (await self.restored(instant, embedder)).restored == 12
        assert [sorted(texts) for texts in embedder.batches] == [sorted(map(str, range(11)))]
        assert embedder.texts == []

    async def test_embeddings_are_computed_one_by_one(self, instant: Kind) -> None:
        """By a model without batches, and if a batch is refused for one text."""
        embedder = Embedder()
        assert (await self.restored(instant, embedder)).restored == 12
        assert len(embedder.texts) == 12
        batches = BatchEmbedder()
        report = await self.restored(instant, batches, refused="7")
        (failed,) = report.conflicts
        assert instant.store.rows[failed.memory_id]["data"] == "changed"
        assert "7" not in batches.texts


class TestUnrecordedTexts:
    """The vector store has a text that others wrote, and that the history does not have."""

    @pytest.mark.mem0
    async def test_unrecorded_texts_are_recorded_before_they_are_replaced(
        self, instant: Kind
    ) -> None:
        kind = instant
        existing, later, gone = [await kind.add(name, n=1) for name in ("tea", "milk", "old")]
        await kind.call("delete", gone)
        then = now()
        added = await kind.add("added", n=1)
        await kind.update(later, "recorded")
        whose = {"user_id": "ann"}
        kind.store.rows[existing] |= {"data": "by others", "n": 2}
        kind.store.rows[later]["data"] = "by others"
        kind.store.rows[added]["data"] = "by others"
        kind.store.rows[gone] = {"data": "by others", **whose}
        planned = await kind.call("rollback", to=then, user_id="ann", dry_run=True)
        report = await kind.call("rollback", to=then, user_id="ann")
        assert planned.steps == report.steps
        assert (report.restored, report.deleted) == (2, 2)
        await kind.check()
        assert {row["data"]: row["n"] for row in kind.store.rows.values()} == {"tea": 1, "milk": 1}
        records = await kind.records(existing)
        assert [(one.event, one.new_memory) for one in records] == [
            ("ADD", "tea"),
            ("UPDATE", "by others"),
            ("UPDATE", "tea"),
        ]
        assert (records[1].cause, records[1].context) == (None, {"n": 2})
        back = await kind.call("undo", cause={"rollback": report.id})
        assert back.conflicts == ()
        assert [row["data"] for row in kind.store.rows.values()] == ["by others"] * 4
        await kind.check()

    async def test_restore_records_unrecorded_texts_too(self, instant: Kind) -> None:
        kind = instant
        memory_id = await kind.add("tea")
        await kind.update(memory_id, "mate")
        kind.store.rows[memory_id]["data"] = "by others"
        kind.store.fails_to_change = {memory_id}
        with pytest.raises(OSError, match="no vectors"):
            await kind.call("restore", memory_id, to=1)
        kind.store.fails_to_change.clear()
        record = await kind.call("restore", memory_id, to=1, actor_id="eve")
        texts = [one.new_memory for one in await kind.records(memory_id)]
        assert texts == ["tea", "mate", "by others", "tea"]
        assert (record["event"], record["old_memory"]) == ("UPDATE", "by others")
        await kind.check()

    async def test_unrecorded_texts_are_not_undone_with_a_run(self, instant: Kind) -> None:
        kind = instant
        with recording(cause={"run_id": "r"}):
            memory_id = await kind.add("tea")
        kind.store.rows[memory_id]["data"] = "by others"
        report = await kind.call("undo", run_id="r")
        (conflict,) = report.conflicts
        assert "which others wrote without a record" in str(conflict.reason)
        assert kind.store.rows[memory_id]["data"] == "by others"
        assert len(await kind.records(memory_id)) == 1

    async def test_an_erased_text_is_not_recorded_again(self, instant: Kind) -> None:
        """The unrecorded text may be one that was erased."""
        kind = instant
        memory_id = await kind.add("secret", n=1)
        async with open_history(kind.path) as history:
            await history.erase(memory_ids=[memory_id], reason="asked for", vacuum=False)
        assert (await kind.call("rollback", to=BEFORE_ALL, user_id="ann")).deleted == 1
        assert kind.store.rows == {}
        records = await kind.records(memory_id)
        assert [(one.old_memory, one.new_memory, one.context) for one in records] == [
            (None, None, None)
        ] * 2


async def test_a_history_in_memory(configured: Configured, tmp_path: Path) -> None:
    memory = AsyncMemory.from_config(configured(), history=":memory:")
    memory.vector_store = store = InstantStore()
    memory.embedding_model = InstantEmbedder()
    async with memory:
        added = await memory.add("tea", user_id="ann", infer=False)
        then = now()
        await memory.update(added["results"][0]["id"], "mate")
        assert (await memory.rollback(to=then, user_id="ann")).restored == 1
        assert [row["data"] for row in store.rows.values()] == ["tea"]
        assert (await memory.undo(cause={"user": "none"})).steps == ()


async def test_the_guide(
    configured: Configured, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scope: dict[str, Any] = {}
    exec(example("mem0-rollback"), scope)
    kind = Kind(AsyncMemory, configured(), tmp_path / "history.db")
    kind.be_instant()
    memory_id = await kind.add("tea")
    then = now()
    with recording(cause={"run_id": "r"}):
        await kind.update(memory_id, "mate")
        other = await kind.add("cocoa", "bob")
    await scope["take_back"](kind.memory, then, "r")
    assert capsys.readouterr().out.startswith("would have restored 1 memory")
    assert [row["data"] for row in kind.store.rows.values()] == ["tea"]
    await kind.update(memory_id, "mate")
    kind.store.fails_to_change = {memory_id}
    await scope["take_back"](kind.memory, then, "r")
    assert "1 memory could not be taken back" in capsys.readouterr().out
    assert other not in kind.store.rows
    await kind.close()
