"""Rows that are lost or changed in tables by which queries find records: `check` names them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history import HistoryManager
from async_history._sql.tables import TABLES
from async_history.encryption import KeyRing
from async_history.sql import SqlHistoryManager
from tests.support.keys import ring

pytestmark = pytest.mark.once

ANN = {"user_id": "ann", "app_id": "shop"}
LONG = "a long name " * 30

DAMAGE = {
    "a mark is lost": "DELETE FROM async_history_marks WHERE mark = (SELECT * FROM"
    " (SELECT MIN(mark) FROM async_history_marks) AS one)",
    "a mark is changed": "UPDATE async_history_marks SET mark = mark + 1 WHERE seq = 2",
    "a mark is of another record": "UPDATE async_history_marks SET seq = 4000 WHERE seq = 1",
    "all marks are lost": "DELETE FROM async_history_marks",
    "a mark too many": "INSERT INTO async_history_marks VALUES (1, 1)",
    "a span is lost": "DELETE FROM async_history_spans",
    "a span begins later": "UPDATE async_history_spans SET first_time = last_time",
    "a span ends earlier": "UPDATE async_history_spans SET last_time = first_time",
    "a span has no times": "UPDATE async_history_spans SET first_time = NULL, last_time = NULL",
    "a span has no events": "UPDATE async_history_spans SET events = 0",
    "an owner is lost": "DELETE FROM async_history_owners WHERE memory_id = 'm1'",
    "an owner is changed": "UPDATE async_history_owners SET user_id = 'bob' WHERE memory_id = 'm1'",
    "the last message is unknown": "UPDATE async_history_state SET last_message = 0",
    "the newest number is unknown": "UPDATE async_history_state SET last = 0",
    "owners are unknown": "UPDATE async_history_state SET version = 0",
    "erasures are unknown": "UPDATE async_history_state SET erased_at = NULL",
    "erasures are older": "UPDATE async_history_state SET erased_at = 1",
}


async def fill(history: HistoryManager) -> None:
    for number in range(3):
        await history.add_history(
            f"m{number}",
            None,
            "tea",
            "ADD",
            actor_id="actor",
            role="user",
            owner=ANN,
            cause={"run_id": "r", "request_id": str(number)},
        )
    await history.add_history(LONG, None, "tea", "ADD", actor_id=LONG, owner={"user_id": LONG})
    await history.add_history("m1", "tea", "coffee", "UPDATE")
    await history.save_messages([{"role": "user", "content": "x"}], "scope")
    await history.erase(memory_ids=["erased"], reason="asked")


async def problems(history: HistoryManager) -> tuple[str, ...]:
    return (await history.check()).problems


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
async def engine(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[AsyncEngine]:
    url: Any = f"sqlite+aiosqlite:///{tmp_path / 'history.db'}"
    if request.param == "mariadb":
        url = request.getfixturevalue("new_database")()
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_each_damage_is_named(engine: AsyncEngine) -> None:
    """What it says mends it, if it gives a statement that does."""
    tables = (TABLES.marks, TABLES.spans, TABLES.owners, TABLES.state)
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        assert await problems(history) == ()
        async with engine.connect() as connection:
            kept = [(await connection.execute(select(table))).all() for table in tables]
        unseen = []
        for damage, statement in DAMAGE.items():
            await run(engine, statement)
            if not await problems(history):
                unseen.append(damage)
            async with engine.begin() as connection:
                for table, rows in zip(tables, kept, strict=True):
                    await connection.execute(delete(table))
                    await connection.execute(insert(table), [row._asdict() for row in rows])
        assert unseen == []
        assert await problems(history) == ()


@pytest.mark.parametrize(
    "damage",
    ["a mark is lost", "a mark is of another record", "all marks are lost", "a span is lost"],
)
async def test_the_statements_that_are_named_mend_it(engine: AsyncEngine, damage: str) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        await run(engine, DAMAGE[damage])
        for _ in range(20):
            found = await problems(history)
            if not found:
                break
            sentence = found[0].removesuffix(".").removesuffix(", and check again")
            begin = min(at for at in map(sentence.find, ("INSERT", "DELETE")) if at >= 0)
            await run(engine, *sentence[begin:].split("; "))
        assert await problems(history) == ()
        assert await history.count_history(user_id="ann") == 4
        assert len([one async for one in history.query_history(event="ADD")]) == 4


@pytest.mark.parametrize("keys", [None, ring("one")], ids=["in clear", "encrypted"])
async def test_what_changes_records_leaves_nothing_wrong(
    engine: AsyncEngine, keys: KeyRing | None
) -> None:
    async with SqlHistoryManager(engine=engine, keys=keys) as history:
        await fill(history)
        assert await problems(history) == ()
        await history.rollback(to=datetime.now(UTC) - timedelta(days=1), memory_ids=["m0"])
        await history.add_history("m0", None, "milk", "ADD", cause={"run_id": "s"})
        assert await problems(history) == ()
        await history.erase(actor_id="actor", reason="asked")
        await history.erase(memory_ids=["m2", LONG], reason="asked")
        assert await problems(history) == ()
        await history.prune(older_than=timedelta(0), keep_last=1)
        assert await problems(history) == ()
        if keys is not None:
            await history.encryption.replace_data_keys()
            assert await problems(history) == ()
            await history.encryption.decrypt()
            assert await problems(history) == ()
        await history.erase(user_id="ann", reason="asked")
        assert await problems(history) == ()
        await history.reset()
        assert await problems(history) == ()
