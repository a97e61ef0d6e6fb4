"""Following operations: each start and end is shown once, and each read is small."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from async_history._core.operations.operations import OperationEnd, StoreOperation, new_operation
from async_history.cli.operations import FollowedOperations

pytestmark = pytest.mark.once


@pytest.fixture
async def history() -> AsyncIterator[HistoryManager]:
    async with open_history("memory://") as history:
        yield history


@pytest.fixture
async def read(history: HistoryManager) -> list[int]:
    """How many operations each read has returned."""
    log: Any = history.store.operations
    whole, counts = log.read, []

    async def counted(**options: Any) -> Any:
        found = await whole(**options)
        counts.append(len(found))
        return found

    log.read = counted
    return counts


async def begin(history: HistoryManager, kind: str = "prune") -> str:
    operation = new_operation(kind, {"reason": "asked", "memory_ids": []})
    await history.store.operations.begin(operation)
    return operation.id


async def end(history: HistoryManager, *operation_ids: str) -> None:
    for one in operation_ids:
        await history.store.operations.end(OperationEnd(one, datetime.now(UTC), None, 0, 0))


def states(operations: list[StoreOperation]) -> dict[str, str]:
    found: dict[str, str] = {one.id: one.state for one in operations}
    assert len(found) == len(operations)
    return found


async def test_each_start_and_end_is_returned_once(
    history: HistoryManager, read: list[int]
) -> None:
    followed = FollowedOperations(history)
    assert await followed.changed() == []
    ids = [await begin(history) for _ in range(450)]
    await end(history, *ids[2:])
    found = await followed.changed()
    assert [one.id for one in found] == ids
    assert [one.state for one in found] == ["unfinished"] * 2 + ["finished"] * 448
    read.clear()
    assert await followed.changed() == []
    await end(history, ids[0])
    new = [await begin(history) for _ in range(2)]
    assert states(await followed.changed()) == {
        ids[0]: "finished",
        new[0]: "unfinished",
        new[1]: "unfinished",
    }
    await end(history, new[0])
    assert states(await followed.changed()) == {new[0]: "finished"}
    assert max(read) <= 100
    assert len(read) <= 9, "the end of the log, and each unfinished operation"


async def test_only_erasures_are_read_where_only_they_are_wanted(
    history: HistoryManager, read: list[int]
) -> None:
    for _ in range(20):
        await begin(history)
    erased = await begin(history, "erase")
    assert [one.id for one in await history.erasures()] == [erased]
    assert read == [1]
