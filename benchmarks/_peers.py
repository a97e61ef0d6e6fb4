"""The peers: each opens a store in its folder, and yields a function that records an event."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import aiosqlite
from mem0.memory.storage import SQLiteManager
from sqlalchemy import TextClause, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from async_history import HistoryManager, open_history
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.writer import GroupCommitWriter
from async_history.errors import HistoryError
from benchmarks._measure import Add
from benchmarks._records import CREATE_HISTORY, INSERT, NewRecord, Row, rows

Peer = Callable[[Path], AbstractAsyncContextManager[Add]]

TRANSACTION_ROWS: Final = 1_000
"""The rows of a transaction for the ceiling: the most that 1,000 tasks could share."""
_WAIT_FOR_LOCK_S: Final = 60.0

INDEX: Final = "CREATE INDEX history_by_memory ON history (memory_id)"


def add_to(history: HistoryManager) -> Add:
    """Return a function that records an event with one of our managers."""

    def add(r: NewRecord) -> Any:
        return history.add_history(
            r.memory_id,
            r.old_memory,
            r.new_memory,
            r.event,
            created_at=r.created_at,
            updated_at=r.updated_at,
            is_deleted=r.is_deleted,
            actor_id=r.actor_id,
            role=r.role,
        )

    return add


@asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[Add]:
    """async_history on SQLite: each await returns when its record is on disk."""
    async with open_history(folder / "history.db") as history:
        yield add_to(history)


@asynccontextmanager
async def ours_with_rollback_journal(folder: Path) -> AsyncIterator[Add]:
    """The same without a write-ahead log: `journal="delete"`."""
    async with open_history(folder / "history.db", journal="delete") as history:
        yield add_to(history)


@asynccontextmanager
async def null(folder: Path) -> AsyncIterator[Add]:
    """Our null manager: checks, then forgets."""
    async with open_history("null://") as history:
        yield add_to(history)


@dataclass(frozen=True, slots=True)
class _Nothing:
    """A submission of one record with a size of zero."""

    record_count: int = 1
    size_bytes: int = 0
    ids: Sequence[str] = ()


@asynccontextmanager
async def writer_alone(folder: Path) -> AsyncIterator[Add]:
    """The group-commit writer with no database: queue, batches and acks alone."""

    async def commit(batch: Sequence[_Nothing], this: CommitTry) -> Mapping[int, HistoryError]:
        return {}

    async def finish() -> None:
        """Do nothing: there is nothing to release."""

    writer = GroupCommitWriter(commit, finish=finish)
    submission = _Nothing()
    yield lambda record: writer.submit(submission)
    await writer.aclose(timeout_s=10)


@asynccontextmanager
async def mem0(folder: Path, *, wal: bool = False) -> AsyncIterator[Add]:
    """mem0's own SQLiteManager, called as its AsyncMemory calls it."""
    manager = SQLiteManager(str(folder / "history.db"))
    if wal:
        manager.connection.execute("PRAGMA journal_mode = WAL")

    def add(r: NewRecord) -> Any:
        return asyncio.to_thread(
            manager.add_history,
            r.memory_id,
            r.old_memory,
            r.new_memory,
            r.event,
            created_at=r.created_at,
            updated_at=r.updated_at,
            is_deleted=r.is_deleted,
            actor_id=r.actor_id,
            role=r.role,
        )

    yield add
    # A cancelled `to_thread` continues in its thread, and needs the connection until it is done.
    await asyncio.get_running_loop().shutdown_default_executor()
    manager.close()


def mem0_in_wal(folder: Path) -> AbstractAsyncContextManager[Add]:
    """mem0's SQLiteManager in WAL mode."""
    return mem0(folder, wal=True)


@asynccontextmanager
async def shared_aiosqlite(folder: Path) -> AsyncIterator[Add]:
    """One aiosqlite connection for all tasks, each of which commits (unsafe, but common)."""
    async with aiosqlite.connect(folder / "history.db") as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute(CREATE_HISTORY)
        await connection.execute(INDEX)

        async def add(record: NewRecord) -> None:
            (row,) = rows((record,))
            await connection.execute(INSERT, row)
            await connection.commit()

        yield add


@asynccontextmanager
async def sqlalchemy_sessions(folder: Path) -> AsyncIterator[Add]:
    """SQLAlchemy asyncio on aiosqlite: a session per event, its usual pool."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{folder / 'history.db'}",
        connect_args={"timeout": _WAIT_FOR_LOCK_S},
        pool_timeout=_WAIT_FOR_LOCK_S,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    async with engine.begin() as connection:
        await connection.execute(text(CREATE_HISTORY))
        await connection.execute(text(INDEX))
    async with adding_in_sessions(engine, _named_insert(), _named_row) as add:
        yield add


@asynccontextmanager
async def adding_in_sessions(
    engine: AsyncEngine, insert: TextClause, values: Callable[[NewRecord], Mapping[str, Any]]
) -> AsyncIterator[Add]:
    """Add by a statement in a session and a transaction for each event; dispose of the engine."""
    # When the time limit is reached, the pool logs a warning for each interrupted session.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    sessions = async_sessionmaker(engine)

    async def add(record: NewRecord) -> None:
        async with sessions() as session:
            await session.execute(insert, values(record))
            await session.commit()

    yield add
    await engine.dispose()


_NAMES: Final = ("id", *NewRecord._fields)


def _named_insert() -> TextClause:
    columns = INSERT.partition("VALUES")[0]
    return text(f"{columns}VALUES ({', '.join(f':{name}' for name in _NAMES)})")


def _named_row(record: NewRecord) -> Mapping[str, Any]:
    (row,) = rows((record,))
    return dict(zip(_NAMES, row, strict=True))


PEERS: Final[Mapping[str, Peer]] = {
    "async_history": ours,
    "async_history, rollback journal": ours_with_rollback_journal,
    "async_history, null": null,
    "writer, no database": writer_alone,
    "mem0": mem0,
    "mem0, WAL": mem0_in_wal,
    "one aiosqlite connection": shared_aiosqlite,
    "SQLAlchemy sessions": sqlalchemy_sessions,
}


# Raw peers without tasks


def connect_raw(path: Path) -> sqlite3.Connection:
    """Connect with durable commits (WAL, FULL), and otherwise SQLite's defaults."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def insert_raw(connection: sqlite3.Connection, made: Sequence[Row], sql: str = INSERT) -> float:
    """Insert in transactions of 1,000 rows; return rows a second."""
    begun = perf_counter()
    for start in range(0, len(made), TRANSACTION_ROWS):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(sql, made[start : start + TRANSACTION_ROWS])
        connection.execute("COMMIT")
    return len(made) / (perf_counter() - begun)


def ceiling(folder: Path, records: Sequence[NewRecord]) -> float:
    """Return the events a second of raw `executemany`: no acks, no loop, rows made before."""
    made = list(rows(records))
    connection = connect_raw(folder / "history.db")
    connection.execute(CREATE_HISTORY)
    connection.execute(INDEX)
    events_per_s = insert_raw(connection, made)
    connection.close()
    return events_per_s


@asynccontextmanager
async def raw_in_thread(folder: Path) -> AsyncIterator[Add]:
    """A raw BEGIN, INSERT, COMMIT, awaited in a separate thread: the least cost of a single ack."""
    connection = connect_raw(folder / "history.db")
    connection.execute(CREATE_HISTORY)
    connection.execute(INDEX)

    def write(row: Row) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT, row)
        connection.execute("COMMIT")

    with ThreadPoolExecutor(1) as thread:
        loop = asyncio.get_running_loop()

        async def add(record: NewRecord) -> None:
            (row,) = rows((record,))
            await loop.run_in_executor(thread, write, row)

        yield add
    connection.close()
