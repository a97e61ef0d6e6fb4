"""Random calls of many tasks on several managers of one store, and what must be true afterwards."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import Erased, HistoryManager, HistoryRecord
from tests.conftest import OpenStore, new_stores, stores
from tests.support.keys import ring

pytestmark = pytest.mark.once

OLD = datetime(2020, 1, 1, tzinfo=UTC)
USERS = ("ann", "bob", "eve")
STORES = stores("file", "postgres", "mariadb", "sqlalchemy")


@dataclass(slots=True)
class Written:
    """A record that a task has begun to write."""

    user: str
    text: str
    begun_at: datetime
    is_acknowledged: bool = False
    is_old: bool = False


class Tasks:
    """Tasks that record memories of some users, forget the users, and prune what is old."""

    def __init__(self, managers: list[HistoryManager], seed: int, options: dict[str, Any]) -> None:
        self.written: dict[str, Written] = {}
        self.user_of: dict[str, str] = {}
        self.erased: dict[str, list[datetime]] = defaultdict(list)
        self._managers = managers
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._numbers = itertools.count()
        self._calls: list[Callable[[str], Awaitable[str]]] = [
            *[self._add] * 6,
            *[self._update] * 6,
            *[self._add_old] * 2,
            *[self._prune] * 2,
            *[self._erase] * 2,
        ]
        self._calls += [self._verify] * 2 * ("ledger" in options)
        self._calls += [self._new_keys] * 2 * ("keys" in options)

    async def run(self, calls: int) -> None:
        """Call at random, one after the other, with one memory at a time."""
        memory_id = await self._add("")
        for _ in range(calls):
            memory_id = await self._random.choice(self._calls)(memory_id)

    async def _call(self, call: Callable[[HistoryManager], Awaitable[Any]]) -> bool:
        """Call one of the managers; return whether it was not cancelled."""
        calling = asyncio.ensure_future(call(self._random.choice(self._managers)))
        if self._random.random() < 0.1:
            for _ in range(self._random.randint(1, 50)):
                await asyncio.sleep(0)
            calling.cancel()
        await asyncio.wait([calling])
        if calling.cancelled():
            return False
        calling.result()
        return True

    async def _write(self, memory_id: str, *, is_old: bool = False, **fields: Any) -> bool:
        name, user = f"{next(self._numbers)}", self.user_of[memory_id]
        record = self.written[name] = Written(user, f"text {name}", datetime.now(UTC))
        record.is_old = is_old
        change = {"memory_id": memory_id, "id": name, "new_memory": record.text, **fields}
        try:
            record.is_acknowledged = await self._call(lambda one: one.batch_add_history([change]))
        except Erased:
            del self.written[name]
            return False
        return record.is_acknowledged

    async def _add(self, _: str, **fields: Any) -> str:
        memory_id = f"memory {next(self._numbers)}"
        user = self.user_of[memory_id] = self._random.choice(USERS)
        owner = {"user_id": user}
        is_known = await self._write(memory_id, event="ADD", owner=owner, **fields)
        return memory_id if is_known else await self._add("")

    async def _add_old(self, memory_id: str) -> str:
        await self._add("", created_at=OLD, is_old=True)
        return memory_id

    async def _update(self, memory_id: str) -> str:
        if await self._write(memory_id, event="UPDATE"):
            return memory_id
        return await self._add("")

    async def _prune(self, memory_id: str) -> str:
        await self._call(lambda one: one.prune(older_than=OLD + timedelta(days=1), keep_last=0))
        return memory_id

    async def _erase(self, memory_id: str) -> str:
        user, begun_at = self._random.choice(USERS), datetime.now(UTC)
        while not await self._call(
            lambda one: one.erase(user_id=user, reason="asked", vacuum=False)
        ):
            begun_at = datetime.now(UTC)
        self.erased[user].append(begun_at)
        return memory_id

    async def _verify(self, memory_id: str) -> str:
        async def verify(history: HistoryManager) -> None:
            require_proven(await history.ledger.verify())

        await self._call(verify)
        return memory_id

    async def _new_keys(self, memory_id: str) -> str:
        await self._call(lambda one: one.encryption.replace_data_keys())
        await self._call(lambda one: one.encryption.rotate_keys())
        return memory_id


def require_proven(report: Any) -> None:
    assert report.is_intact, report.faults
    assert report.unattested == ()
    assert report.unattested_owners == report.unattested_operations == 0


def require_right(tasks: Tasks, record: HistoryRecord) -> None:
    """Check a record's text and its memory's owner."""
    written, user = tasks.written[record.id], tasks.user_of[record.memory_id]
    erasures = tasks.erased[user]
    assert record.new_memory in (written.text, None)
    if any(written.begun_at < begun_at for begun_at in erasures):
        assert (record.new_memory, record.owner) == (None, None)
    if not erasures:
        assert record.new_memory == written.text
        assert record.owner is not None
    if record.owner is not None:
        assert record.owner.user_id == user


async def check(open_store: OpenStore, seed: int) -> None:
    options: dict[str, Any] = {}
    if seed % 2:
        options["keys"] = ring("one")
    if seed % 4 < 2:
        options["ledger"] = True
    managers = [await open_store(**options) for _ in range(3)]
    tasks = Tasks(managers, seed, options)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(tasks.run(12))
    finally:
        for one in managers:  # closing waits for calls that were cancelled
            await one.aclose()
    async with open_store(**options) as history:
        records = {record.id: record async for record in history.query_history()}
        for record in records.values():
            require_right(tasks, record)
        for name, written in tasks.written.items():
            assert name in records or written.is_old or not written.is_acknowledged
        for user in USERS:
            found = [record.id async for record in history.query_history(user_id=user)]
            assert found == [
                name
                for name, record in records.items()
                if record.owner is not None and record.owner.user_id == user
            ]
        assert not (await history.check()).problems
        if "ledger" in options:
            require_proven(await history.ledger.verify())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("store", STORES)
async def test_owners_texts_and_proofs_are_right_after_calls_at_once(
    store: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await check(new_stores(store, request, tmp_path)(), seed)


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("store", STORES)
async def test_owners_texts_and_proofs_are_right_after_many_calls_at_once(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    new_store = new_stores(store, request, tmp_path)
    for seed in range(60):
        await check(new_store(), seed)
