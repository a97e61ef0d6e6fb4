"""The peers on MariaDB, each in a separate database with our tables.

So all write the same columns and maintain the same indexes, except the patch, which has its own
table.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

import asyncmy
from sqlalchemy import URL, Integer, String, Text, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from uuid_utils import uuid7

from async_history._core.writing.erased_names import microseconds
from async_history._sql.rows import PLAIN_COLUMNS
from async_history.sql import SqlHistoryManager
from benchmarks._findings import OURS
from benchmarks._measure import Add
from benchmarks._peers import Peer, add_to, adding_in_sessions
from benchmarks._records import NewRecord

SESSIONS: Final = "SQLAlchemy sessions"
PATCH: Final = "the patch's way"
HELD: Final = "an insert on a held connection"
_TRANSACTION_ROWS: Final = 512
_CONNECTIONS: Final = 10
_WAIT_FOR_CONNECTION_S: Final = 60.0
_INSERT: Final = f"INSERT INTO async_history_records ({', '.join(PLAIN_COLUMNS)})"
_BY_PLACE: Final = f"{_INSERT} VALUES ({', '.join(['%s'] * len(PLAIN_COLUMNS))})"
_BY_NAME: Final = text(f"{_INSERT} VALUES ({', '.join(f':{name}' for name in PLAIN_COLUMNS)})")

Row = tuple[Any, ...]


def rows(records: Iterable[NewRecord], numbers: Iterator[int]) -> Iterator[Row]:
    """Yield a record's values for our table."""
    for record in records:
        moment = record.created_at if record.event == "ADD" else record.updated_at
        assert moment is not None
        instant = microseconds(datetime.fromisoformat(moment))
        yield (next(numbers), str(uuid7()), *record, instant)


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[Any]:
    """Hold a connection of the driver."""
    connection = await asyncmy.connect(
        unix_socket=url.query["unix_socket"], user=url.username, db=url.database, charset="utf8mb4"
    )
    try:
        yield connection
    finally:
        await connection.ensure_closed()


async def execute(url: URL, *statements: str) -> None:
    """Execute statements on a separate connection."""
    async with connected(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)
        await connection.commit()


@asynccontextmanager
async def fresh_database(url: URL) -> AsyncIterator[URL]:
    """Create our tables in a new database, and drop it afterwards."""
    name = f"benchmark_{token_hex(8)}"
    await execute(url, f"CREATE DATABASE {name}")
    try:
        async with SqlHistoryManager(url.set(database=name)):
            """Opening creates the tables."""
        yield url.set(database=name)
    finally:
        await execute(url, f"DROP DATABASE {name}")


@asynccontextmanager
async def ours(url: URL, folder: Path) -> AsyncIterator[Add]:
    """async_history on MariaDB."""
    async with fresh_database(url) as fresh, SqlHistoryManager(fresh) as history:
        yield add_to(history)


@asynccontextmanager
async def sqlalchemy_sessions(url: URL, folder: Path) -> AsyncIterator[Add]:
    """SQLAlchemy asyncio on asyncmy: a session per event, a pool of 10."""
    numbers = count(1)

    def values(record: NewRecord) -> Mapping[str, Any]:
        (row,) = rows((record,), numbers)
        return dict(zip(PLAIN_COLUMNS, row, strict=True))

    async with fresh_database(url) as fresh:
        engine = create_async_engine(
            fresh,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_WAIT_FOR_CONNECTION_S,
        )
        async with adding_in_sessions(engine, _BY_NAME, values) as add:
            yield add


class _Base(DeclarativeBase):
    """The patch's tables."""


class _Change(_Base):
    """The patch's table, with the lengths that MySQL needs for a primary key."""

    __tablename__ = "history"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    memory_id: Mapped[str] = mapped_column(Text)
    old_memory: Mapped[str | None] = mapped_column(Text)
    new_memory: Mapped[str | None] = mapped_column(Text)
    event: Mapped[str] = mapped_column(Text)
    is_deleted: Mapped[int] = mapped_column(Integer)
    actor_id: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)


@asynccontextmanager
async def patch(url: URL, folder: Path) -> AsyncIterator[Add]:
    """mem0-history-db-patch: an ORM session for each call, in a thread of the loop's executor.

    It is rewritten here, because the package replaces a file of mem0, and its table has no lengths.
    """
    async with fresh_database(url) as fresh:
        engine = create_engine(
            fresh.set(drivername="mysql+pymysql"), pool_timeout=_WAIT_FOR_CONNECTION_S
        )
        _Base.metadata.create_all(engine)
        sessions = sessionmaker(engine)

        def write(record: NewRecord) -> None:
            values = record._asdict()
            del values["created_at"], values["updated_at"]
            with sessions() as session:
                session.add(_Change(id=str(uuid7()), **values))
                session.commit()

        yield lambda record: asyncio.to_thread(write, record)
        # A cancelled `to_thread` continues in its thread, and needs its connection until the end.
        await asyncio.get_running_loop().shutdown_default_executor()
        engine.dispose()


def peers(url: URL) -> Mapping[str, Peer]:
    """Return the peers on a server."""
    return {
        OURS: partial(ours, url),
        SESSIONS: partial(sqlalchemy_sessions, url),
        PATCH: partial(patch, url),
    }


def executemany_ceiling(url: URL, records: Sequence[NewRecord]) -> float:
    """Return the events a second of the driver's `executemany`: no acks, rows made before."""
    made = list(rows(records, count(1)))

    async def insert() -> float:
        async with fresh_database(url) as fresh, connected(fresh) as connection:
            cursor = connection.cursor()
            begun = perf_counter()
            for start in range(0, len(made), _TRANSACTION_ROWS):
                await cursor.executemany(_BY_PLACE, made[start : start + _TRANSACTION_ROWS])
                await connection.commit()
            return len(made) / (perf_counter() - begun)

    return asyncio.run(insert())


@asynccontextmanager
async def ours_and_held(url: URL) -> AsyncIterator[tuple[Add, Add]]:
    """Ours, and an INSERT and COMMIT on an open connection, into a table like ours."""
    async with (
        fresh_database(url) as fresh,
        fresh_database(url) as other,
        SqlHistoryManager(fresh) as history,
        connected(other) as connection,
    ):
        cursor = connection.cursor()
        numbers = count(1)

        async def add(record: NewRecord) -> None:
            (row,) = rows((record,), numbers)
            await cursor.execute(_BY_PLACE, row)
            await connection.commit()

        yield add_to(history), add
