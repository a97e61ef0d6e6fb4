"""Rolling back and forgetting owners over connections that end at each message, and again."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from async_history import (
    Erased,
    HistoryManager,
    HistoryRecord,
    Owner,
    check_history,
    open_history,
)
from async_history._core.removing.erase_request import EraseLimits
from async_history._core.undoing.rollback_request import RollbackLimits
from tests.subprocesses.proxy import Proxy
from tests.support.limits import limited
from tests.support.parts import Places, in_parts
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_proxy,
    a_schema,
    a_server,
    a_url,
)
from tests.support.postgres_server import are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]

START = datetime(2026, 1, 1, tzinfo=UTC)
SMALL: dict[str, Any] = {
    "erase": EraseLimits(records=3, names=2, noted=3),
    "rollback": RollbackLimits(memories=3, page_size=4),
}
CALLS: dict[str, Callable[[HistoryManager, str], Awaitable[Any]]] = {
    "rollback": lambda history, name: history.rollback(to=START, user_id=name),
    "undo": lambda history, name: history.undo(run_id=name),
    "erase": lambda history, name: history.erase(user_id=name, reason="asked", vacuum=False),
}
WANTED = {"changed 1": "a", "changed 2": "a", "changed 3": "a", "added": None, "deleted": "a"}
"""What each memory says before the run, and after it was undone."""


def changes(name: str) -> list[dict[str, Any]]:
    """Return an owner's memories, and the later changes of a run."""

    def change(memory: str, old: str | None, new: str | None, hours: int) -> dict[str, Any]:
        return {
            "memory_id": f"{name} {memory}",
            "event": "DELETE" if new is None else "UPDATE" if old else "ADD",
            "old_memory": old,
            "new_memory": new,
            "created_at": START + timedelta(hours=hours),
            "owner": {"user_id": name},
            "cause": {"run_id": name} if hours > 0 else None,
        }

    before = [change(memory, None, text, -1) for memory, text in WANTED.items() if text]
    later = [change(memory, "a", "b", 1) for memory in WANTED if memory.startswith("changed")]
    last = [change("added", None, "b", 1), change("deleted", "a", None, 1)]
    return [*before, change("busy", None, "a", -1), *later, *last]


async def write(history: HistoryManager, memory: str, is_over: asyncio.Event) -> None:
    """Change a memory until it is refused."""
    for number in count():
        if is_over.is_set():
            return
        try:
            await history.update_history(memory, f"text {number}")
        except Erased:
            return


@in_parts(199, nightly=8)
@pytest.mark.parametrize("what", CALLS)
async def test_calls_cut_off_at_each_message_and_repeated(
    proxy: Proxy, url: str, schema: str, what: str, places: Places
) -> None:
    """Others change one of the memories meanwhile, and make the same call at the same time."""
    async with limited(open_history(url), **SMALL) as others:
        for number, place in enumerate(places, 1):
            name = f"ann {number}"
            await others.batch_add_history(changes(name))
            await others.save_messages([{"content": "x"}], f"run_id=1&user_id={name}")
            opened = open_history(with_query(proxy.url, schema=schema), pool_size=2)
            async with limited(opened, **SMALL) as history:
                is_over = asyncio.Event()
                writing = asyncio.ensure_future(write(others, f"{name} busy", is_over))
                proxy.cut_after(place, for_good=True)
                call = asyncio.ensure_future(CALLS[what](history, name))
                while proxy.cuts < number and not call.done():  # noqa: ASYNC110 - the proxy has no event for it
                    await asyncio.sleep(0.001)
                call.cancel()  # it would retry until its deadline
                await asyncio.wait([call])
                done = await asyncio.gather(*(CALLS[what](others, name) for _ in range(2)))
                is_over.set()
                await writing
                proxy.stop_cutting()
            assert all(one.done for one in done)
            check = check_erased if what == "erase" else check_taken_back
            await check(others, name)
            if proxy.cuts < number:
                break
        assert number > 1
    assert (await check_history(url)).problems == ()


async def of_owner(history: HistoryManager, name: str) -> dict[str, list[HistoryRecord]]:
    return {memory: await history.get_history(f"{name} {memory}") for memory in (*WANTED, "busy")}


async def check_taken_back(history: HistoryManager, name: str) -> None:
    """Check that each memory was restored by one record, with none between the plan and it."""
    for memory, records in (await of_owner(history, name)).items():
        texts = [None, *(record.new_memory for record in records)]
        assert [record.old_memory for record in records] == texts[:-1]
        assert {record.owner for record in records} == {Owner(user_id=name)}
        if memory in WANTED:
            assert texts[-1] == WANTED[memory]
            assert len(records) == (2 if memory == "added" else 3)


async def check_erased(history: HistoryManager, name: str) -> None:
    for records in (await of_owner(history, name)).values():
        assert {
            (one.old_memory, one.new_memory, one.context, one.cause, one.owner) for one in records
        } == {(None, None, None, None, None)}
    assert await history.count_history(user_id=name) == 0
    assert await history.get_last_messages(f"run_id=1&user_id={name}") == []
    assert (await history.erasures())[-1].finished_at is not None
