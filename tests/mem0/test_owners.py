"""Owners, metadata and causes: recorded by every call of mem0, and restored."""

import asyncio
import json
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mem0 import AsyncMemory as PlainAsyncMemory
from mem0 import Memory as PlainMemory

from async_history import Owner, OwnerConflict, open_history, recording
from async_history.blocking._sanitize import Sanitizer
from async_history.mem0 import AsyncMemory, Memory
from async_history.mem0._vectors.payloads import context_in, owner_in
from tests.mem0.fakes import answer
from tests.mem0.memories import IS_V1, SCOPES, WHOSE, Configured, Used, infers
from tests.subprocesses.openai_server import Model

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

OWN = {"data", "hash", "created_at", "updated_at", "text_lemmatized"}


MakeUsed = Callable[..., Used]


def metadata_of(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the context that a record must have for a payload of the vector store."""
    known = {*OWN, *SCOPES, "actor_id", "role"}
    return {name: value for name, value in payload.items() if name not in known}


@pytest.mark.mem0
class TestEveryPath:
    async def test_a_text_without_inference(self, used: Used) -> None:
        expected: list[dict[str, Any]] = []
        messages = [{"role": "user", "content": "likes tea", "name": "ann"}]
        memory_id = await used.add(messages, metadata={"category": "food", "n": [1, {"x": None}]})
        expected.append(metadata_of(used.store.rows[memory_id]))
        assert expected == [{"category": "food", "n": [1, {"x": None}]}]
        await used.update(memory_id, "likes mate", metadata={"category": "drink"})
        expected.append(metadata_of(used.store.rows[memory_id]))
        await used.update(memory_id, "likes cocoa")
        expected.append(metadata_of(used.store.rows[memory_id]))
        await used.call("delete", memory_id)
        expected.append(expected[-1])
        records = await used.records(memory_id)
        assert [record.context for record in records] == expected
        assert {record.owner for record in records} == {Owner(**WHOSE)}
        assert {record.cause for record in records} == {None}
        assert [record.event for record in records] == ["ADD", "UPDATE", "UPDATE", "DELETE"]

    async def test_texts_that_a_model_infers(self, used: Used, model: Model) -> None:
        infers(model, "likes tea", "is Ann")
        given = {"user_id": "ann", "metadata": {"source": "chat"}}
        result = await used.call("add", "I am Ann and like tea", **given)
        assert len(result["results"]) == 2
        for added in result["results"]:
            (record,) = await used.records(added["id"])
            assert record.owner == Owner(user_id="ann")
            assert record.context == metadata_of(used.store.rows[added["id"]])
            assert record.context == {"source": "chat"}

    @pytest.mark.skipif(not IS_V1, reason="the model of mem0 2.x decides nothing")
    async def test_changes_that_a_model_decides(self, used: Used, model: Model) -> None:
        kept, gone = await used.add("tea", run_id=None), await used.add("milk", run_id=None)
        decided = [
            {"id": str(list(used.store.rows).index(kept)), "text": "mate", "event": "UPDATE"},
            {"id": str(list(used.store.rows).index(gone)), "text": "milk", "event": "DELETE"},
        ]
        model.script = answer({"facts": ["x"]}, {"memory": decided})
        await used.call("add", "x", user_id="ann", agent_id="shop", metadata={"n": 2})
        assert [record.context for record in await used.records(kept)] == [{}, {"n": 2}]
        assert [record.context for record in await used.records(gone)] == [{}, {}]

    async def test_a_procedural_memory(self, used: Used, model: Model) -> None:
        if IS_V1 and isinstance(used.memory, AsyncMemory):
            pytest.importorskip("langchain_core")
        model.script = lambda _: "steps"
        result = await used.call(
            "add",
            "do it",
            agent_id="bot",
            memory_type="procedural_memory",
            metadata={"task": 1},
        )
        (record,) = await used.records(result["results"][0]["id"])
        assert record.owner == Owner(agent_id="bot")
        assert record.context == {"task": 1, "memory_type": "procedural_memory"}

    async def test_delete_all(self, used: Used) -> None:
        mine = [await used.add(str(n), metadata={"n": n}) for n in range(5)]
        other = await used.add("x", user_id="bob")
        await used.call("delete_all", user_id="ann")
        for n, memory_id in enumerate(mine):
            added, deleted = await used.records(memory_id)
            assert deleted.event == "DELETE"
            assert added.context == deleted.context == {"n": n}
            assert deleted.owner == Owner(**WHOSE)
        assert len(await used.records(other)) == 1

    @pytest.mark.skipif(IS_V1, reason="mem0 1.0 changes no metadata alone")
    async def test_a_change_of_metadata_alone(self, used: Used) -> None:
        memory_id = await used.add(metadata={"seen": False, "kept": 1})
        await used.call("update", memory_id, metadata={"seen": True})
        _, record = await used.records(memory_id)
        assert (record.event, record.old_memory, record.new_memory) == ("UPDATE", "tea", "tea")
        assert record.context == {"seen": True, "kept": 1}

    async def test_queries_by_owner_find_the_records(self, used: Used) -> None:
        mine = [await used.add(str(n), run_id=f"r{n % 2}") for n in range(4)]
        await used.add("x", user_id="bob")
        await used.call("delete", mine[0])
        async with open_history(used.path) as history:
            found = [one async for one in history.query_history(user_id="ann", run_id="r0")]
            assert [one.memory_id for one in found] == [mine[0], mine[2], mine[0]]
            existing = [one.memory_id async for one in history.memories(user_id="ann")]
            assert sorted(existing) == sorted(mine[1:])

    async def test_many_operations_at_the_same_time(self, used: Used) -> None:
        """Each record has its own memory's owner and context."""

        async def use_memory(n: int) -> str:
            memory_id = await used.add(str(n), user_id=f"u{n}", metadata={"n": n})
            await used.update(memory_id, f"{n}!", metadata={"n": -n})
            return memory_id

        for n, memory_id in enumerate(await asyncio.gather(*map(use_memory, range(20)))):
            added, updated = await used.records(memory_id)
            assert added.owner == updated.owner == Owner(**{**WHOSE, "user_id": f"u{n}"})
            assert (added.context, updated.context) == ({"n": n}, {"n": -n})


@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.mem0
async def test_no_further_round_trip(configured: Configured, tmp_path: Path, kind: str) -> None:
    """The vector store gets exactly the calls of plain mem0."""
    kinds: dict[str, tuple[Any, Any]] = {
        "async": (PlainAsyncMemory, AsyncMemory),
        "blocking": (PlainMemory, Memory),
    }
    calls = []
    for number, memory_kind in enumerate(kinds[kind]):
        config = configured(history_db_path=str(tmp_path / f"{number}.db"))
        config["vector_store"]["config"]["path"] += str(number)
        used = Used(memory_kind.from_config(config), tmp_path)
        first, second = await used.add("a", metadata={"x": 1}), await used.add("b")
        await used.update(first, "c")
        await used.call("delete", second)
        await used.call("delete_all", user_id="ann")
        calls.append(used.store.calls)
        await used.close()
    assert calls[0] == calls[1]


class TestOddPayloads:
    async def test_a_changed_owner_does_not_lose_the_record(
        self, used: Used, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory_id = await used.add()
        used.store.rows[memory_id]["user_id"] = "bob"
        await used.update(memory_id, "mate")
        await used.call("delete", memory_id)
        records = await used.records(memory_id)
        assert [record.event for record in records] == ["ADD", "UPDATE", "DELETE"]
        assert {record.owner for record in records} == {Owner(**WHOSE)}
        warnings = [
            text for _, _, text in caplog.record_tuples if "without the given owner" in text
        ]
        assert len(warnings) == 2
        assert memory_id in warnings[0]
        assert "another user_id" in warnings[0]

    async def test_an_owner_that_comes_later(self, used: Used) -> None:
        memory_id = await used.add()
        for scope in SCOPES:
            used.store.rows[memory_id].pop(scope)
        async with open_history(used.path) as history:
            await history.reset()
            await history.add_history(memory_id, None, "tea", "ADD")
        await used.update(memory_id, "mate")
        assert [one.owner for one in await used.records(memory_id)] == [None, None]
        used.store.rows[memory_id]["user_id"] = "ann"
        await used.update(memory_id, "cocoa")
        assert {one.owner for one in await used.records(memory_id)} == {Owner(user_id="ann")}

    async def test_values_that_json_cannot_hold_do_not_lose_the_record(
        self, used: Used, caplog: pytest.LogCaptureFixture
    ) -> None:
        day = datetime(2026, 1, 1, tzinfo=UTC)
        odd: dict[Any, Any] = {
            "nan": float("nan"),
            "day": day,
            "nul": "a\0b",
            "half": ["\ud800", {"\udfff": 1}],
            "set": {1},
            7: "seven",
            "plain": "\\u0000",
        }
        loop: list[Any] = []
        loop.append(loop)
        odd["loop"] = loop
        memory_id = await used.add()
        used.store.rows[memory_id].update(odd)
        await used.update(memory_id, "m\0te", metadata=dict(odd) if IS_V1 else None)
        _, record = await used.records(memory_id)
        assert record.context is not None
        assert {name: record.context[name] for name in ("nan", "day", "nul", "set", "7")} == {
            "nan": "NaN",
            "day": str(day),
            "nul": "a\ufffdb",
            "set": "{1}",
            "7": "seven",
        }
        assert record.context["half"] == ["\ufffd", {"\ufffd": 1}]
        assert record.context["plain"] == "\\u0000"
        assert isinstance(record.context["loop"], str)
        warnings = [text for _, _, text in caplog.record_tuples if "with changes" in text]
        assert len(warnings) == 1

    def test_scopes_of_other_types(self) -> None:
        """The owner has them as text, the context unchanged."""
        payload = {
            "data": "x",
            "id": "m",
            "user_id": 7,
            "agent_id": "",
            "run_id": None,
            "app_id": "a",
            "actor_id": "ann",
            "role": "user",
        }
        owner = owner_in(payload, Sanitizer())
        assert owner == Owner(user_id="7", app_id="a")
        columns = {"actor_id": "ann", "role": None}
        assert context_in("m", payload, owner, columns, Sanitizer()) == {
            "user_id": 7,
            "agent_id": "",
            "run_id": None,
            "role": "user",
        }
        assert owner_in({"user_id": "a\0"}, Sanitizer()) == Owner(user_id="a\ufffd")
        assert owner_in({"data": "x"}, Sanitizer()) is None

    def test_a_nul_alone_is_replaced_too(self, caplog: pytest.LogCaptureFixture) -> None:
        """JSON can hold it as an escape, which PostgreSQL's JSON functions refuse."""
        exact = {"a": "\\u0000", "b": "\\\\u0000", "\\u0000": [1]}
        with Sanitizer() as sanitizer:
            assert sanitizer.json("metadata", exact) == exact
        assert caplog.records == []
        for odd in ({"a": "\0"}, {"a": ["\\\0"]}, {"\0": 1}):
            with Sanitizer() as sanitizer:
                found = sanitizer.json("metadata", odd)
            assert found == json.loads(json.dumps(odd).replace("u0000", "ufffd"))
        assert len(caplog.records) == 3

    async def test_the_vector_store_is_the_assigned_object(self, used: Used) -> None:
        """Outside of operations."""
        assert used.memory.vector_store is used.store
        await used.add()
        assert used.memory.vector_store is used.store
        assert used.store.calls == ["insert"]


class TestCause:
    async def test_the_cause_of_a_part_of_a_program(self, used: Used, model: Model) -> None:
        async def request(n: int) -> str:
            with recording(cause={"request_id": str(n)}):
                memory_id = await used.add(str(n))
                await used.update(memory_id, f"{n}!")
                return memory_id

        for n, memory_id in enumerate(await asyncio.gather(*map(request, range(10)))):
            records = await used.records(memory_id)
            assert [one.cause for one in records] == [{"request_id": str(n)}] * 2
        infers(model, "inferred")
        with recording(cause={"request_id": "inferred"}):
            result = await used.call("add", "x", user_id="ann")
        (record,) = await used.records(result["results"][0]["id"])
        assert record.cause == {"request_id": "inferred"}
        await used.call("delete", record.memory_id)
        assert (await used.records(record.memory_id))[-1].cause is None

    async def test_the_cause_of_calls_outside_of_operations(self, used: Used) -> None:
        with recording(cause={"request_id": "1"}):
            if isinstance(used.memory, AsyncMemory):
                used.memory.db.add_history("m", None, "x", "ADD")
            else:
                await asyncio.to_thread(used.memory.db.add_history, "m", None, "x", "ADD")
        await used.close()
        (record,) = await used.records("m")
        assert record.cause == {"request_id": "1"}

    async def test_the_cause_has_the_trace(
        self, used: Used, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        span: ContextVar[int] = ContextVar("span", default=0)

        def current_span() -> Any:
            number = span.get()
            context = SimpleNamespace(trace_id=number, is_valid=number != 0)
            return SimpleNamespace(get_span_context=lambda: context)

        api = SimpleNamespace(get_current_span=current_span)
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", api)
        plain = await used.add()
        span.set(0xABC)
        traced = await used.add()
        with recording(cause={"request_id": "1"}):
            both = await used.add()
            await used.call("delete", both)
        with recording(cause={"trace_id": "mine"}):
            given = await used.add()
        full_cause = {str(number): "x" for number in range(32)}
        with recording(cause=full_cause):
            full = await used.add()
        await used.call("restore", both, to=1)
        trace = f"{0xABC:032x}"
        causes = {name: [one.cause for one in await used.records(name)] for name in used_ids(used)}
        assert causes[plain] == [None]
        assert causes[traced] == [{"trace_id": trace}]
        assert causes[both] == [
            *[{"request_id": "1", "trace_id": trace}] * 2,
            {"trace_id": trace},
        ]
        assert causes[given] == [{"trace_id": "mine"}]
        assert causes[full] == [full_cause]

    async def test_the_cause_has_the_trace_of_opentelemetrys_api(self, used: Used) -> None:
        trace = pytest.importorskip("opentelemetry.trace")
        number = 0x0AF7651916CD43DD8448EB211C80319C
        span = trace.NonRecordingSpan(trace.SpanContext(number, 0xB7AD6B7169203331, is_remote=True))
        with trace.use_span(span):
            memory_id = await used.add()
        (record,) = await used.records(memory_id)
        assert record.cause == {"trace_id": f"{number:032x}"}


def used_ids(used: Used) -> list[str]:
    return list(used.store.rows)


class TestRestoring:
    @pytest.mark.mem0
    async def test_a_deleted_memory_is_restored_with_owner_and_metadata(self, used: Used) -> None:
        messages = [{"role": "user", "content": "tea", "name": "ann"}]
        options = {} if IS_V1 else {"expiration_date": "2099-01-01"}
        memory_id = await used.add(messages, metadata={"category": "food"}, **options)
        first = dict(used.store.rows[memory_id])
        await used.update(memory_id, "mate", metadata={"category": "drink", "new": 1})
        second = dict(used.store.rows[memory_id])
        await used.call("delete", memory_id)
        for version, before in ((1, first), (2, second), (1, first)):
            await used.call("restore", memory_id, to=version)
            now = used.store.rows[memory_id]
            assert {**now, "updated_at": ""} == {**before, "updated_at": ""}
            *_, record = await used.records(memory_id)
            assert record.context == metadata_of(before)
            assert record.owner == Owner(**WHOSE)
            count = len(await used.records(memory_id))
            await used.call("restore", memory_id, to=version)
            assert len(await used.records(memory_id)) == count

    async def test_given_metadata_is_added_to_the_restored(self, used: Used) -> None:
        memory_id = await used.add(metadata={"a": 1, "b": 1})
        await used.call("delete", memory_id)
        given = {"b": 2, "user_id": "ann"}
        await used.call("restore", memory_id, to=1, metadata=given)
        assert metadata_of(used.store.rows[memory_id]) == {"a": 1, "b": 2}
        *_, record = await used.records(memory_id)
        assert record.context == {"a": 1, "b": 2}
        await used.call("restore", memory_id, to=1, metadata={"b": 3, "user_id": "bob"})
        assert metadata_of(used.store.rows[memory_id]) == {"a": 1, "b": 3}
        assert used.store.rows[memory_id]["user_id"] == "ann"
        *_, record = await used.records(memory_id)
        assert (record.event, record.context) == ("UPDATE", {"a": 1, "b": 3})

    async def test_another_owner_is_refused(self, used: Used) -> None:
        memory_id = await used.add()
        await used.call("delete", memory_id)
        for given in ({"user_id": "bob"}, {"app_id": "x"}):
            with pytest.raises(OwnerConflict, match=next(iter(given))):
                await used.call("restore", memory_id, to=1, metadata=given)
        assert used.store.rows == {}
        assert len(await used.records(memory_id)) == 2

    async def test_a_deleted_memory_of_a_history_without_owners(self, used: Used) -> None:
        """It has neither. The DELETE's payload is used, and the caller's arguments."""
        async with open_history(used.path) as history:
            for memory_id in ("noted", "unknown"):
                await history.add_history(memory_id, None, "tea", "ADD")
            await history.add_history(
                "noted", "tea", None, "DELETE", owner={"user_id": "ann"}, context={"n": 1}
            )
            await history.add_history("unknown", "tea", None, "DELETE")
        await used.call("restore", "noted", to=1)
        await used.call("restore", "unknown", to=1, metadata={"user_id": "ann", "n": 2})
        for memory_id, metadata in (("noted", {"n": 1}), ("unknown", {"n": 2})):
            row = used.store.rows[memory_id]
            assert (row["user_id"], metadata_of(row)) == ("ann", metadata)
            *_, record = await used.records(memory_id)
            assert (record.owner, record.context) == (Owner(user_id="ann"), metadata)

    async def test_an_existing_memory_of_a_history_without_owners(self, used: Used) -> None:
        memory_id = await used.add(metadata={"n": 1})
        async with open_history(used.path) as history:
            await history.reset()
            await history.add_history(memory_id, None, "water", "ADD")
            await history.add_history(memory_id, "water", "tea", "UPDATE")
        await used.call("restore", memory_id, to=2)
        assert len(await used.records(memory_id)) == 2
        await used.call("restore", memory_id, to=1)
        row = used.store.rows[memory_id]
        assert (row["data"], metadata_of(row)) == ("water", {"n": 1})
        *_, record = await used.records(memory_id)
        assert (record.owner, record.context) == (Owner(**WHOSE), {"n": 1})


class TestLearning:
    @pytest.mark.mem0
    async def test_owners_are_learned_from_the_vector_store(self, used: Used) -> None:
        known = [await used.add(str(n), user_id=f"u{n}") for n in range(450)]
        gone, nobody = await used.add("gone"), await used.add("nobody's")
        used.store.rows.pop(gone)
        for scope in SCOPES:
            used.store.rows[nobody].pop(scope)
        async with open_history(used.path) as history:
            await history.reset()
            given = [{"memory_id": name, "event": "ADD"} for name in (*known, gone, nobody)]
            await history.batch_add_history(given)
            await history.add_history("has one", None, "x", "ADD", owner={"user_id": "bob"})
        used.store.calls.clear()
        report = await used.call("learn_owners")
        assert (report.memories, report.learned, report.unknown) == (452, 450, 2)
        assert used.store.calls == ["get"] * 452
        records = await used.records()
        assert len(records) == 453
        for n, record in enumerate(records[:450]):
            assert record.owner == Owner(**{**WHOSE, "user_id": f"u{n}"})
        assert [one.owner for one in records[450:]] == [None, None, Owner(user_id="bob")]
        async with open_history(used.path) as history:
            assert await history.count_history(user_id="u7") == 1
            assert await history.count_history(agent_id="shop") == 450
        again = await used.call("learn_owners")
        assert (again.memories, again.learned, again.unknown) == (2, 0, 2)
        await used.update(known[3], "more")
        *_, record = await used.records(known[3])
        assert record.owner == Owner(**{**WHOSE, "user_id": "u3"})
