"""Two checks that repair at the same time, while others write: each fault is repaired once."""

import asyncio
import copy
import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from async_history import open_history
from async_history.mem0 import AsyncMemory, Memory, MemoryCheck
from tests.conftest import stores, url_of
from tests.mem0.fakes import InstantStore
from tests.mem0.memories import Configured, Kind
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

EACH = 8
"""How many memories have each fault: in total more than are compared at the same time."""


class MeetingStore(InstantStore):
    """Makes two lists wait for each other, so that both checks have found the same faults."""

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2)
        self.waits_for = 0

    def list(self, filters: Any = None, **options: Any) -> Any:
        listed = super().list(filters, **options)
        if self.waits_for > 0:
            self.waits_for -= 1
            self.together.wait(LONG_S)
        return listed


async def plant(kind: Kind) -> dict[str, str]:
    """Make memories whose vector store and history differ; return the fault of each."""
    rows, faults = kind.store.rows, {}
    for number in range(EACH):
        for fault in ("missing", "deleted", "text", "metadata"):
            memory_id = await kind.add(f"tea {number}", n=1)
            faults[memory_id] = fault
            if fault == "missing":
                del rows[memory_id]
            elif fault == "deleted":
                payload = rows[memory_id]
                await kind.call("delete", memory_id)
                rows[memory_id] = payload
            else:
                change = {"data": "mate"} if fault == "text" else {"n": 2}
                rows[memory_id] = {**rows[memory_id], **change}
    return faults


def add_strangers(kind: Kind) -> dict[str, str]:
    """Put memories into the vector store that the history does not have."""
    names = [str(uuid4()) for _ in range(EACH)]
    payload = {"data": "tea", "user_id": "ann", "created_at": "2026-01-01T00:00:00+00:00"}
    kind.store.rows.update((name, dict(payload)) for name in names)
    return dict.fromkeys(names, "stranger")


async def write(kind: Kind, written: dict[str, list[str | None]], is_over: asyncio.Event) -> None:
    """Change a memory, and make and delete others, until the repairs end; note their texts."""
    memory_id = await kind.add("0")
    texts = written[memory_id] = ["0"]
    for number in itertools.count(1):
        if is_over.is_set():
            return
        await kind.update(memory_id, str(number))
        texts.append(str(number))
        gone = await kind.add("water")
        written[gone] = ["water"]
        await kind.call("delete", gone)
        written[gone].append(None)


class Together:
    """Two memories that share a history and a vector store, as two processes do."""

    def __init__(self, kinds: tuple[Kind, Kind], repairs: tuple[str, str]) -> None:
        self.kinds, self.repairs = kinds, repairs
        self.written: dict[str, list[str | None]] = {}
        self.vectors = MeetingStore()
        for kind in kinds:
            kind.be_instant()
            kind.memory.vector_store = kind.store = self.vectors

    async def repair(self, faults: Mapping[str, str]) -> None:
        """Let both repair while others write; check that each fault was repaired once."""
        url = self.kinds[0].path
        async with open_history(url) as history:
            before = {name: await history.get_history(name) for name in faults}
        is_over = asyncio.Event()
        self.vectors.waits_for = 2
        async with asyncio.TaskGroup() as tasks:
            for kind in self.kinds * 2:
                tasks.create_task(write(kind, self.written, is_over))
            reports: list[MemoryCheck] = await asyncio.gather(
                *(
                    kind.call("check", repair=repair, dry_run=False)
                    for kind, repair in zip(self.kinds, self.repairs, strict=True)
                )
            )
            is_over.set()
        repaired = [one for report in reports for one in report.differences if one.repaired]
        assert sorted(one.memory_id for one in repaired) == sorted(faults)
        appended = {one.memory_id: one.record_id for one in repaired if one.record_id is not None}
        if len(set(self.repairs)) == 1:
            assert len(appended) == (len(faults) if "history" in self.repairs else 0)
        async with open_history(url) as history:
            for name, records in before.items():
                now = await history.get_history(name)
                assert now[: len(records)] == records
                new = [record.id for record in now[len(records) :]]
                assert new == ([appended[name]] if name in appended else [])
            for name, texts in self.written.items():
                assert [one.new_memory for one in await history.get_history(name)] == texts
        report = await self.kinds[0].call("check")
        assert (report.problems, report.notes, report.differences) == ((), (), ())
        await self.kinds[0].check()


@pytest.mark.parametrize("repairs", [("history",) * 2, ("vector",) * 2, ("history", "vector")])
@pytest.mark.parametrize("make", [AsyncMemory, Memory])
@pytest.mark.parametrize("store", stores("file", "postgres"))
async def test_each_fault_is_repaired_once(
    store: str,
    make: Any,
    repairs: tuple[str, str],
    configured: Configured,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    url = url_of(store, request, tmp_path)
    config = configured(history_db_path=url)
    other = copy.deepcopy(config)
    other["vector_store"]["config"]["path"] += " of the other"
    first, second = Kind(make, config, url), Kind(make, other, url)
    both = Together((first, second), repairs)
    await both.repair(await plant(first))
    if "history" in repairs:
        await both.repair(add_strangers(first))
    for kind in (first, second):
        await kind.close()
