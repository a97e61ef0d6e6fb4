"""No transaction stays open between two calls that the event loop makes on a connection's thread.

Otherwise a blocked loop would keep the file locked for everyone.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import (
    HistoryConflict,
    HistoryManager,
    IdConflict,
    StorageError,
    StorageRefused,
    open_history,
)
from async_history._core.concurrency.threads import run_to_completion
from async_history._sqlite.connecting.connection import ThreadConnection

RECORDS = 600  # more than a statement takes


def change(memory_id: str, **columns: Any) -> dict[str, Any]:
    return {"memory_id": memory_id, "new_memory": "x", "event": "UPDATE", **columns}


async def add_many(history: HistoryManager, path: Path) -> None:
    await history.batch_add_history([change("m") for _ in range(RECORDS)])


async def add_again(history: HistoryManager, path: Path) -> None:
    for _ in range(2):
        await history.batch_add_history([change("m", id=f"again {n}") for n in range(RECORDS)])


async def add_taken(history: HistoryManager, path: Path) -> None:
    with pytest.raises(IdConflict):
        await history.add_history("m", None, "other", "ADD", id="first")


async def add_if_latest(history: HistoryManager, path: Path) -> None:
    first = (await history.get_history("m"))[0]
    await asyncio.gather(
        history.batch_add_history([change("m")], if_latest=first), add_many(history, path)
    )
    with pytest.raises(HistoryConflict):
        await history.batch_add_history([change("m")], if_latest=first)


async def save_messages(history: HistoryManager, path: Path) -> None:
    for scope in ("one", "two"):
        await history.save_messages([{"content": str(n)} for n in range(12)], scope)


async def add_what_a_rule_refuses(history: HistoryManager, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as owner:
        owner.execute(
            "CREATE TRIGGER no AFTER INSERT ON history WHEN new.new_memory = 'no' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    one, *others = await asyncio.gather(
        history.add_history("m", None, "no", "ADD"),
        *(history.add_history("m", None, "yes", "ADD") for _ in range(20)),
        return_exceptions=True,
    )
    assert isinstance(one, StorageRefused)
    assert not [other for other in others if isinstance(other, BaseException)]


async def add_behind_others(history: HistoryManager, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.executemany(
            "INSERT INTO history (id, memory_id, event) VALUES (?, 'theirs', 'ADD')",
            [(f"theirs {n}",) for n in range(500)],
        )
    await history.add_history("m", None, "y", "ADD")


async def add_without_room(history: HistoryManager, path: Path) -> None:
    (writing,) = [c for c in open_connections if c.total_changes]
    await writing.execute_fetchall("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError):
        await history.batch_add_history([change("m", old_memory="x" * 999)] * RECORDS)
    await writing.execute_fetchall("PRAGMA max_page_count = 1000000")


async def prune(history: HistoryManager, path: Path) -> None:
    await add_behind_others(history, path)
    await add_many(history, path)
    report = await history.prune(older_than=timedelta(0), keep_last=1)
    assert report.records > RECORDS - 10


async def erase(history: HistoryManager, path: Path) -> None:
    await history.add_history("m", "secret", "secret", "UPDATE", actor_id="ann")
    await save_messages(history, path)
    await history.erase(memory_ids=["m"], session_scopes=["one"], reason="asked")
    await history.erase(actor_id="ann", reason="asked")


async def reset(history: HistoryManager, path: Path) -> None:
    await history.reset()
    await history.add_history("m", None, "x", "ADD")


async def restore(history: HistoryManager, path: Path) -> None:
    await history.add_history("m", "x", "y", "UPDATE")
    await history.restore("m", to=1)


OPERATIONS = (
    add_many,
    add_again,
    add_taken,
    add_if_latest,
    save_messages,
    add_what_a_rule_refuses,
    add_behind_others,
    add_without_room,
    prune,
    erase,
    reset,
    restore,
)
open_connections: list[ThreadConnection] = []


@pytest.fixture
def left_open(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls after which a connection's thread had a transaction open."""
    found: list[Any] = []
    real: Any = ThreadConnection._execute
    open_connections.clear()

    async def execute(connection: ThreadConnection, function: Any, *args: Any, **kw: Any) -> Any:
        raw: Any = connection._connection
        if connection not in open_connections:
            open_connections.append(connection)

        def looked(*args: Any, **kw: Any) -> Any:
            try:
                return function(*args, **kw)
            finally:
                if function != raw.close and raw.in_transaction:
                    found.append((function, args))

        return await real(connection, looked, *args, **kw)

    monkeypatch.setattr(ThreadConnection, "_execute", execute)
    return found


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_no_transaction_is_left_open(
    operation: Callable[[HistoryManager, Path], Awaitable[None]],
    tmp_path: Path,
    left_open: list[Any],
) -> None:
    path = tmp_path / "h.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD", id="first")
        await operation(history, path)
    assert open_connections
    assert left_open == []


def test_a_call_that_would_wait_is_refused_and_rolled_back() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="without an event loop"):
        run_to_completion(waits())
    assert ended
