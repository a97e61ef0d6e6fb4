"""Errors of drivers and of SQLAlchemy, which become causes, show no recorded text."""

import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history import HistoryManager, StorageCorrupt, StorageRefused, open_history
from async_history.sql import SqlHistoryManager

pytestmark = pytest.mark.once

RECORDED = "a recorded text"

CALLS: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "get": lambda history: history.get_history("m"),
    "update": lambda history: history.update_history("m", "tea"),
    "erase": lambda history: history.erase(memory_ids=["m"], reason="test"),
}


async def execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("call", CALLS)
async def test_a_text_that_is_not_utf8_is_called_damaged(call: str, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    async with open_history(engine=engine) as history:
        await history.add_history("m", None, RECORDED, "ADD")
        await execute(
            engine,
            "UPDATE async_history_records SET new_memory = CAST(x'ff' || new_memory AS TEXT)",
        )
        with pytest.raises(StorageCorrupt, match="not UTF-8") as caught:
            await CALLS[call](history)
        assert RECORDED not in shown(caught.value)
    await engine.dispose()


@pytest.mark.mariadb
async def test_an_engine_of_the_library_shows_no_parameters(
    new_database: Callable[[], URL],
) -> None:
    url = new_database()
    engine = create_async_engine(url)
    async with SqlHistoryManager(url) as history:
        await execute(
            engine,
            "CREATE TRIGGER refuse BEFORE INSERT ON async_history_records "
            "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'",
        )
        with pytest.raises(StorageRefused) as caught:
            await history.add_history("m", None, RECORDED, "ADD")
        assert "INSERT INTO" in shown(caught.value), "SQLAlchemy's error is a cause"
        assert RECORDED not in shown(caught.value)
    await engine.dispose()
