"""The peers on PostgreSQL, each in a separate schema with tables from our migration.

So all write the same columns and maintain the same indexes. Each is set up as its users would.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

import asyncpg
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.ext.asyncio import create_async_engine
from uuid_utils import uuid7

from async_history import open_history
from benchmarks._findings import NULL, OURS
from benchmarks._measure import Add
from benchmarks._peers import TRANSACTION_ROWS, Peer, add_to, adding_in_sessions, mem0, null
from benchmarks._records import NewRecord

POOL: Final = "asyncpg pool of 10"
SESSIONS: Final = "SQLAlchemy sessions"
MEM0: Final = "mem0 (SQLite)"
PREPARED: Final = "a prepared insert"
_CONNECTIONS: Final = 10
_WAIT_FOR_CONNECTION_S: Final = 60.0
COLUMNS: Final = ("id", *NewRecord._fields, "occurred_at")

Row = tuple[Any, ...]


def rows(records: Iterable[NewRecord]) -> Iterator[Row]:
    """Yield a record's values for our table, its instant last, with ordered ids (UUIDv7)."""
    for record in records:
        moment = record.created_at if record.event == "ADD" else record.updated_at
        assert moment is not None
        values = record._replace(is_deleted=bool(record.is_deleted))
        yield (str(uuid7()), *values, datetime.fromisoformat(moment))


def _insert(schema: str, placeholders: Iterable[str]) -> str:
    columns = ", ".join(COLUMNS)
    return f"INSERT INTO {schema}.history ({columns}) VALUES ({', '.join(placeholders)})"


def insert_by_number(schema: str) -> str:
    """Return the INSERT of one row for asyncpg."""
    return _insert(schema, (f"${number}" for number in range(1, len(COLUMNS) + 1)))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Hold a connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def fresh_schema(url: str) -> AsyncIterator[str]:
    """Create our tables in a new schema, and drop it afterwards.

    Before that there is a checkpoint, if allowed, so that this measurement does not flush what
    others wrote.
    """
    schema = f"benchmark_{token_hex(8)}"
    async with connected(url) as connection:
        try:
            async with open_history(url, schema=schema):
                """Opening creates the tables."""
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute("CHECKPOINT")
            yield schema
        finally:
            await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@asynccontextmanager
async def ours(url: str, folder: Path, *, through: str | None = None) -> AsyncIterator[Add]:
    """async_history on PostgreSQL, through another URL if that is given."""
    async with (
        fresh_schema(url) as schema,
        open_history(through or url, schema=schema) as history,
    ):
        yield add_to(history)


@asynccontextmanager
async def asyncpg_pool(url: str, folder: Path) -> AsyncIterator[Add]:
    """One INSERT per event, on any free connection of a pool.

    The pool has asyncpg's defaults: it resets a connection after each use, with one more round
    trip.
    """
    async with (
        fresh_schema(url) as schema,
        asyncpg.create_pool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool,
    ):
        insert = insert_by_number(schema)

        async def add(record: NewRecord) -> None:
            (row,) = rows((record,))
            await pool.execute(insert, *row)

        yield add


@asynccontextmanager
async def sqlalchemy_sessions(url: str, folder: Path) -> AsyncIterator[Add]:
    """SQLAlchemy asyncio on asyncpg: a session per event, a pool as large as the other."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(asyncpg.connect, url),
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_WAIT_FOR_CONNECTION_S,
    )

    def values(record: NewRecord) -> Mapping[str, Any]:
        (row,) = rows((record,))
        return dict(zip(COLUMNS, row, strict=True))

    async with fresh_schema(url) as schema:
        insert = text(_insert(schema, (f":{name}" for name in COLUMNS)))
        typed = insert.bindparams(bindparam("occurred_at", type_=DateTime(timezone=True)))
        async with adding_in_sessions(engine, typed, values) as add:
            yield add


def peers(url: str) -> Mapping[str, Peer]:
    """Return the peers on a server, with those that need no server."""
    return {
        OURS: partial(ours, url),
        NULL: null,
        POOL: partial(asyncpg_pool, url),
        SESSIONS: partial(sqlalchemy_sessions, url),
        MEM0: mem0,
    }


# Raw peers without tasks, and a single task

_OTHER_INDEXES: Final = """
SELECT indexname FROM pg_catalog.pg_indexes WHERE schemaname = $1 AND tablename = 'history'
    AND indexname NOT IN ('history_pkey', 'history_memory')
"""


def copy_ceiling(url: str, records: Sequence[NewRecord], *, two_indexes: bool = False) -> float:
    """Return the events a second of raw COPY, 1,000 rows each: no acks, rows made before.

    Args:
        two_indexes: whether the table has only a primary key and (memory_id, seq).
    """
    made = list(rows(records))

    async def copy() -> float:
        async with fresh_schema(url) as schema, connected(url) as connection:
            if two_indexes:
                for (others,) in await connection.fetch(_OTHER_INDEXES, schema):
                    await connection.execute(f"DROP INDEX {schema}.{others}")
            begun = perf_counter()
            for start in range(0, len(made), TRANSACTION_ROWS):
                await connection.copy_records_to_table(
                    "history",
                    schema_name=schema,
                    columns=COLUMNS,
                    records=made[start : start + TRANSACTION_ROWS],
                )
            return len(made) / (perf_counter() - begun)

    return asyncio.run(copy())


@asynccontextmanager
async def ours_and_prepared(url: str) -> AsyncIterator[tuple[Add, Add]]:
    """Ours, and one prepared INSERT on an open connection, into the same table."""
    async with (
        fresh_schema(url) as schema,
        open_history(url, schema=schema) as history,
        connected(url) as connection,
    ):
        statement = await connection.prepare(insert_by_number(schema))

        async def add(record: NewRecord) -> None:
            (row,) = rows((record,))
            await statement.fetch(*row)

        yield add_to(history), add
