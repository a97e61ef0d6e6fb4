"""The log of operations: its entries, their outcomes, and what it omits."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from async_history import (
    HistoryManager,
    InvalidInput,
    RecordSource,
    Row,
    StoreOperation,
    copy_history,
    recording,
)
from async_history.testing.fixtures import Cases, OpenStore

START = datetime(2026, 1, 1, tzinfo=UTC)
WHO = {"actor_id": "operator"}


class NoRecords(RecordSource):
    """A source that fails, or waits without end, before its first page.

    Args:
        waits: set when it waits; None if it fails.
    """

    def __init__(self, waits: asyncio.Event | None = None) -> None:
        self._waits = waits

    async def pages(self, records: int = 0) -> AsyncIterator[Sequence[Row]]:
        if self._waits is None:
            raise InvalidInput("this source has nothing to tell")
        self._waits.set()
        await asyncio.Event().wait()
        yield []


async def do_all(history: HistoryManager) -> Mapping[str, str]:
    """Run one operation of each kind except a reset; return the ids from the calls, by kind."""
    ann = {"user_id": "ann"}
    for number in range(3):
        await history.add_history(
            "a", None, f"tea {number}", "UPDATE", updated_at=START, actor_id="carl", owner=ann
        )
    await history.update_history("b", "mate", cause={"request_id": "secret"})
    await history.restore("a", to=1, actor_id="bob")
    told = await history.rollback(to=START + timedelta(days=1), user_id="ann", actor_id="bob")
    undone = await history.undo(cause={"request_id": "secret"})
    with recording(cause=WHO):
        await history.prune(older_than=START + timedelta(days=1))
        erased = await history.erase(actor_id="carl", reason="asked", vacuum=False)
        forgotten = await history.erase(user_id="ann", reason="asked", vacuum=False)
    assert forgotten.erasure_id is not None
    assert erased.erasure_id is not None
    return {"rollback": told.id, "undo": undone.id, "erase": erased.erasure_id}


class OperationCases(Cases):
    """Results of `operations` and `erasures`."""

    async def test_each_operation_is_logged_and_a_reset_leaves_the_log(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            ids = await do_all(history)
            left = await history.count_history()
            with recording(cause=WHO):
                await history.reset()
            found = await history.operations()
            assert [one.id for one in await history.erasures()] == [
                one.id for one in found if one.kind == "erase"
            ]
        kinds = ["restore", "rollback", "undo", "prune", "erase", "erase", "reset"]
        assert [one.kind for one in found] == kinds
        by_kind = {one.kind: one for one in reversed(found)}
        assert {kind: by_kind[kind].id for kind in ids} == ids
        assert {(one.process_id, bool(one.host), one.state) for one in found} == {
            (os.getpid(), True, "finished")
        }
        assert all(one.ended_at and one.begun_at <= one.ended_at for one in found)
        who = {kind: one.actor_id for kind, one in by_kind.items()}
        operator = dict.fromkeys(("prune", "erase", "reset"), "operator")
        assert who == {"restore": "bob", "rollback": "bob", "undo": None, **operator}
        assert by_kind["restore"].arguments == {"memory_id": "a", "to": 1}
        assert (by_kind["restore"].records, by_kind["undo"].records) == (1, 1)
        assert by_kind["prune"].records == 3
        assert by_kind["reset"].records == left
        for name in ("ann", "carl", "secret", "tea", "mate"):
            assert name not in repr([one.arguments for one in found])

    async def test_an_erased_actor_is_removed_from_the_log(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for text in ("tea", "mate"):
                await history.update_history("a", text)
            await history.restore("a", to=1, actor_id="bob")
            await history.restore("a", to=2, actor_id="Bob")
            await history.erase(actor_id="bob", reason="asked", vacuum=False)
            named = [one.actor_id for one in await history.operations()]
        assert named == [None, "Bob", None]

    async def test_calls_that_change_nothing_are_not_logged(self, open_store: OpenStore) -> None:
        when = START + timedelta(days=1)
        async with open_store() as history:
            await history.update_history("a", "tea", owner={"user_id": "ann"})
            await history.rollback(to=START, user_id="ann", dry_run=True)
            await history.prune(older_than=when, dry_run=True)
            await history.erase(user_id="ann", reason="asked", dry_run=True)
            with pytest.raises(InvalidInput):
                await history.restore("a", to=7)
            await history.restore("a", to=1)  # it has that text already
            await history.check()
            assert await history.operations() == []

    async def test_restores_are_logged_in_the_commits_of_their_records(
        self, open_store: OpenStore
    ) -> None:
        """Concurrent restores share commits. A restore that another has made unnecessary is not
        logged.
        """
        names = [f"m{number}" for number in range(100)]
        async with open_store() as history:
            for text in ("tea", "mate"):
                await asyncio.gather(*(history.update_history(name, text) for name in names))
            before = (await history.stats()).writer
            restored = await asyncio.gather(
                *(history.restore(name, to=1, actor_id=f"who {name}") for name in names * 2)
            )
            after = (await history.stats()).writer
            found = await history.operations()
        assert {record.new_memory for record in restored} == {"tea"}
        assert len({record.id for record in restored}) == len(names)
        assert sorted(str(one.arguments["memory_id"]) for one in found) == sorted(names)
        assert {(one.kind, one.state, one.records) for one in found} == {("restore", "finished", 1)}
        for one in found:
            assert one.actor_id == f"who {one.arguments['memory_id']}"
            assert one.ended_at is not None
            assert one.begun_at <= one.ended_at
        assert before is not None
        assert after is not None
        assert after.batches - before.batches < len(names) / 2

    async def test_pages_of_operations(self, open_store: OpenStore) -> None:
        """The last operations, or those before one, page by page backwards."""
        async with open_store() as history:
            for text in ("tea", "mate"):
                await history.update_history("m", text)
            for number in range(5):
                await history.restore("m", to=1 + number % 2)
            all_ = await history.operations()
            assert len(all_) == 5
            found: list[StoreOperation] = []
            page = await history.operations(limit=2)
            while page:
                assert len(page) <= 2
                found[:0] = page
                page = await history.operations(before=page[0].id, limit=2)
            assert found == all_
            assert await history.operations(before=all_[3].id) == all_[:3]
            with pytest.raises(InvalidInput, match="no operation of the id"):
                await history.operations(before="unknown")
            with pytest.raises(InvalidInput, match="limit"):
                await history.operations(limit=0)

    async def test_the_outcome_of_an_operation_is_logged(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            with pytest.raises(InvalidInput):
                await copy_history(NoRecords(), history)
            waits = asyncio.Event()
            task = asyncio.create_task(copy_history(NoRecords(waits), history))
            await waits.wait()
            task.cancel()
            await asyncio.wait([task])
            await copy_history(history, history)
            found = await history.operations()
        assert [(one.kind, one.state, one.error) for one in found] == [
            ("copy", "failed", "InvalidInput"),
            ("copy", "unfinished", None),
            ("copy", "finished", None),
        ]
        assert [_source(one) for one in found[:2]] == ["NoRecords", "NoRecords"]

    async def test_an_interrupted_prune_has_the_records_that_it_removed(
        self, open_store: OpenStore
    ) -> None:
        """Its steps are counted in their own transactions."""
        async with open_store() as history:
            old = {"event": "ADD", "created_at": START, "new_memory": "x"}
            await history.batch_add_history(
                [{"memory_id": f"m{number}", **old} for number in range(600)]  # two steps
            )
            stop = asyncio.CancelledError

            def interrupt(done: int, total: int) -> None:
                raise stop

            with pytest.raises(stop):
                await history.prune(
                    older_than=START + timedelta(days=1), keep_last=0, on_progress=interrupt
                )
            (one,) = await history.operations()
            assert one.state == "unfinished"
            assert one.records == 600 - await history.count_history() > 0


def _source(operation: StoreOperation) -> object:
    return operation.arguments["source"]
