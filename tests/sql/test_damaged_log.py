"""A log of operations that another program changed, through SQLAlchemy."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history import StorageCorrupt
from async_history.sql import SqlHistoryManager

pytestmark = pytest.mark.once

OF_ANY_DATABASE = [
    *[f"arguments = '{value}'" for value in ("{oops", "[1]", "7", "", "null", "[" * 3_000)],
    "arguments = NULL",
    f"begun_at = {1 << 62}",
]
OF_SQLITE = [
    *[f"arguments = {value}" for value in ("x'ff'", "7", "CAST(x'ff' AS TEXT)")],
    *[f"records = {value}" for value in ("'x'", "x'ff'", "1.5", "1e999")],
    *[f"{column} = x'ff'" for column in ("begun_at", "ended_at", "kind", "host", "id")],
    "begun_at = 'x'",
]


async def require_damaged(engine: AsyncEngine, damage: str) -> None:
    try:
        async with SqlHistoryManager(engine=engine) as history:
            await history.reset()
            async with engine.begin() as connection:
                await connection.exec_driver_sql(f"UPDATE async_history_operations SET {damage}")
            with pytest.raises(StorageCorrupt, match=r"log of operations is damaged|not UTF-8"):
                await history.operations()
    finally:
        await engine.dispose()


@pytest.mark.parametrize("damage", OF_ANY_DATABASE + OF_SQLITE)
async def test_a_damaged_log_has_the_error_of_other_damage(damage: str, tmp_path: Path) -> None:
    await require_damaged(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'h.db'}"), damage)


@pytest.mark.mariadb
@pytest.mark.parametrize("damage", OF_ANY_DATABASE)
async def test_a_damaged_log_in_mariadb(damage: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("new_database")()
    await require_damaged(create_async_engine(url), damage)
