"""Encrypted stores: filling, reading and interrupting them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from async_history import HistoryManager
from async_history._core.encryption.stored_texts import TextLimits
from async_history._core.removing.erase_request import EraseLimits
from tests.subprocesses.proxy import Proxy
from tests.support.parts import Places
from tests.support.patience import LONG_S

ANN: Any = {"user_id": "ann"}
DETAILS: Any = {"context": {"why": "tea"}, "cause": {"run_id": "r"}}
FEW = TextLimits(rows=3)
FEW_ERASED = EraseLimits(records=3, names=2, noted=3)

Open = Callable[..., HistoryManager]
"""Open the test's store, with options."""


def changes(records: int, prefix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "id": f"{prefix}{n:02}",
            "memory_id": f"{prefix}m{n % 4}",
            "new_memory": f"text {n}",
            "event": "UPDATE",
            **(DETAILS if n % 2 else {}),
            **({"owner": ANN} if n % 4 == 1 else {}),
        }
        for n in range(records)
    ]


async def fill(history: HistoryManager, records: int = 12) -> list[Any]:
    await history.batch_add_history(changes(records))
    await history.save_messages([{"role": "user", "content": "hello"}] * 2, "user_id=ann")
    return await all_of(history)


async def all_of(history: HistoryManager) -> list[Any]:
    return [record async for record in history.query_history()]


async def contents(history: HistoryManager) -> list[Any]:
    return [one.content for one in await history.get_last_messages("user_id=ann")]


async def until_turned_off(history: HistoryManager) -> None:
    """Decrypt until encryption is turned off, as if interrupted then."""
    store: Any = history.store
    texts, keys = store.encryption.texts, store.encryption.keys
    in_transaction = texts.in_transaction
    is_done = asyncio.Event()

    async def no_further(work: Any) -> Any:
        if is_done.is_set():
            await asyncio.Event().wait()
        done = await in_transaction(work)
        if keys.is_off:
            is_done.set()
        return done

    texts.in_transaction = no_further
    begun = asyncio.ensure_future(history.encryption.decrypt())
    await asyncio.wait_for(is_done.wait(), LONG_S)
    begun.cancel()
    await asyncio.wait([begun])
    texts.in_transaction = in_transaction


def cancelled_after(transactions: int, history: Any, call: str) -> "asyncio.Future[Any]":
    """Begin a call of a history's encryption; cancel it after so many transactions on texts."""
    texts = history.store.encryption.texts
    whole = texts.in_transaction

    async def counted(work: Any) -> Any:
        nonlocal transactions
        done = await whole(work)
        transactions -= 1
        if not transactions:
            begun.cancel()
        return done

    async def calling() -> None:
        texts.in_transaction = counted
        try:
            await getattr(history.encryption, call)()
        finally:
            texts.in_transaction = whole

    begun: asyncio.Future[Any] = asyncio.ensure_future(calling())
    return begun


async def cut_off(transactions: int, history: Any, call: str) -> bool:
    """Cancel a call after so many transactions, as `cancelled_after`; return False if it ended
    before."""
    begun = cancelled_after(transactions, history, call)
    await asyncio.wait([begun])
    if not begun.cancelled():
        begun.result()
        return False
    return True


async def until_complete(places: Places, is_interrupted: Callable[[int], Awaitable[bool]]) -> None:
    """Interrupt a call after some of its transactions, in turn, until it completes."""
    for place in places:
        if not await is_interrupted(place + 1):
            break
    assert place >= places.stride


async def key_ids(history: Any) -> dict[str, set[str]]:
    """Return the data keys of a store, and the keys that its texts name."""
    texts = history.store.encryption.texts

    async def find(one: Any) -> dict[str, set[str]]:
        page = await one.sealed_records(None, 1_000)
        used = {row.new_memory[5:21] for row in page.rows}
        return {"used": used, "there": {key.id for key in await one.table.keys(list(used))}}

    found: dict[str, set[str]] = await texts.in_transaction(find)
    return found


async def stopped_by_a_cut(call: Callable[[], Awaitable[Any]], proxy: Proxy, cuts: int) -> None:
    """Call, and cancel the call once its connection is cut: it would go on with another one."""
    calling: asyncio.Future[Any] = asyncio.ensure_future(call())
    while proxy.cuts == cuts and not calling.done():  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.001)
    calling.cancel()
    await asyncio.wait([calling])


# Owners that are forgotten


async def record_for(history: HistoryManager, name: str) -> None:
    """Record memories and messages of an owner."""
    await history.batch_add_history(
        [
            {
                "id": f"{name} {n}",
                "memory_id": f"{name} m{n % 3}",
                "new_memory": f"text {n}",
                "event": "UPDATE",
                "owner": {"user_id": name},
                "context": {"why": "tea"},
            }
            for n in range(8)
        ]
    )
    await history.save_messages([{"role": "user", "content": name}] * 2, f"user_id={name}")


async def require_readable(history: HistoryManager, name: str) -> None:
    """Check that an interrupted erasure left each text of `record_for` whole or not at all."""
    for memory in range(3):
        records = await history.get_history(f"{name} m{memory}")
        assert [one.id for one in records] == [f"{name} {n}" for n in range(memory, 8, 3)]
        for record in records:
            assert record.new_memory in (f"text {record.id.split()[-1]}", None)
            assert record.context in ({"why": "tea"}, None)
    assert {one.content for one in await history.get_last_messages(f"user_id={name}")} <= {name}


async def require_forgotten(history: HistoryManager, name: str) -> None:
    """Check that an erasure has left nothing of `record_for` but columns in clear."""
    for memory in range(3):
        records = await history.get_history(f"{name} m{memory}")
        assert {(one.new_memory, one.context, one.owner) for one in records} == {(None, None, None)}
    assert await history.get_last_messages(f"user_id={name}") == []
    assert await history.count_history(user_id=name) == 0
    assert (await history.erasures())[-1].finished_at is not None
