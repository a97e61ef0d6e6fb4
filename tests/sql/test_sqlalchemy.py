"""SQLite and PostgreSQL through SQLAlchemy: the same backend with other dialects."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from async_history import (
    HistoryConflict,
    InvalidInput,
    MigrationError,
    StorageCorrupt,
    StorageError,
    open_history,
)
from async_history._core.writing.wakeups import WakeupScheduler
from async_history.sql import SqlHistoryManager
from async_history.testing import (
    ContractCases,
    NewStore,
    OpenStore,
    RandomCallCases,
    StateCases,
)

pytestmark = pytest.mark.once


class TestSQLite(ContractCases, RandomCallCases):
    examples = 5

    @pytest.fixture
    def new_store(self, tmp_path: Path, engines: Callable[[str], AsyncEngine]) -> NewStore:
        def new_store() -> OpenStore:
            folder = tmp_path / os.urandom(4).hex()
            folder.mkdir()
            url = f"sqlite+aiosqlite:///{folder / 'history.db'}"
            return lambda: open_history(engine=engines(url))

        return new_store


@pytest.mark.postgres
async def test_postgresqls_own_backend_records_in_a_transaction_of_sqlalchemy(
    new_schema: Callable[[], str], postgres: str, engines: Callable[[str], AsyncEngine]
) -> None:
    """With a session and with a connection, begun or not, but not in autocommit."""
    plain = make_url(postgres).set(drivername="postgresql+asyncpg")
    engine = engines(plain.render_as_string(hide_password=False))
    change = {"memory_id": "m", "event": "UPDATE", "context": {"n": 1}, "owner": {"user_id": "u"}}
    async with open_history(new_schema()) as history:
        async with AsyncSession(engine) as session:
            (first,) = await history.add_in_transaction(session, [change])
            assert await history.get_history("m") == []
            await session.commit()
            await session.execute(text("SELECT 1"))
            with pytest.raises(HistoryConflict):
                await history.add_in_transaction(session, [change], if_latest="another")
            (second,) = await history.add_in_transaction(session, [change], if_latest=first)
            await session.commit()
        async with engine.connect() as connection:
            await history.add_in_transaction(connection, [change])
            await connection.rollback()
            (third,) = await history.add_in_transaction(connection, [change])
            await connection.commit()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(InvalidInput, match="no transaction"):
                await history.add_in_transaction(connection, [change])
        with pytest.raises(InvalidInput, match="asyncpg"):
            await history.add_in_transaction(engine, [change])
        assert await history.get_history("m") == [first, second, third]


@pytest.mark.postgres
async def test_a_connection_of_postgresql_in_autocommit_is_refused(
    new_schema: Callable[[], str], postgres: str, engines: Callable[[str], AsyncEngine]
) -> None:
    """It may record without a transaction of the program: the history has its own."""
    schema = make_url(new_schema()).query["schema"]
    assert isinstance(schema, str)
    plain = make_url(postgres).set(drivername="postgresql+asyncpg")
    engine = engines(plain.render_as_string(hide_password=False))
    committing = engine.execution_options(isolation_level="AUTOCOMMIT")
    change = {"memory_id": "m", "new_memory": "tea", "event": "ADD"}
    async with SqlHistoryManager(engine=committing, schema=schema) as history:
        first = await history.add_history("m", None, "tea", "ADD")
        async with committing.connect() as connection:
            with pytest.raises(InvalidInput, match="AUTOCOMMIT"):
                await history.add_in_transaction(connection, [change])
        async with AsyncSession(engine) as session:
            (second,) = await history.add_in_transaction(session, [change])
            await session.commit()
        assert await history.get_history("m") == [first, second]


@pytest.mark.postgres
class TestPostgres(ContractCases, StateCases):
    @pytest.fixture
    def new_store(self, new_schema: Callable[[], str], postgres: str) -> NewStore:
        def new_store() -> OpenStore:
            schema = make_url(new_schema()).query["schema"]
            plain = make_url(postgres)
            return lambda: SqlHistoryManager(
                plain.set(drivername="postgresql+asyncpg"), schema=str(schema)
            )

        return new_store


async def test_tables_of_version_1_are_migrated_however_often_interrupted(
    tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    """Interrupted at each statement in turn. The log of erasures becomes operations."""
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    async with open_history(engine=engine):
        pass
    async with engine.begin() as connection:
        for statement in (
            "DROP TABLE async_history_operations",
            "CREATE TABLE async_history_erasures (id VARCHAR(64) PRIMARY KEY, begun_at BIGINT,"
            " finished_at BIGINT, reason TEXT, memory_ids TEXT, actor_sha256 VARCHAR(64),"
            " records BIGINT, messages BIGINT)",
            "INSERT INTO async_history_erasures VALUES"
            " ('1', 1000000, 2000000, 'asked', '[\"m\"]', NULL, 2, 3),"
            " ('2', 3000000, NULL, 'left', '[]', 'digest', 0, 0)",
            "UPDATE async_history_state SET layout = 1",
        ):
            await connection.execute(text(statement))
    with pytest.raises(MigrationError, match="version 1 and 3 is needed"):
        await open_history(engine=engine, migrate=False)
    left = 0

    def interrupt(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("interrupted")

    event.listen(engine.sync_engine, "before_cursor_execute", interrupt)
    for statements in count():
        left = statements
        try:
            history = await open_history(engine=engine)
        except RuntimeError:
            continue
        break
    event.remove(engine.sync_engine, "before_cursor_execute", interrupt)
    assert statements > 10
    one, two = await history.erasures()
    *_, last = await history.operations()
    await history.aclose()
    assert (one.id, one.reason, one.memory_ids) == ("1", "asked", ("m",))
    assert (one.records, one.messages) == (2, 3)
    assert one.finished_at == one.begun_at + timedelta(seconds=1)
    assert (two.finished_at, two.actor_sha256) == (None, "digest")
    assert last.arguments == {"from_version": 1, "to_version": 3}


async def test_a_lost_table_is_named(tmp_path: Path, engines: Callable[[str], AsyncEngine]) -> None:
    """A table is missing: it is not created again."""
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    async with SqlHistoryManager(engine=engine):
        pass
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda one: inspect(one).get_table_names())
    for name in set(names) - {"async_history_state"}:
        async with engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {name} RENAME TO away"))
        for migrate in (True, False):
            with pytest.raises(MigrationError, match=f"has lost {name}: restore it from a backup"):
                await SqlHistoryManager(engine=engine, migrate=migrate)
        async with engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE away RENAME TO {name}"))
    async with SqlHistoryManager(engine=engine) as history:
        await history.add_history("m", None, "x", "ADD")


@pytest.mark.parametrize("lose", ["DELETE FROM", "DROP TABLE"])
async def test_a_lost_state_is_named(
    tmp_path: Path, engines: Callable[[str], AsyncEngine], lose: str
) -> None:
    """Numbers would begin at 1 again, and erased names come back."""
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    new = [{"memory_id": "m", "event": "UPDATE"}]
    async with SqlHistoryManager(engine=engine) as history:
        await history.add_history("m", None, "tea", "ADD", owner={"user_id": "ann"})
        async with engine.begin() as connection:
            await connection.execute(text(f"{lose} async_history_state"))
        expected = StorageCorrupt if lose == "DELETE FROM" else StorageError
        for call in (
            history.add_history("m", "tea", "mate", "UPDATE"),
            history.batch_add_history(new * 3),
            history.update_history("m", "mate"),
            history.save_messages([{"role": "user", "content": "x"}], "s"),
            history.erase(user_id="ann", reason="asked", vacuum=False),
            history.prune(older_than=datetime(2020, 1, 1, tzinfo=UTC)),
        ):
            with pytest.raises(expected, match="async_history_state"):
                await call
        async with AsyncSession(engine) as session:
            with pytest.raises(expected, match="async_history_state"):
                await history.add_in_transaction(session, new)
        if expected is StorageCorrupt:
            assert "has lost its row" in " ".join((await history.check()).problems)
        assert [one.new_memory for one in await history.get_history("m")] == ["tea"]
    for migrate in (True, False):
        with pytest.raises(MigrationError, match=r"lost the row of async_history_state.*a backup"):
            await SqlHistoryManager(engine=engine, migrate=migrate)


async def test_thousands_of_memories_at_once(
    tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    """More than fits into one statement. `conftest.py` checks each statement."""
    names = [f"m{n}" for n in range(2_500)]
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    changes = [
        {
            "id": f"id {n}",
            "memory_id": names[n % len(names)],
            "new_memory": f"tea {n % 7}",
            "event": "UPDATE",
            "updated_at": begun + timedelta(seconds=n),
            "owner": {"user_id": "ann"},
            "cause": {"run_id": f"r{n % 2}"},
        }
        for n in range(2 * len(names))
    ]
    async with open_history(engine=engines(f"sqlite+aiosqlite:///{tmp_path / 'h.db'}")) as history:
        recorded = await history.batch_add_history(changes)
        assert await history.batch_add_history(changes) == recorded
        asked = names[::2]
        wanted = [one for one in recorded if one.memory_id in set(asked)]
        for filters, expected in (
            ({}, wanted),
            ({"text": "tea 3"}, [one for one in wanted if one.new_memory == "tea 3"]),
            ({"cause": {"run_id": "r0"}}, wanted),
            ({"cause": {"run_id": "r1"}}, []),
            ({"since": begun + timedelta(seconds=2_500)}, wanted[len(asked) :]),
        ):
            given: dict[str, Any] = {"memory_id": asked, **filters}
            assert await history.count_history(**given) == len(expected)
            for order in ("oldest", "newest"):
                given |= {"order": order, "page_size": 700}
                found = [record async for record in history.query_history(**given)]
                assert found == (expected if order == "oldest" else expected[::-1])
        middle = begun + timedelta(seconds=2_499)
        report = await history.rollback(to=middle, memory_ids=names)
        assert report.restored == len(names)
        removed = await history.prune(older_than=middle, keep_last=2)
        assert removed.records == 2_499
        erased = await history.erase(memory_ids=names, reason="asked", vacuum=False)
        assert erased.records > len(names)
        assert not (await history.check()).problems


async def test_callers_are_woken_before_a_batch_looks_anything_up(
    tmp_path: Path, engines: Callable[[str], AsyncEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop works while the server does."""
    seen: list[str] = []
    monkeypatch.setattr(WakeupScheduler, "commit_has_begun", lambda _: seen.append("woken"))
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'h.db'}")

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement.split()[0])

    async with open_history(engine=engine) as history:
        await history.add_history("m", None, "a", "ADD")
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        seen.clear()
        await history.update_history("m", "b")
    assert seen.index("woken") < seen.index("SELECT") < seen.index("INSERT")
