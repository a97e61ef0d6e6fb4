"""Limits on the cost of a request, whatever the history holds: queries, templates, memory."""

import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from async_history.web._app import WebLimits
from async_history.web._reach import ViewLimits
from async_history.web._render import environment
from tests.web.conftest import Caller

pytestmark = pytest.mark.once

_MEGABYTE = 1_000_000


@pytest.fixture
async def history() -> AsyncIterator[HistoryManager]:
    """120 memories, one a day. Every second one is changed on the last day."""
    async with open_history("memory://") as history:
        await history.batch_add_history(
            [change(n, day=n) for n in range(120)]
            + [change(n, day=119, event="UPDATE") for n in range(0, 120, 2)]
        )
        yield history


def change(n: int, *, day: int, event: str = "ADD", text: str = "text") -> dict[str, Any]:
    at = f"2026-{1 + day // 28:02}-{1 + day % 28:02}T00:00:00Z"
    return {
        "memory_id": f"m{n}",
        "event": event,
        "new_memory": text,
        "created_at": at,
        "updated_at": at,
    }


@pytest.fixture
def questions(history: HistoryManager, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The queries that the page makes."""
    asked: list[dict[str, Any]] = []
    ask = history.query_history

    def query_history(**wanted: Any) -> Any:
        asked.append(wanted)
        return ask(**wanted)

    monkeypatch.setattr(history, "query_history", query_history)
    return asked


VIEWS = ("/", "/at", "/search", "/live", "/stats", "/operations", "/memory?memory_id=m1", "/no")


async def test_no_request_waits_for_a_template_to_be_compiled(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with caller() as page:
        assert environment.cache is not None
        missing = {name for _, name in environment.cache.keys()}  # noqa: SIM118 - not a dict
        assert missing == set(environment.list_templates())

        def compile_(*_: object, **__: object) -> None:
            raise AssertionError

        monkeypatch.setattr(environment, "compile", compile_)
        for view in VIEWS:
            answer = await page.get(view, headers={"accept": "text/html"})
            assert answer.status_code == (404 if view == "/no" else 200)


async def test_the_first_page_of_memories_reads_none_by_name(
    caller: Caller, questions: list[dict[str, Any]]
) -> None:
    async with caller() as page:
        for call in ("memories", "memories_at?when=2026-04-01T00:00:00Z"):
            questions.clear()
            answer = await page.get(f"/api/{call}")
            assert len(answer.json()["records"]) >= 50
            assert len(questions) <= 7
            assert not any("memory_id" in asked for asked in questions)


async def test_the_past_view_begins_at_its_time(caller: Caller) -> None:
    """However much was recorded since."""
    limits = WebLimits(view=ViewLimits(walked=10))
    async with caller(limits=limits) as page:
        answer = await page.get("/api/memories_at?when=2026-01-05T12:00:00Z")
        names = [one["memory_id"] for one in answer.json()["records"]]
        assert names == ["m4", "m3", "m2", "m1", "m0"]
        assert answer.json()["cursor"] is None


async def test_a_later_page_of_memories_makes_a_bounded_number_of_queries(
    caller: Caller, questions: list[dict[str, Any]]
) -> None:
    limits = WebLimits(view=ViewLimits(asked=20, part=10))
    async with caller(limits=limits) as page:
        found = (await page.get("/api/memories?page_size=50")).json()
        names = [one["memory_id"] for one in found["records"]]
        while found["cursor"] is not None:
            questions.clear()
            asked = {"after": found["cursor"], "page_size": 50}
            found = (await page.get("/api/memories", params=asked)).json()
            names += [one["memory_id"] for one in found["records"]]
            assert len(questions) <= 20 + 10
        assert sorted(names) == sorted({f"m{n}" for n in range(120)})


async def test_a_page_of_long_texts_holds_few_of_them(
    history: HistoryManager, caller: Caller
) -> None:
    text = "x" * (16 * _MEGABYTE)
    for n in range(4):
        await history.add_history("long", None, text, "ADD" if n == 0 else "UPDATE")
        await history.add_history(f"long {n}", None, text, "ADD")
    views = ("/", "/at", "/search?event=ADD", "/stats", "/memory?memory_id=long")
    # Some of each: the records that are read, and the parts of the API's answer.
    expected = {**dict.fromkeys(views, 60), "/api/query_history?memory_id=long": 110}
    async with caller() as page:
        for view, most in expected.items():
            assert await peak_mb(page.get, view) < most, view


async def peak_mb(get: Any, path: str) -> float:
    """Return the peak of Python's memory during a request, in megabytes."""
    tracemalloc.start()
    try:
        assert (await get(path)).status_code == 200
        return tracemalloc.get_traced_memory()[1] / _MEGABYTE
    finally:
        tracemalloc.stop()
