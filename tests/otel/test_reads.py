"""Spans of reads."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from async_history import CursorGone, HistoryManager, open_history
from tests.conftest import stores, url_of
from tests.otel.conftest import Exported

pytestmark = pytest.mark.once

Instrumented = Callable[..., Exported]
READS = (
    "get_history",
    "memory_at",
    "query_history",
    "count_history",
    "memories_at",
    "get_last_messages",
)


def reads(exported: Exported) -> list[ReadableSpan]:
    return [one for one in exported.spans() if one.name in READS]


def rows(span: ReadableSpan) -> object:
    return (span.attributes or {}).get("db.response.returned_rows")


async def read_everything(history: HistoryManager) -> None:
    assert len(await history.get_history("m1")) == 1
    await history.memory_at("m1", 1)
    await history.diff("m1", 1, 1)
    await history.restore("m1", to=1)
    assert [len(page.records) async for page in history.query_history(page_size=2).pages()]
    assert await history.count_history() == 3
    assert len([one async for one in history.memories_at(datetime.now(UTC))]) == 3
    assert len(await history.get_last_messages("scope")) == 1


@pytest.mark.parametrize("store", stores("file", "postgres"))
async def test_each_read_is_a_span_in_its_caller_s_trace(
    store: str, instrumented: Instrumented, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    exported = instrumented("calls")
    tracer = exported.tracers.get_tracer("test")
    async with open_history(url_of(store, request, tmp_path)) as history:
        for number in range(3):
            await history.add_history(f"m{number}", None, "secret", "ADD")
        await history.save_messages([{"role": "user", "content": "secret"}], "scope")
        with tracer.start_as_current_span("request") as parent:
            await read_everything(history)
        found = reads(exported)
        where = history.backend.where
    assert [(one.name, rows(one)) for one in found] == [
        ("get_history", 1),
        ("memory_at", 1),
        ("get_history", 1),
        ("query_history", 2),
        ("query_history", 1),
        ("count_history", None),
        ("memories_at", 3),
        ("memories_at", 0),
        ("get_last_messages", 1),
    ]
    for one in found:
        assert one.parent is not None
        assert one.parent.span_id == parent.get_span_context().span_id
        assert one.attributes is not None
        assert one.attributes["async_history.store"] == where
        assert one.attributes["db.operation.name"] == one.name
    assert "secret" not in "".join(span.to_json() for span in exported.spans())


async def test_a_read_that_fails_or_is_cancelled(
    instrumented: Instrumented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = instrumented("calls")
    async with open_history(tmp_path / "history.db") as history:
        record = await history.add_history("m", None, "x", "ADD")
        query = history.query_history(page_size=1)
        (page,) = [page async for page in query.pages() if page.records]
        await history.reset()
        with pytest.raises(CursorGone):
            await anext(history.query_history(after=page.cursor).pages())
        asked = asyncio.Event()

        async def hang(memory_id: str) -> Any:
            asked.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(history.store.reader, "history", hang)
        reading = asyncio.ensure_future(history.get_history("m"))
        await asked.wait()
        reading.cancel()
        await asyncio.wait([reading])
    gone, cancelled = reads(exported)[-2:]
    for span, error in ((gone, "CursorGone"), (cancelled, "CancelledError")):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == error
        assert record.id not in span.to_json()


async def test_reads_that_were_not_chosen(instrumented: Instrumented) -> None:
    exported = instrumented("commits", "memory")
    async with open_history("memory://") as history:
        await history.get_history("m")
    assert exported.spans() == []
