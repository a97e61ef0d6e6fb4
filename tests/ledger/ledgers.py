"""Filling, changing, verifying and counting ledgers."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from async_history import HistoryManager, open_history
from async_history._core.concurrency.threads import run_to_completion
from async_history._core.ledger.checkpoint import Checkpoint, LedgerKey
from async_history._core.ledger.leaves import Leaf
from async_history._core.ledger.ledger_store import LedgeredStore, LedgerStore
from async_history._core.ledger.tables import LedgerTables
from async_history._core.ledger.verify import verify
from async_history._core.operations.operations import StoreOperation
from async_history._sqlite.index import add_functions
from async_history._sqlite.keys import InClear, Seal
from async_history._sqlite.ledger import tables
from async_history.ledger import LedgerReport
from async_history.postgres import PostgresHistoryManager

KEY = LedgerKey.generate("example.org/history")
OWNER = {"user_id": "ann", "agent_id": "guide"}
IN_CLEAR = InClear()

T = TypeVar("T")


class Raw:
    """A ledger without a manager, through one connection and in its open transaction."""

    def __init__(self, tables: LedgerTables) -> None:
        self._tables = tables

    async def write(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        return await work(self._tables)

    async def read(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        return await work(self._tables)


def store_ledger(history: HistoryManager) -> LedgerStore:
    store = history.store
    assert isinstance(store, LedgeredStore)
    assert store.ledger is not None
    return store.ledger


async def leaves_of(history: HistoryManager, size: int) -> Mapping[int, Leaf]:
    return await store_ledger(history).read(lambda tables: tables.leaves(range(size)))


async def fill(history: HistoryManager, count: int = 40) -> None:
    """Record through every call that records."""
    await asyncio.gather(
        *(
            history.add_history(f"m{n % 5}", None, f"likes {n}", "ADD", context={"n": n})
            for n in range(count)
        )
    )
    await history.add_history("owned", None, "lives here", "ADD", owner=OWNER, cause={"why": "é"})
    await history.update_history("owned", "lives there")
    await history.add_history("owned", "lives there", None, "DELETE", id="given")
    await history.add_history("owned", "lives there", None, "DELETE", id="given")  # is there
    await history.batch_add_history(
        [{"memory_id": f"b{n}", "new_memory": "x\ny\x1f]\n[", "event": "ADD"} for n in range(520)]
    )


async def operate(history: HistoryManager) -> list[StoreOperation]:
    """Do some operations, one by an actor; return the log."""
    await history.add_history("m", None, "likes tea", "ADD", actor_id="bo")
    await history.update_history("m", "likes milk")
    await history.restore("m", to=1, actor_id="bo")
    await history.prune(older_than=datetime.now(UTC) - timedelta(days=1))
    await history.ledger.checkpoint(KEY)
    return list(await history.operations())


def connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        add_functions(connection)
    except BaseException:
        connection.close()
        raise
    return connection


async def verified(path: Path, *checkpoints: Checkpoint) -> LedgerReport:
    return await asyncio.to_thread(verified_here, path, *checkpoints)


def verified_here(path: Path, *checkpoints: Checkpoint, seal: Seal = IN_CLEAR) -> LedgerReport:
    with closing(connected(path)) as connection:
        return run_to_completion(verify(Raw(tables(connection, seal)), checkpoints, None))


def change(path: Path, *statements: str) -> None:
    """Run SQL as someone with a shell does who also knows the library's triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


def what_is_found(report: LedgerReport) -> set[tuple[str, str | None]]:
    """Return the kinds and the subjects of a report's findings."""
    return {
        *((one.kind, one.record_id or one.memory_id or one.operation_id) for one in report.faults),
        *(("unattested", name) for name in report.unattested),
        *(("owners", None) for _ in range(report.unattested_owners)),
        *(("operations", None) for _ in range(report.unattested_operations)),
    }


def naive_root(leaves: list[bytes]) -> bytes:
    """Return the root, computed exactly as RFC 9162 defines it (2.1.1)."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\x01" + naive_root(leaves[:half]) + naive_root(leaves[half:])).digest()


def opened(url: str, **options: Any) -> PostgresHistoryManager:
    history = open_history(url, ledger=True, **options)
    assert isinstance(history, PostgresHistoryManager)
    return history
