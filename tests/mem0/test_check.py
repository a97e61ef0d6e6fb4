"""Comparing the vector store with the history: each difference is named and can be repaired."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from async_history import ChainFault, InvalidInput, open_history
from async_history.cli.app import app
from async_history.mem0 import AsyncMemory, Difference, Memory, MemoryCheck
from async_history.mem0._vectors.vector_listing import list_memories
from tests.mem0.memories import Configured, Kind, infers, release_all
from tests.subprocesses.openai_server import DIMENSIONS, Model
from tests.support.docs_examples import example
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

LONG_AGO = "2026-01-01T00:00:00+00:00"
STRANGER = "00000000-0000-4000-8000-000000000001"
OLD = "00000000-0000-4000-8000-000000000002"


def named(report: MemoryCheck) -> dict[str, tuple[Difference, ...]]:
    return {one.memory_id: one.differences for one in report.differences}


class Planted:
    """Memories of either class, each with a different kind of fault."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.ids: dict[str, str] = {}

    async def plant(self) -> "Planted":
        kind, vectors = self.kind, self.kind.memory.vector_store
        names = ("well", "missing", "deleted", "text", "metadata", "owner")
        self.ids = {name: await kind.add(f"{name} tea", n=1) for name in names}
        ids, payloads = self.ids, {name: self.held(name) for name in names}
        await kind.call("delete", ids["deleted"])
        await asyncio.to_thread(vectors.delete, ids["missing"])
        for name, change in (
            ("text", {"data": "text mate"}),
            ("metadata", {"n": 2}),
            ("owner", {"user_id": "bob"}),
        ):
            await asyncio.to_thread(
                vectors.update, ids[name], [0.5] * DIMENSIONS, {**payloads[name], **change}
            )
        await self.insert(ids["deleted"], payloads["deleted"])
        ids["stranger"], ids["old"] = STRANGER, OLD
        of_ann = {"user_id": "ann", "created_at": LONG_AGO, "n": 1}
        await self.insert(STRANGER, {"data": "stranger tea", **of_ann})
        await self.insert(OLD, {"data": "old tea", **of_ann})
        async with open_history(kind.path) as history:
            await history.add_history(OLD, None, "old tea", "ADD", created_at=LONG_AGO)
        return self

    async def insert(self, memory_id: str, payload: Mapping[str, Any]) -> None:
        store = self.kind.memory.vector_store
        await asyncio.to_thread(
            store.insert, [[0.5] * DIMENSIONS], payloads=[dict(payload)], ids=[memory_id]
        )

    def held(self, name: str) -> dict[str, Any]:
        """Return a payload, or None."""
        row = self.kind.memory.vector_store.get(vector_id=self.ids[name])
        return {} if row is None else dict(row.payload)

    @property
    def expected(self) -> dict[str, tuple[Difference, ...]]:
        kinds = {
            "missing": Difference.MISSING,
            "deleted": Difference.DELETED,
            "text": Difference.TEXT,
            "metadata": Difference.METADATA,
            "owner": Difference.OWNER,
            "stranger": Difference.NO_HISTORY,
            "old": Difference.UNKNOWN_OWNER,
        }
        return {self.ids[name]: (value,) for name, value in kinds.items()}

    async def left(self) -> dict[str, tuple[Difference, ...]]:
        return named(await self.kind.call("check"))


@pytest.fixture
async def planted(kind: Kind) -> Planted:
    return await Planted(kind).plant()


async def test_nothing_differs_after_and_during_all_operations(instant: Kind) -> None:
    """All operations at the same time, with checks during them: a check reports no fault."""
    is_over = False

    async def use_memory(number: int) -> None:
        user = f"user-{number % 2}"
        kept = await instant.add(f"{number} tea", user, n=number, deep={"x": [1.5, None]})
        for text in ("mate", "milk"):
            await instant.update(kept, f"{number} {text}", n=text)
        gone = await instant.add(f"{number} water", user)
        await instant.call("delete", gone)
        if number % 3 == 0:
            await instant.call("restore", gone, to=1)

    async def check() -> None:
        while not is_over:
            report = await instant.call("check")
            assert (report.problems, report.notes, report.differences) == ((), (), ())

    async with asyncio.TaskGroup() as tasks:
        checking = [tasks.create_task(check()) for _ in range(2)]
        await asyncio.gather(*(use_memory(number) for number in range(12)))
        is_over = True
        await asyncio.gather(*checking)
    report = await instant.call("check")
    assert (report.memories, report.history.memories, report.history.records) == (24, 24, 64)
    assert (report.problems, report.notes, report.unlisted) == ((), (), None)
    assert (await instant.call("check", user_id="user-1")).memories == 12


@pytest.mark.mem0
async def test_nothing_differs_whatever_mem0_records(kind: Kind, model: Model) -> None:
    """Inferred texts, named speakers, values that no database stores."""
    infers(model, "likes tea", "likes mate")
    ann = {"role": "user", "content": "I am Ann", "name": "ann"}
    bot = {"role": "assistant", "content": "Hello"}
    await kind.call("add", [ann, bot], user_id="ann", run_id="r1", metadata={"tag": "x"})
    odd = {"role": "boss", "n": float("nan"), "text": "a\ud800b\0", "one": 1.0}
    await kind.call("add", [ann], user_id="ann", agent_id="a", infer=False, metadata=odd)
    await kind.update(await kind.add("odd \0 text"), "odd \0 again")
    report = await kind.call("check")
    assert (report.memories, report.differences, report.notes) == (4, (), ())


@pytest.mark.mem0
async def test_each_fault_is_named(planted: Planted) -> None:
    kind, ids = planted.kind, planted.ids
    async with open_history(kind.path) as history:
        await history.add_history(ids["well"], "another", "well tea", "UPDATE")
    report = await kind.call("check", repair="vector")
    assert named(report) == planted.expected
    assert report.memories == 8
    (broken,) = report.history.broken
    assert (broken.memory_id, broken.fault) == (ids["well"], ChainFault.TEXT)
    assert len(report.problems) == 6, "an owner that only the vector store has is a note"
    assert len(report.notes) == 2
    assert not report.done
    reasons = {one.memory_id: one.reason for one in report.differences if not one.repaired}
    assert set(reasons) == {STRANGER, OLD}
    assert "the history does not know" in str(reasons[STRANGER])
    assert await planted.left() == planted.expected, "it was a dry run"
    of_bob = await kind.call("check", user_id="bob")
    assert named(of_bob) == {ids["owner"]: (Difference.OWNER,)}
    of_ann = await kind.call("check", user_id="ann")
    assert named(of_ann) == planted.expected
    with pytest.raises(InvalidInput, match="repair"):
        await kind.call("check", repair="both")


async def test_repairing_the_history(planted: Planted) -> None:
    kind, ids = planted.kind, planted.ids
    was = {name: planted.held(name) for name in ids}
    report = await kind.call("check", repair="history", dry_run=False)
    assert named(report) == planted.expected
    assert {one.memory_id for one in report.differences if not one.repaired} == {ids["owner"]}
    assert {name: planted.held(name) for name in ids} == was
    assert await planted.left() == {ids["owner"]: (Difference.OWNER,)}
    for name in ("missing", "deleted", "text", "metadata", "stranger"):
        record = (await kind.records(ids[name]))[-1]
        payload = was[name]
        assert record.cause == {"check": report.id}, name
        assert record.new_memory == payload.get("data"), name
        assert getattr(record.owner, "user_id", None) == "ann", name
        assert record.context == {"n": payload.get("n", 1)}, name
        times = [one.occurred_at for one in await kind.records(ids[name]) if one.occurred_at]
        assert times == sorted(times), name
    assert (await kind.records(OLD))[0].owner is not None
    again = await kind.call("check", user_id="ann")
    assert again.history.notes == (), "the chains continue, in order"


@pytest.mark.mem0
async def test_repairing_the_vector_store(planted: Planted) -> None:
    kind, ids = planted.kind, planted.ids
    records = {name: await kind.records(ids[name]) for name in ids}
    report = await kind.call("check", repair="vector", dry_run=False)
    assert report.repaired == 5
    assert len(report.problems) == 1
    assert await planted.left() == {
        STRANGER: (Difference.NO_HISTORY,),
        OLD: (Difference.UNKNOWN_OWNER,),
    }
    assert {name: await kind.records(ids[name]) for name in ids} == records
    listed = await kind.listed()
    names = ("well", "missing", "text", "metadata", "owner")
    for name in names:
        assert listed[ids[name]] == (f"{name} tea", {"n": 1})
        assert await kind.found(f"{name} tea") == f"{name} tea", "by its embedding"
    assert ids["deleted"] not in listed
    assert await kind.listed("bob") == {}
    assert STRANGER in listed


async def test_a_repair_that_fails_for_one_memory_repairs_the_others(instant: Kind) -> None:
    """The report names it. A second call repairs the rest. If all fail, the error is raised."""
    ids = [await instant.add(text) for text in ("tea", "mate", "milk")]
    for memory_id in ids:
        instant.store.rows[memory_id]["data"] = "another"
    instant.store.fails_to_change = {ids[1]}
    report = await instant.call("check", repair="vector", dry_run=False)
    (failed,) = (one for one in report.differences if not one.repaired)
    assert failed.memory_id == ids[1]
    assert "no vectors today" in str(failed.reason)
    assert "1 memory with another text" in report.outcome()
    with pytest.raises(OSError, match="no vectors today"):
        await instant.call("check", repair="vector", dry_run=False)
    instant.store.fails_to_change = set()
    assert (await instant.call("check", repair="vector", dry_run=False)).problems == ()
    assert [instant.store.rows[one]["data"] for one in ids] == ["tea", "mate", "milk"]


async def test_a_check_waits_for_running_operations(instant: Kind) -> None:
    """An update and an add that have changed the vector store."""
    memory_id = await instant.add("tea")
    store = instant.store
    for begin in (instant.update(memory_id, "mate"), instant.add("milk")):
        store.gate, store.changed = threading.Event(), threading.Event()
        operation = asyncio.create_task(begin)
        await asyncio.to_thread(store.changed.wait, LONG_S)
        checking = asyncio.create_task(instant.call("check", repair="history", dry_run=False))
        await asyncio.wait([checking], timeout=0.3)  # long enough for a check that does not wait
        assert not checking.done()
        release_all(instant.memory)
        report = await checking
        await operation
        assert (report.differences, report.memories > 0) == ((), True)
    async with open_history(instant.path) as history:
        assert await history.count_history() == 3


async def test_erased_texts_stay_erased(instant: Kind) -> None:
    """An erased text is not a difference, and no repair brings it back."""
    ids = [await instant.add(text) for text in ("tea", "mate")]
    async with open_history(instant.path) as history:
        await history.erase(memory_ids=ids[:1], reason="asked", vacuum=False)
        await history.erase(user_id="ann", reason="asked", vacuum=False)
    del instant.store.rows[ids[1]]
    for repair in ("history", "vector"):
        report = await instant.call("check", repair=repair, dry_run=False)
        assert (report.differences, report.problems) == ((), ())
    for memory_id in ids:
        (record,) = await instant.records(memory_id)
        assert (record.new_memory, record.owner) == (None, None)


async def test_the_example_in_the_documentation(configured: Configured, tmp_path: Path) -> None:
    kind = Kind(AsyncMemory, configured(), tmp_path / "history.db")
    planted = await Planted(kind).plant()
    scope: dict[str, Any] = {}
    exec(example("mem0-check"), scope)
    assert not await scope["nightly"](kind.memory)
    await scope["repair"](kind.memory)
    assert set(await planted.left()) == {STRANGER, OLD}
    await kind.close()


async def test_a_vector_store_that_lists_some_memories_only(instant: Kind) -> None:
    """Each memory of the history is compared anyway."""
    names = [str(number) for number in range(102)]
    payload = {"data": "tea", "user_id": "ann", "created_at": LONG_AGO}
    added = {"new_memory": "tea", "event": "ADD", "created_at": LONG_AGO}
    async with open_history(instant.path) as history:
        records = [{**added, "memory_id": name, "owner": {"user_id": "ann"}} for name in names]
        await history.batch_add_history(records)
        await history.add_history(names[-1], "tea", None, "DELETE")
    store = instant.store
    store.rows.update((name, dict(payload)) for name in names)
    list_all = store.list
    store.list = lambda **asked: [list_all(**asked)[0][:100]]
    report = await instant.call("check")
    assert named(report) == {names[-1]: (Difference.DELETED,)}
    assert "exactly 100" in str(report.unlisted)
    assert any("exactly 100" in note for note in report.notes)


class Rows:
    """A vector store that lists up to a bound: it refuses more, or cuts silently."""

    def __init__(self, rows: int, bound: int, refuses: bool) -> None:
        self._rows = [
            SimpleNamespace(id=number, payload={"n": number}) for number in range(min(rows, bound))
        ]
        self._bound, self._refuses = bound, refuses
        self.asked: list[int] = []

    def list(self, filters: Any = None, top_k: int = 100) -> Any:
        self.asked.append(top_k)
        if self._refuses and top_k > self._bound:
            raise ValueError("too many")
        return [self._rows[: min(top_k, self._bound)]]


class FlatRows(Rows):
    def list(self, filters: Any = None, limit: int = 100) -> Any:
        return super().list(filters, limit)[0]


@pytest.mark.parametrize("kind_of_rows", [Rows, FlatRows])
def test_how_far_a_vector_store_lists(kind_of_rows: Callable[..., Rows]) -> None:
    def listed(
        rows: int, bound: int = 10**6, *, refuses: bool = False, **most: int
    ) -> tuple[int, str, int]:
        store = kind_of_rows(rows, bound, refuses)
        listing = list_memories(SimpleNamespace(vector_store=store), {}, **most)
        return len(listing.payloads), listing.limit or "", len(store.asked)

    assert listed(0) == (0, "", 1)
    assert listed(999) == (999, "", 1)
    assert listed(1_024) == (1_024, "", 2)
    assert listed(5_000) == (5_000, "", 3)
    assert listed(5_000, 2_000, refuses=True)[:2] == (
        1_024,
        "it lists at most its first 1,024 (ValueError('too many'))",
    )
    assert "may be its bound" in listed(20_000, 10_000)[1]
    assert "were asked for" in listed(5_000, most=2_000)[1]


def test_the_command(configured: Configured, tmp_path: Path) -> None:
    config, run = configured(), CliRunner()
    file = tmp_path / "mem0.json"
    file.write_text(json.dumps(config))
    memory = Memory.from_config(config)
    added = memory.add("likes tea", user_id="ann", infer=False)["results"][0]["id"]
    memory.add("likes mate", user_id="bob", infer=False)

    def end() -> None:
        memory.close()
        memory.vector_store.client.close()

    end()
    result = run.invoke(app, ["check", "--mem0", str(file)])
    assert (result.exit_code, "Nothing is wrong" in result.stdout) == (0, True), result.output
    memory = Memory.from_config(config)
    memory.vector_store.delete(added)
    end()
    assert run.invoke(app, ["check", "--mem0", str(file), "--user", "bob"]).exit_code == 0
    result = run.invoke(app, ["check", "--mem0", str(file), "--user", "ann", "--json"])
    report = json.loads(result.stdout)
    assert (result.exit_code, len(report["problems"])) == (1, 1)
    assert report["differences"][0]["differences"] == ["missing"]
    repair = ["check", "--mem0", str(file), "--repair-vector"]
    result = run.invoke(app, [*repair, "--dry-run"])
    assert (result.exit_code, added in result.stdout) == (1, True)
    refused = run.invoke(app, repair)
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    result = run.invoke(app, [*repair, "--yes"])
    assert (result.exit_code, "1 memory repaired" in result.stdout) == (0, True), result.output
    memory = Memory.from_config(config)
    assert memory.vector_store.get(added).payload["data"] == "likes tea"
    end()
    for wrong in (
        ["--user", "ann"],
        ["--repair-history"],
        ["--mem0", str(file), "--repair"],
        ["--mem0", str(file), "--repair-history", "--repair-vector"],
        ["--mem0", str(tmp_path / "none.json")],
    ):
        assert run.invoke(app, ["check", *wrong]).exit_code in (1, 2)
