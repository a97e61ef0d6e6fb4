"""Rollbacks while others write, and rollbacks that are cancelled."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from async_history import HistoryConflict, HistoryRecord
from async_history.testing.changes import actions, at, change, everything, state_after
from async_history.testing.fixtures import Cases, OpenStore


class RollbackMeanwhileCases(Cases):
    """Concurrent events during `rollback`."""

    async def test_two_rollbacks_at_once(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            names = [f"m{n}" for n in range(40)]
            for name in names:
                await change(history, name, "a", 1)
                await change(history, name, "b", 3)
            reports = await asyncio.gather(
                history.rollback(to=at(2), memory_ids=names),
                history.rollback(to=at(2), memory_ids=names[::-1]),
                history.rollback(to=at(0), memory_ids=names[:20]),
            )
            assert [report.conflicts for report in reports] == [()] * 3
            for index, name in enumerate(names):
                records = await history.get_history(name)
                assert len(records) <= (4 if index < 20 else 3) + 1
                assert index < 20 or state_after(records) == ("a", None)
                assert len(records) == 3 or index < 20

    async def test_a_rollback_during_writes(self, open_store: OpenStore) -> None:
        """Each record is written after exactly the one that it was planned from."""
        async with open_store() as history:
            names = [f"m{n}" for n in range(10)]
            for name in names:
                await change(history, name, "a", 1)
            done = asyncio.Event()

            async def write(name: str) -> None:
                for n in range(200):
                    if done.is_set():
                        return
                    await history.update_history(name, str(n))

            writers = [asyncio.create_task(write(name)) for name in names]
            await asyncio.sleep(0)
            report = await history.rollback(to=at(2), memory_ids=names)
            done.set()
            await asyncio.gather(*writers)
            for step in report.steps:
                records = await history.get_history(step.memory_id)
                made = [n for n, one in enumerate(records) if one.id == step.record_id]
                assert len(made) == (step.action == "restore")
                for place in made:
                    assert records[place].old_memory == records[place - 1].new_memory
                    assert records[place].new_memory == "a"
                assert [one for one in records if one.cause] == [records[n] for n in made]

    async def test_a_memory_that_keeps_changing_is_reported(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await change(history, "m", "a", 1)
            await change(history, "n", "a", 1)
            for name in "mn":
                await change(history, name, "b", 3)
            tried = 0
            add = history.batch_add_history

            async def add_after_another(
                records: Any, *, if_latest: Any = None
            ) -> list[HistoryRecord]:
                nonlocal tried
                if if_latest is not None and if_latest.memory_id == "m":
                    tried += 1
                    await history.update_history("m", f"again {tried}")
                    with pytest.raises(HistoryConflict):
                        await add(records, if_latest=if_latest)
                return await add(records, if_latest=if_latest)

            history.batch_add_history = add_after_another  # type: ignore[method-assign]
            report = await history.rollback(to=at(2), memory_ids=["m", "n"])
            assert tried > 1
            assert actions(report) == {"m": "conflict", "n": "restore"}
            assert "others changed it" in (report.conflicts[0].reason or "")
            del history.batch_add_history
            assert (await history.rollback(to=at(2), memory_ids=["m", "n"])).restored == 1

    async def test_a_rollback_cancelled_anywhere_can_be_repeated(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            names = [f"m{n}" for n in range(30)]
            owner = {"user_id": "ann"}
            await history.batch_add_history(
                [
                    {
                        "memory_id": name,
                        "event": "ADD",
                        "new_memory": text,
                        "created_at": at(hour),
                        "owner": owner,
                    }
                    for text, hour in (("a", 1), ("b", 3))
                    for name in names
                ]
            )
            calls: tuple[Callable[[], Any], ...] = (
                lambda: history.rollback(to=at(2), user_id="ann"),
                lambda: history.rollback(to=at(4), user_id="ann"),
            )
            for steps in range(24):
                wanted = ("a", "b")[steps % 2]
                length = {name: len(rs) for name, rs in (await everything(history, names)).items()}
                call = asyncio.create_task(calls[steps % 2]())
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                await calls[steps % 2]()
                for name, records in (await everything(history, names)).items():
                    assert records[-1].new_memory == wanted
                    assert len(records) <= length[name] + 1
