"""The spans of mem0's operations, with those of their history inside."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from async_history.mem0 import AsyncMemory, Memory
from tests.mem0.memories import Configured, MakeMemory, make_instant
from tests.otel.conftest import Exported

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

Instrumented = Callable[..., Exported]
EXPECTED = (
    ("upsert_memory", None),
    ("search_memory", None),
    ("update_memory", "ID"),
    ("delete_memory", "ID"),
    ("delete_memory_store", None),
)
"""The operations of `use` and `use_blocking`, and whether they concern the one memory."""


async def use(memory: AsyncMemory) -> str:
    added = await memory.add("likes tea", user_id="u", infer=False)
    memory_id: str = added["results"][0]["id"]
    find_nothing_by_keyword(memory)
    await memory.search("tea", **asked(memory.search))
    await memory.update(memory_id, "likes mate")
    await memory.delete(memory_id)
    await memory.reset()
    with pytest.raises(ValueError, match=r"."):
        await memory.update(memory_id, "x")
    return memory_id


def use_blocking(memory: Memory) -> str:
    added = memory.add("likes tea", user_id="u", infer=False)
    memory_id: str = added["results"][0]["id"]
    find_nothing_by_keyword(memory)
    memory.search("tea", **asked(memory.search))
    memory.update(memory_id, "likes mate")
    memory.delete(memory_id)
    memory.reset()
    with pytest.raises(ValueError, match=r"."):
        memory.update(memory_id, "x")
    return memory_id


def find_nothing_by_keyword(memory: Any) -> None:
    vars(memory)["vector_store"].keyword_search = lambda **_: None


def asked(search: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments that name a user: mem0 2.x takes filters."""
    names = search.__wrapped__.__code__.co_varnames  # type: ignore[attr-defined]
    return {"user_id": "u"} if "user_id" in names else {"filters": {"user_id": "u"}}


def of_memory(span: ReadableSpan) -> object:
    return (span.attributes or {}).get("gen_ai.memory.record.id")


def check(exported: Exported, memory_id: str, store: str) -> None:
    tops = [one for one in exported.spans() if one.parent is None]
    failed = tops.pop()
    assert [(one.name, of_memory(one)) for one in tops] == [
        (name, memory_id if whose else None) for name, whose in EXPECTED
    ]
    assert failed.name == "update_memory"
    assert (failed.attributes or {})["error.type"] == "ValueError"
    for one in tops:
        assert (one.attributes or {})["gen_ai.operation.name"] == one.name
        assert str((one.attributes or {})["gen_ai.memory.store.id"]).endswith(store)
    (create,) = exported.spans("create_memory")
    assert of_memory(create) == memory_id
    upsert, _, update, delete, _ = tops
    assert create.parent is not None
    assert create.parent.span_id == upsert.context.span_id
    for top in (create, update, delete):
        written = [
            one
            for one in exported.spans("add_history")
            if one.parent is not None and one.parent.span_id == top.context.span_id
        ]
        assert len(written) == 1, top.name
    assert "likes" not in "".join(span.to_json() for span in exported.spans())
    counts = {
        (attributes["gen_ai.operation.name"], attributes.get("error.type")): count
        for attributes, (count, _) in exported.metrics()["gen_ai.client.operation.duration"]
    }
    expected: dict[tuple[str, str | None], int] = {(name, None): 1 for name, _ in EXPECTED}
    assert counts == {**expected, ("update_memory", "ValueError"): 1}


async def test_operations_of_an_async_memory(
    make_memory: MakeMemory, instrumented: Instrumented
) -> None:
    exported = instrumented("memory", "calls")
    async with make_memory() as memory:
        memory_id = await use(memory)
    check(exported, memory_id, "history.db")


async def test_operations_of_a_synchronous_memory(
    configured: Configured, instrumented: Instrumented
) -> None:
    exported = instrumented("memory", "calls")

    def run() -> str:
        memory = Memory.from_config(configured())
        make_instant(memory)
        try:
            return use_blocking(memory)
        finally:
            memory.close()

    check(exported, await asyncio.to_thread(run), "history.db")


async def test_the_cause_is_the_trace(make_memory: MakeMemory, instrumented: Instrumented) -> None:
    """The operation's own span, if there is none around it."""
    exported = instrumented("memory")
    async with make_memory() as memory:
        added = await memory.add("tea", user_id="u", infer=False)
        memory_id = added["results"][0]["id"]
        manager: Any = await memory._history_state().open_store()
        (record,) = await manager.get_history(memory_id)
    (span,) = exported.spans("upsert_memory")
    assert record.cause["trace_id"] == format(span.context.trace_id, "032x")
