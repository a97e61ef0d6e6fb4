"""Engines of programs: who begins a transaction of SQLite, and which options are refused."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from async_history import open_history
from async_history.errors import InvalidInput

pytestmark = pytest.mark.once

_CHANGE: Final = {"memory_id": "m", "new_memory": "tea", "event": "ADD"}
_BEGIN_BY_EVENT: Final = "events"
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "driver": {},
    "immediate": {"connect_args": {"isolation_level": "IMMEDIATE"}},
    _BEGIN_BY_EVENT: {},
}
"""Options of engines, by what begins a transaction."""
_IN_AUTOCOMMIT: Final[dict[str, dict[str, Any]]] = {
    "engine": {"isolation_level": "AUTOCOMMIT"},
    "connections": {"connect_args": {"isolation_level": None}},
}
if sys.version_info >= (3, 12):
    _OPTIONS["always"] = {"connect_args": {"autocommit": False}}

NewEngine = Callable[[str], AsyncEngine]


@pytest.fixture
async def new_engine(tmp_path: Path) -> AsyncIterator[NewEngine]:
    """A function that makes an engine of a kind on the test's file."""
    made: list[AsyncEngine] = []

    def engine(kind: str) -> AsyncEngine:
        options = (_OPTIONS | _IN_AUTOCOMMIT)[kind]
        made.append(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", **options))
        if kind == _BEGIN_BY_EVENT:
            begin_by_event(made[-1])
        return made[-1]

    yield engine
    for one in made:
        await one.dispose()


def begin_by_event(engine: AsyncEngine) -> None:
    """Begin transactions as SQLAlchemy's documentation advises for savepoints."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(driver: Any, _: object) -> None:
        driver.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize("before", ["", "SELECT 1", "INSERT INTO own VALUES (1)"])
@pytest.mark.parametrize("kind", _OPTIONS)
async def test_records_commit_and_roll_back_with_a_programs_transaction(
    new_engine: NewEngine, kind: str, before: str
) -> None:
    """Also if the records are the first that the transaction writes."""
    engine = new_engine(kind)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE own (number)"))
    async with open_history(engine=engine) as history:
        for is_committed in (False, True):
            async with AsyncSession(engine) as session:
                if before:
                    await session.execute(text(before))
                await history.add_in_transaction(session, [_CHANGE])
                await (session.commit() if is_committed else session.rollback())
            assert len(await history.get_history("m")) == is_committed


@pytest.mark.parametrize("kind", [*_OPTIONS, *_IN_AUTOCOMMIT])
async def test_a_batch_is_one_transaction_of_its_own(
    new_engine: NewEngine, tmp_path: Path, kind: str
) -> None:
    """Others see nothing of it as its records are written, and all of it after its ack."""
    engine = new_engine(kind)
    async with open_history(engine=engine, ledger=True) as history:
        await history.add_history("first", None, "tea", "ADD")
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        seen: list[int] = []

        def written(*given: Any) -> None:
            if given[2].startswith("INSERT INTO async_history_records"):
                seen.extend(other.execute("SELECT last FROM async_history_state").fetchone())

        event.listen(engine.sync_engine, "before_cursor_execute", written)
        await history.batch_add_history([_CHANGE] * 3)
        event.remove(engine.sync_engine, "before_cursor_execute", written)
        assert seen == [1]
        assert other.execute("SELECT last FROM async_history_state").fetchone() == (4,)
        other.close()
        assert not (await history.ledger.verify()).faults


@pytest.mark.parametrize("kind", _IN_AUTOCOMMIT)
async def test_a_connection_in_autocommit_is_refused(new_engine: NewEngine, kind: str) -> None:
    engine = new_engine(kind)
    async with open_history(engine=engine) as history, AsyncSession(engine) as session:
        with pytest.raises(InvalidInput, match="AUTOCOMMIT"):
            await history.add_in_transaction(session, [_CHANGE])
        await session.rollback()
        assert await history.count_history() == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has no autocommit")
async def test_connections_that_never_commit_are_refused(tmp_path: Path) -> None:
    """Python's driver then ignores a commit, which SQLAlchemy does not notice."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", connect_args={"autocommit": True}
    )
    with pytest.raises(InvalidInput, match="autocommit=True"):
        await open_history(engine=engine)
    await engine.dispose()


async def test_a_map_of_schemas_is_refused(new_engine: NewEngine) -> None:
    """Otherwise some records would go to the map's schema, and some to the history's."""
    engine = new_engine("driver")
    translating = engine.execution_options(schema_translate_map={None: "tenant"})
    with pytest.raises(InvalidInput, match="schema_translate_map"):
        await open_history(engine=translating)
    async with open_history(engine=engine) as history:
        async with AsyncSession(translating) as session:
            with pytest.raises(InvalidInput, match="schema_translate_map"):
                await history.add_in_transaction(session, [_CHANGE])
        others = engine.execution_options(schema_translate_map={"shared": "tenant"})
        async with AsyncSession(others) as session:
            await history.add_in_transaction(session, [_CHANGE])
            await session.commit()
        assert await history.count_history() == 1


@pytest.mark.parametrize("option", ["stream_results", "yield_per"])
async def test_streamed_results_are_refused(new_engine: NewEngine, option: str) -> None:
    """SQLAlchemy refuses each of our statements then, also on a program's connection."""
    engine = new_engine("driver")
    streaming = engine.execution_options(**{option: 1})
    with pytest.raises(InvalidInput, match=rf"{option}.*execution_options\({option}=None\)"):
        await open_history(engine=streaming)
    async with open_history(engine=streaming.execution_options(**{option: None})) as history:
        async with streaming.connect() as connection:
            with pytest.raises(InvalidInput, match=option):
                await history.add_in_transaction(connection, [_CHANGE])
            await connection.execution_options(**{option: None})
            await history.add_in_transaction(connection, [_CHANGE])
            await connection.commit()
        assert await history.count_history() == 1


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("has_committed", [True, False])
async def test_a_commit_that_ends_in_an_io_error_is_looked_up(
    has_committed: bool, calls: int, new_engine: NewEngine
) -> None:
    """SQLite's log may have it, or not."""
    engine = new_engine("driver")
    dialect: Any = engine.sync_engine.dialect
    commit = dialect.do_commit

    def fail_once(connection: Any) -> None:
        dialect.do_commit = commit
        if has_committed:
            commit(connection)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    async with open_history(engine=engine) as history:
        dialect.do_commit = fail_once
        names = [f"m{number}" for number in range(calls)]
        await asyncio.gather(*(history.add_history(one, None, "x", "ADD") for one in names))
        assert [record.memory_id async for record in history.query_history()] == names
        assert not (await history.check()).problems
