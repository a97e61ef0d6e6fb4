"""Owner, context and cause through the blocking manager: mem0's calls, and ours."""

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from async_history import (
    CursorGone,
    HistoryClosed,
    HistoryManager,
    HistoryRecord,
    InvalidInput,
    Owner,
    OwnerConflict,
    RollbackAction,
    open_history,
    recording,
)
from async_history.blocking import BlockingHistoryManager
from tests.conftest import stores, url_of

ALICE = {"user_id": "alice"}
QUESTIONS = ("query_history", "count_history", "memories", "memories_at", "memory_at", "diff")
CALLS = (*QUESTIONS, "check", "restore", "rollback", "undo", "erase", "erasures", "operations")


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


def test_every_call_that_records_takes_an_owner_context_and_cause(
    history: BlockingHistoryManager, url: str
) -> None:
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


def test_bad_owners_contexts_and_causes_are_refused(
    history: BlockingHistoryManager, url: str
) -> None:
    """mem0's values are made storable instead. These are given by users of this library."""
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


def test_the_arguments_are_those_of_the_asyncio_manager() -> None:
    for name in CALLS:
        theirs = inspect.signature(getattr(HistoryManager, name))
        ours = inspect.signature(getattr(BlockingHistoryManager, name))
        assert ours.parameters == theirs.parameters
        assert not inspect.iscoroutinefunction(getattr(BlockingHistoryManager, name))


def test_every_query_is_answered(history: BlockingHistoryManager, url: str) -> None:
    """Also when the answer is longer than one transfer from the loop."""
    changes = [
        {"memory_id": f"m{n % 120}", "event": "ADD" if n < 120 else "UPDATE", "new_memory": f"{n}"}
        for n in range(230)
    ]
    history.batch_add_history({**change, "owner": ALICE} for change in changes)
    history.add_history("other", None, "x", "ADD", cause={"request_id": "q"})
    found = history.query_history(user_id="alice", page_size=7)
    assert iter(found) is found
    assert [record.new_memory for record in found] == [change["new_memory"] for change in changes]
    assert list(history.query_history()) == records(url)
    assert [one.memory_id for one in history.query_history(cause={"request_id": "q"})] == ["other"]
    assert history.count_history(user_id="alice") == 230
    existing = list(history.memories(user_id="alice"))
    assert existing == records(url, user_id="alice", order="newest")[:120]
    now = datetime.now(UTC)
    assert sorted(r.memory_id for r in history.memories_at(now, user_id="alice")) == sorted(
        {record.memory_id for record in existing}
    )
    latest = history.memory_at("m1", now)
    assert latest is not None
    assert (latest.new_memory, latest.owner) == ("121", Owner(user_id="alice"))
    assert history.diff("m1", 1, 2).new_memory == "121"
    assert history.check().problems == ()
    with pytest.raises(InvalidInput):  # by the call, before it is iterated over
        history.query_history(user_id="")
    with pytest.raises(InvalidInput):
        history.memories()
    with pytest.raises(InvalidInput):
        history.memories_at(datetime(2026, 1, 1))  # noqa: DTZ001 - to be refused


def test_memories_are_taken_back_and_erased(history: BlockingHistoryManager, url: str) -> None:
    history.add_history("m", None, "tea", "ADD", owner=ALICE)
    with recording(cause={"run_id": "r"}, owner=ALICE):
        history.add_history("m", "tea", "mate", "UPDATE")
        history.add_history("n", None, "rum", "ADD")
    done: list[tuple[int, int]] = []
    plan = history.undo(run_id="r", dry_run=True)
    assert len(records(url)) == 3
    undone = history.undo(run_id="r", on_progress=lambda *part: done.append(part))
    assert undone.steps == plan.steps
    assert done == [(2, 2)]
    assert [record.new_memory for record in history.memories(user_id="alice")] == ["tea"]
    back = history.undo(cause={"undo": undone.id})
    assert {step.memory_id: step.action for step in back.steps} == {
        "m": RollbackAction.RESTORE,
        "n": RollbackAction.RESTORE,
    }
    assert history.restore("m", to=1).new_memory == "tea"
    emptied = history.rollback(to=datetime(2000, 1, 1, tzinfo=UTC), user_id="alice")
    assert (emptied.deleted, list(history.memories(user_id="alice"))) == (2, [])
    assert history.erase(user_id="alice", reason="asked", vacuum=False).records > 0
    assert history.count_history(user_id="alice") == 0
    stored = records(url)
    assert [erasure.reason for erasure in history.erasures()] == ["asked"]
    with recording(cause={"actor_id": "operator"}):
        history.reset()
    *before, last = history.operations()
    assert [one.kind for one in before][-3:] == ["restore", "rollback", "erase"]
    assert (last.kind, last.actor_id, last.records) == ("reset", "operator", len(stored))
    assert {record.new_memory for record in stored} == {None}


def test_an_iteration_fails_after_a_reset_or_a_close(history: BlockingHistoryManager) -> None:
    history.batch_add_history({"memory_id": f"m{n}", "event": "ADD"} for n in range(300))
    reset, closed, dropped = (history.query_history(page_size=10) for _ in range(3))
    for each in (reset, closed, dropped):
        next(each)
    history.reset()
    with pytest.raises(CursorGone):
        list(reset)
    history.close()
    with pytest.raises(HistoryClosed):
        list(closed)
