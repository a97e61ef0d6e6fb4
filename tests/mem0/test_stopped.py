"""Operations that are stopped at any turn of the loop: the history ends with the store's text."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryClosed, open_history
from tests.mem0.memories import BEFORE_ALL, MakeMemory, add

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

TURNS = (*range(8), 13, 21, 34, 55, 89, 144)
"""The numbers of turns. mem0's work in threads takes any number of turns."""

Change = Callable[[Any, list[str]], Awaitable[Any]]
CHANGES: dict[str, Change] = {
    "add": lambda memory, _: add(memory, "new"),
    "update": lambda memory, ids: memory.update(ids[0], "new"),
    "delete": lambda memory, ids: memory.delete(ids[0]),
    "delete_all": lambda memory, _: memory.delete_all(user_id="u"),
    "restore": lambda memory, ids: memory.restore(ids[0], to=1),
    "rollback": lambda memory, ids: memory.rollback(to=BEFORE_ALL, memory_ids=ids),
    "updates": lambda memory, ids: asyncio.gather(
        *(memory.update(ids[n % 2], str(n)) for n in range(4))
    ),
}


async def two_memories(memory: Any) -> list[str]:
    ids = [await add(memory, "tea") for _ in range(2)]
    await memory.update(ids[0], "mate")
    return ids


async def check(memory: Any, path: Path) -> None:
    """Check that each memory's records continue each other, up to the vector store's text."""
    held = memory.vector_store.rows
    async with open_history(path, migrate=False) as history:
        known = {record.memory_id async for record in history.query_history()}
        for memory_id in known | set(held):
            records = await history.get_history(memory_id)
            says = [None, *(record.new_memory for record in records)]
            assert [record.old_memory for record in records] == says[:-1]
            assert says[-1] == held.get(memory_id, {}).get("data")


async def begun(memory: Any, change: str, turns: int) -> "asyncio.Future[Any]":
    """Return a running change after so many turns of the loop."""
    ids = await two_memories(memory)
    task = asyncio.ensure_future(CHANGES[change](memory, ids))
    for _ in range(turns):
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("change", CHANGES)
async def test_cancelled_at_any_turn(change: str, make_memory: MakeMemory, tmp_path: Path) -> None:
    async with make_memory() as memory:
        for turns in TURNS:
            task = await begun(memory, change, turns)
            task.cancel()
            await asyncio.wait([task])
            if running := list(memory._history_state().running):
                await asyncio.wait(running)
            await check(memory, tmp_path / "history.db")


@pytest.mark.parametrize("change", CHANGES)
async def test_closed_at_any_turn(change: str, make_memory: MakeMemory, tmp_path: Path) -> None:
    """A call that had changed nothing is refused; one that had is completed."""
    for turns in TURNS[::3]:
        memory = make_memory(history=tmp_path / f"{turns}.db")
        task = await begun(memory, change, turns)
        await memory.aclose()
        await asyncio.wait([task])
        assert isinstance(task.exception(), HistoryClosed | None)
        await check(memory, tmp_path / f"{turns}.db")
