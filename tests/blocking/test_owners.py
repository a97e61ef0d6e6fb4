"""Owner, context and cause by the synchronous face: mem0's calls, with ours beside them."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryRecord, InvalidInput, Owner, OwnerConflict, open_history, recording
from async_history.blocking import BlockingHistoryManager
from tests.conftest import stores, url_of

ALICE = {"user_id": "alice"}


@pytest.fixture(params=stores("file", "postgres"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def history(url: str) -> Iterator[BlockingHistoryManager]:
    history = BlockingHistoryManager(url)
    yield history
    history.close()


def records(url: str, **wanted: Any) -> list[HistoryRecord]:
    async def read() -> list[HistoryRecord]:
        async with open_history(url) as history:
            return [record async for record in history.query_history(**wanted)]

    return asyncio.run(read())


def details(found: list[HistoryRecord]) -> list[tuple[object, object, object]]:
    return [(record.owner, record.context, record.cause) for record in found]


def test_each_way_of_recording_takes_them(history: BlockingHistoryManager, url: str) -> None:
    given: dict[str, Any] = {"context": {"n": [1, None]}, "cause": {"request_id": "q"}}
    history.add_history("m", None, "a", "ADD", owner=ALICE, **given)
    history.batch_add_history(
        [
            {"memory_id": "m", "new_memory": "b", "event": "UPDATE", "color": "ignored", **given},
            {
                "memory_id": "m",
                "new_memory": "c",
                "event": "UPDATE",
                "owner": Owner(user_id="alice"),
            },
        ]
    )
    shown = history.update_history("m", "d", owner=ALICE, **given)
    assert history.update_history("m", "d", **given) == shown
    whose = Owner(user_id="alice")
    all_of_them = (whose, given["context"], given["cause"])
    found = records(url, user_id="alice")
    assert details(found) == [all_of_them, all_of_them, (whose, None, None), all_of_them]
    assert history.get_history("m") == [record.as_dict() for record in found]
    assert set(shown) == set(found[0].as_dict())


def test_what_can_not_be_used_is_refused(history: BlockingHistoryManager, url: str) -> None:
    """Unlike values of mem0's, which are made storable: these come from who knows this library."""
    refused: tuple[dict[str, Any], ...] = (
        {"owner": {"user": "alice"}},
        {"owner": {"user_id": 7}},
        {"context": {"x": float("nan")}},
        {"context": ["x"]},
        {"cause": {"x": 1}},
    )
    for given in refused:
        with pytest.raises(InvalidInput):
            history.add_history("m", None, "x", "ADD", **given)
        with pytest.raises(InvalidInput, match="record 1"):
            history.batch_add_history(
                [{"memory_id": "m", "event": "ADD"}, {"memory_id": "m", "event": "ADD", **given}]
            )
        with pytest.raises(InvalidInput):
            history.update_history("m", "x", **given)
    history.add_history("m", None, "x", "ADD", owner=ALICE)
    bob = {"user_id": "bob"}
    with pytest.raises(OwnerConflict):
        history.add_history("m", "x", "y", "UPDATE", owner=bob)
    with pytest.raises(OwnerConflict):
        history.update_history("m", "y", owner=bob)
    with pytest.raises(OwnerConflict):
        history.batch_add_history([{"memory_id": "m", "event": "UPDATE", "owner": bob}])
    assert len(records(url)) == 1


def test_each_thread_has_its_cause(history: BlockingHistoryManager, url: str) -> None:
    def work(n: int) -> None:
        with recording(cause={"request_id": str(n)}, owner={"user_id": f"u{n}"}):
            history.add_history(f"m{n}", None, "x", "ADD")
            history.batch_add_history([{"memory_id": f"m{n}", "event": "UPDATE"}])
            history.update_history(f"m{n}", "y", cause={"step": "3"})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(24)))
    for n in range(24):
        found = records(url, user_id=f"u{n}")
        assert [record.memory_id for record in found] == [f"m{n}"] * 3
        first, second, third = (record.cause for record in found)
        assert first == second == {"request_id": str(n)}
        assert third == {"request_id": str(n), "step": "3"}
