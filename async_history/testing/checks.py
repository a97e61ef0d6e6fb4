"""The check of a history: each kind of broken chain is found, and nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from async_history import BrokenRecord, ChainFault, HistoryManager, HistoryRecord
from async_history.backend import records_to_copy
from async_history.testing.fixtures import Cases, OpenStore

START = datetime(2026, 1, 1, tzinfo=UTC)


async def record(history: HistoryManager, name: str, event: str, **more: Any) -> HistoryRecord:
    """Record a change under the id `name`, whose first letter is its memory."""
    return await history.add_history(
        name[0], more.pop("old", None), more.pop("new", None), event, id=name, **more
    )


class CheckCases(Cases):
    """Reports of `check`."""

    async def test_a_check_after_every_operation_finds_nothing(self, open_store: OpenStore) -> None:
        """Deleted and added again, restored, taken back, erased, pruned: nothing is broken."""
        async with open_store() as history:
            for text in ("tea", "mate", "coffee"):
                await history.update_history("a", text, owner={"user_id": "ann"})
                await history.update_history("b", text, cause={"request_id": text})
            await history.add_history("a", "coffee", None, "DELETE")
            await history.restore("a", to=1)
            await history.update_history("a", "tea", context={"kind": "drink"})
            await history.rollback(to=START, memory_ids=["b"])
            await history.erase(memory_ids=["b"], reason="asked", vacuum=False)
            await history.update_history("b", "water")
            old = {"created_at": START, "updated_at": START}
            await record(history, "c1", "ADD", new="x", **old)
            await record(history, "c2", "UPDATE", old="x", new="y")
            await history.prune(older_than=START + timedelta(days=1))
            report = await history.check()
            assert report.records == await history.count_history() == 12
        assert (report.memories, report.problems, report.notes, report.broken) == (3, (), (), ())

    async def test_each_broken_chain_is_named(self, open_store: OpenStore) -> None:
        later = START + timedelta(hours=1)
        async with open_store() as history:
            await record(history, "a1", "ADD", new="tea")
            await record(history, "a2", "UPDATE", old="mate", new="milk")
            await record(history, "b1", "ADD", new="tea")
            await record(history, "b2", "ADD", new="mate")
            await record(history, "c1", "ADD", new="tea")
            await record(history, "c2", "DELETE", old="tea")
            await record(history, "c3", "UPDATE", old="tea", new="mate")
            await record(history, "d1", "ADD", new="tea", created_at=START)
            await record(history, "d2", "UPDATE", old="m", new="x", updated_at=later)
            await record(history, "d3", "UPDATE", old="tea", new="m", updated_at=START)
            await record(history, "e1", "ADD", new="tea")
            unknown = HistoryRecord("e2", "e", "tea", "tea", "MERGE", START.isoformat())
            await history.store.writer.submit(records_to_copy([unknown], 100))
            report = await history.check()
        assert {(one.record_id, one.fault) for one in report.broken} == {
            ("a2", ChainFault.TEXT),
            ("b2", ChainFault.EVENT),
            ("c3", ChainFault.EVENT),
            ("d2", ChainFault.ORDER),
            ("d3", ChainFault.ORDER),
            ("e2", ChainFault.UNKNOWN_EVENT),
        }
        assert BrokenRecord(memory_id="a", record_id="a2", fault=ChainFault.TEXT) in report.broken
        assert report.problems == ()
        assert len(report.notes) == 4
        assert any("2 records can't follow" in note for note in report.notes)

    async def test_a_check_during_writes_finds_nothing(self, open_store: OpenStore) -> None:
        async def write(history: HistoryManager, memory_id: str) -> None:
            for number in range(20):
                await history.update_history(memory_id, str(number))
                if number % 5 == 4:
                    await history.add_history(memory_id, str(number), None, "DELETE")

        async with open_store() as history:
            async with asyncio.TaskGroup() as tasks:
                writers = [tasks.create_task(write(history, name)) for name in "abcdefgh"]
                while not all(writer.done() for writer in writers):
                    report = await history.check()
                    assert (report.problems, report.broken) == ((), ())
            assert (await history.check()).records == 8 * 24
