"""Calls that begin before an erasure and arrive after it."""

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from async_history import Erased, HistoryManager, HistoryRecord, Owner, OwnerConflict
from async_history.backend import operation
from async_history.testing.erased import ANN, SAID, heard, is_blank
from async_history.testing.fixtures import Cases, OpenStore, found


def waiting(record_id: str) -> str:
    """Return an id of a record that was made a minute before another."""
    made = int(record_id.replace("-", "")[:12], 16) - 60_000
    digits = f"{made:012x}{record_id.replace('-', '')[12:]}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class LateCallCases(Cases):
    """Changes that began before an erasure do not bring erased texts back."""

    async def test_changes_that_began_before_the_erasure_of_an_owner(
        self, open_store: OpenStore
    ) -> None:
        """Late updates of a memory, late new memories, late messages; also after a reset."""
        async with open_store() as history:
            first = await history.add_history("m", None, "a", "ADD", owner=ANN)
            with operation():
                erased = asyncio.Event()
                began = asyncio.create_task(self._late(history, erased))
                await asyncio.sleep(0)
            await history.erase(user_id="ann", reason="x", vacuum=False)
            refused: tuple[dict[str, Any], ...] = (
                {"memory_id": "m", "old_memory": "a", "event": "DELETE"},
                {"memory_id": "m", "new_memory": "b", "event": "UPDATE"},
                {"memory_id": "m", "event": "UPDATE", "context": {"x": 1}},
                {"memory_id": "m", "event": "UPDATE", "cause": {"x": "1"}},
                {"memory_id": "m", "event": "UPDATE", "owner": ANN},
                {"memory_id": "new", "event": "ADD", "owner": ANN, "id": waiting(first.id)},
                {
                    "memory_id": "new",
                    "event": "ADD",
                    "owner": {"agent_id": "bot", **ANN},
                    "id": "mine",
                    "created_at": datetime.now(UTC) - timedelta(minutes=1),
                },
            )
            before = await found(history)
            for given in refused:
                with pytest.raises((Erased, OwnerConflict)):
                    await history.batch_add_history([given])
                if given["memory_id"] == "m":
                    arguments = {"old_memory": None, "new_memory": None, **given}
                    with pytest.raises((Erased, OwnerConflict)):
                        await history.add_history(**arguments)
            with pytest.raises(Erased, match="'m'"):
                await history.update_history("m", "b")
            with pytest.raises(Erased):
                await history.add_history("m", "a", "b", "UPDATE", if_latest=before[-1])
            neighbours = await asyncio.gather(
                history.add_history("other", None, "x", "ADD"),
                history.add_history("m", None, "x", "UPDATE"),
                history.add_history("other", "x", "y", "UPDATE"),
                return_exceptions=True,
            )
            assert [isinstance(one, Erased) for one in neighbours] == [False, True, False]
            with pytest.raises(Erased):
                await history.batch_add_history(
                    [
                        {"memory_id": "other", "event": "UPDATE"},
                        {"memory_id": "m", "new_memory": "x", "event": "UPDATE"},
                    ]
                )
            erased.set()
            outcomes = await began
            assert [type(outcome) for outcome in outcomes] == [Erased] * 4
            assert [r.memory_id for r in await found(history)] == ["m", "other", "other"]
            fact = await history.add_history("m", None, None, "DELETE")
            assert fact.owner is None
            assert await heard(history, ["user_id=ann"]) == []
            await history.reset()
            with pytest.raises(Erased):
                await history.add_history("m", "a", "b", "UPDATE")
            with pytest.raises(Erased):
                await history.add_history("n", None, "b", "ADD", owner=ANN, id=waiting(first.id))
            await history.add_history("n", None, "b", "ADD", owner={"user_id": "bob"})
        async with open_store() as history:
            if history.backend.store_name is not None:
                with pytest.raises(Erased):
                    await history.add_history("m", "a", "b", "UPDATE")

    @staticmethod
    async def _late(history: HistoryManager, erased: asyncio.Event) -> list[object]:
        await erased.wait()
        outcomes = await asyncio.gather(
            history.add_history("late", None, "a", "ADD", owner=ANN),
            history.batch_add_history([{"memory_id": "late", "event": "ADD", "owner": ANN}]),
            history.update_history("late", "a", owner=ANN),
            history.save_messages([{"role": "user", "content": "x"}], "run_id=r&user_id=ann"),
            return_exceptions=True,
        )
        return list(outcomes)

    async def test_changes_that_began_before_the_erasure_of_a_memory(
        self, open_store: OpenStore
    ) -> None:
        """No manager writes them; later changes of the memory are accepted."""
        async with open_store() as history, open_store() as second:
            stores = [history] if history.backend.store_name is None else [history, second]
            first = await history.add_history("m", None, "secret", "ADD", owner=ANN)
            await history.add_history("n", None, "a", "ADD")
            with operation():
                erased = asyncio.Event()
                began = [asyncio.create_task(self._late_changes(one, erased)) for one in stores]
                await asyncio.sleep(0)
            await history.erase(memory_ids=["m", "unknown"], reason="x", vacuum=False)
            erased.set()
            for outcomes in await asyncio.gather(*began):
                assert [type(outcome) for outcome in outcomes] == [
                    *(Erased,) * 5,
                    *(HistoryRecord,) * 2,
                ]
                assert "began" in str(outcomes[0])
            late = {"old_memory": "secret", "event": "UPDATE", "id": waiting(first.id)}
            for store in stores:
                with pytest.raises(Erased):
                    await store.batch_add_history([{"memory_id": "m", **late}])
            records = await history.get_history("m")
            assert len(records) == 1 + len(stores)
            assert all(map(is_blank, records))
            for store in reversed(stores):
                with operation():
                    again = await store.update_history("m", "b", **SAID)
                assert (again.owner, again.new_memory) == (Owner(user_id="ann"), "b")
                assert (await store.add_history("unknown", None, "c", "ADD")).new_memory == "c"
            await history.erase(memory_ids=["m"], reason="x", vacuum=False)
            await history.update_history("m", "d")
            await history.add_history("m", None, "e", "ADD", id="named", created_at="2001-01-01")

    @staticmethod
    async def _late_changes(history: HistoryManager, erased: asyncio.Event) -> list[object]:
        await erased.wait()
        outcomes = await asyncio.gather(
            history.add_history("m", "secret", "b", "UPDATE"),
            history.add_history("m", None, None, "UPDATE", **SAID),
            history.batch_add_history([{"memory_id": "m", "event": "DELETE", "old_memory": "a"}]),
            history.update_history("m", "b"),
            history.add_history("unknown", None, "b", "ADD"),
            history.add_history("m", None, None, "DELETE", owner=ANN),
            history.add_history("n", "a", "b", "UPDATE"),
            return_exceptions=True,
        )
        return list(outcomes)

    async def test_writers_during_an_erasure(self, open_store: OpenStore) -> None:
        """Records acknowledged before it began are erased; refused records are not there."""
        async with open_store() as history:
            names = [f"m{n}" for n in range(60)]
            await history.batch_add_history(
                [
                    {"memory_id": name, "event": "ADD", "new_memory": "secret", "owner": ANN}
                    for name in names
                ]
            )
            random = Random(7)  # noqa: S311
            done = False

            async def write(n: int) -> None:
                while not done:
                    try:
                        await history.update_history(random.choice(names), f"secret {n}")
                    except Erased:
                        return

            with operation():
                writers = [asyncio.create_task(write(n)) for n in range(8)]
            await asyncio.sleep(0)
            await history.erase(user_id="ann", reason="x", vacuum=False)
            done = True
            await asyncio.gather(*writers)
            assert await found(history, text="secret") == []
            assert await found(history, user_id="ann") == []
            assert {record.memory_id for record in await found(history)} == set(names)
