"""Verifying a ledger while others remove what it covers: none of that is a fault."""

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager
from tests.conftest import OpenStore, new_stores, stores

pytestmark = pytest.mark.once

Remove = Callable[[HistoryManager, str], Awaitable[object]]


async def erase_user(history: HistoryManager, name: str) -> None:
    await history.erase(user_id=f"{name} ann", reason="asked", vacuum=False)


async def erase_actor(history: HistoryManager, name: str) -> None:
    await history.erase(actor_id=f"{name} eve", reason="asked", vacuum=False)


async def prune_all(history: HistoryManager, _: str) -> None:
    await history.prune(older_than=datetime.now(UTC) + timedelta(days=1), keep_last=0)


async def reset(history: HistoryManager, _: str) -> None:
    await history.reset()


@pytest.fixture(params=stores("file", "postgres", "mariadb"))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return new_stores(request.param, request, tmp_path)()


async def record(history: HistoryManager, name: str) -> None:
    """Record memories with an owner of one scope, of two and none, and an operation of an actor."""
    eve = f"{name} eve"
    for number, owner in enumerate(
        (
            {"user_id": f"{name} ann"},
            {"user_id": f"{name} ann", "agent_id": "bot"},
            {"agent_id": "bot"},
            None,
        )
    ):
        memory_id = f"{name} m{number}"
        await history.add_history(memory_id, None, "tea", "ADD", owner=owner, actor_id=eve)
        await history.add_history(memory_id, "tea", "mate", "UPDATE")
    await history.restore(f"{name} m3", to=1, actor_id=eve)


@pytest.mark.parametrize("remove", [erase_user, erase_actor, prune_all, reset])
async def test_what_is_removed_while_a_ledger_is_verified_is_no_fault(
    open_store: OpenStore, remove: Remove
) -> None:
    """Removed before each transaction of the verification in turn."""
    async with open_store(ledger=True) as history, open_store() as other:
        for at in itertools.count():
            name = f"{at:03}"
            await record(history, name)
            store: Any = history.store
            counted = _RemovesAt(store.ledger, at, partial(remove, other, name))
            report = await history.ledger.verify()
            counted.end()
            assert report.is_intact, (at, report.faults)
            assert report.unattested == ()
            assert report.unattested_owners == report.unattested_operations == 0
            if counted.transactions <= at:
                break
        assert at >= 5


class _RemovesAt:
    """Calls a function before one of a ledger's transactions."""

    def __init__(self, ledger: Any, at: int, remove: Callable[[], Awaitable[object]]) -> None:
        self._ledger = ledger
        self._at = at
        self._remove = remove
        self._read, self._write = ledger.read, ledger.write
        self.transactions = 0
        ledger.read, ledger.write = self._before(ledger.read), self._before(ledger.write)

    def end(self) -> None:
        """Leave the ledger as it was."""
        self._ledger.read, self._ledger.write = self._read, self._write

    def _before(self, transaction: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Any]:
        async def counted(work: Any) -> Any:
            is_now = self.transactions == self._at
            self.transactions += 1
            if is_now:
                await self._remove()
            return await transaction(work)

        return counted
