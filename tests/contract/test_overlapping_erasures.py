"""Erasures of one owner at the same time, in an encrypted history: each destroys its own keys."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager
from async_history._core.writing.erased_names import until_later
from tests.conftest import OpenStore, new_stores, stores
from tests.support.keys import ring

pytestmark = pytest.mark.once

ANN: Any = {"user_id": "ann", "agent_id": "bot"}
STORES = stores("file", "postgres", "mariadb", "sqlalchemy")


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return new_stores(request.param, request, tmp_path)()


class _Paused:
    """An erasure that has noted the owner, found the owner's memories, and waits."""

    def __init__(self, history: HistoryManager, **owner: str) -> None:
        store: Any = history.store
        self._eraser = store.eraser
        self._whole = self._eraser.in_transaction
        self._is_noted = False
        self._waits = asyncio.Event()
        self._may_go_on = asyncio.Event()
        self._eraser.in_transaction = self._in_transaction
        erase: Any = history.erase
        self._erasure = asyncio.ensure_future(erase(**owner, reason="asked", vacuum=False))

    async def _in_transaction(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        if self._is_noted:
            self._waits.set()
            await self._may_go_on.wait()
        self._is_noted = True
        return await self._whole(work)

    async def begun(self) -> "_Paused":
        waits = asyncio.ensure_future(self._waits.wait())
        await asyncio.wait([waits, self._erasure], return_when=asyncio.FIRST_COMPLETED)
        assert waits.done()
        return self

    async def end(self) -> None:
        self._may_go_on.set()
        await self._erasure
        self._eraser.in_transaction = self._whole


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("second", [{"user_id": "ann"}, {"agent_id": "bot"}])
async def test_an_erasure_keeps_the_keys_of_texts_that_another_erases(
    open_store: OpenStore, second: dict[str, str], *, ledger: bool
) -> None:
    async with (
        open_store(keys=ring("one"), ledger=ledger) as one,
        open_store(keys=ring("one")) as other,
    ):
        await one.add_history("before", None, "tea", "ADD", owner=ANN)
        first = await _Paused(one, user_id="ann").begun()
        await until_later(datetime.now(UTC))
        await other.add_history("between", None, "mate", "ADD", owner=ANN)
        later = await _Paused(other, **second).begun()
        await first.end()
        (record,) = await one.get_history("between")  # `other` has the key in memory
        assert record.new_memory == "mate"
        (record,) = await one.get_history("before")
        assert record.new_memory is None
        await later.end()
        for name in ("before", "between"):
            (record,) = await one.get_history(name)
            assert record.new_memory is None
        await until_later(datetime.now(UTC))
        await other.add_history("after", None, "milk", "ADD", owner=ANN)
        (record,) = await one.get_history("after")
        assert record.new_memory == "milk"


@pytest.mark.parametrize("name", stores("postgres", "mariadb", "sqlalchemy"))
async def test_a_lease_of_a_key_that_ends_while_it_is_made_is_made_again(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An erasure or a transaction that is rolled back ends it."""
    async with new_stores(name, request, tmp_path)()(keys=ring("one")) as history:
        store: Any = history.store
        keys = store.encryption.keys
        lease = keys.lease
        times = 0

        async def ended(*given: Any, **options: Any) -> None:
            nonlocal times
            await lease(*given, **options)
            times += 1
            if times == 1:
                keys.end_leases()

        keys.lease = ended
        await history.add_history("m", None, "tea", "ADD", owner=ANN)
        assert times == 2
        (record,) = await history.get_history("m")
        assert record.new_memory == "tea"
