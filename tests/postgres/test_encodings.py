"""Encodings of the database and of sessions."""

from collections.abc import AsyncIterator, Callable
from secrets import token_hex
from typing import Any, Final

import asyncpg
import pytest

from async_history import MigrationError, open_history
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_CREATE: Final = """
CREATE DATABASE {} TEMPLATE template0 ENCODING '{}' LC_COLLATE 'C' LC_CTYPE 'C'
"""


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Callable[[str], Any]]:
    """A function that makes a database in an encoding, and returns its URL."""
    owner = await asyncpg.connect(postgres)
    made: list[str] = []

    async def database(encoding: str) -> str:
        made.append(f"test_{token_hex(8)}")
        await owner.execute(_CREATE.format(made[-1], encoding))
        server, _, query = postgres.partition("?")
        return f"{server.rpartition('/')[0]}/{made[-1]}?{query}"

    yield database
    for name in made:
        await owner.execute(f"DROP DATABASE {name}")
    await owner.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
async def test_a_database_that_can_not_hold_all_texts_is_refused(
    database: Callable[[str], Any], encoding: str
) -> None:
    """Otherwise a record whose id it lacks would make all records of its batch fail."""
    url = await database(encoding)
    for migrates in (True, False):
        with pytest.raises(MigrationError, match=f"encoding is {encoding}"):
            await open_history(url, migrate=migrates)
    async with asyncpg.create_pool(url, min_size=2, max_size=2) as pool:
        with pytest.raises(MigrationError, match=f"encoding is {encoding}"):
            await PostgresHistoryManager(pool=pool)


async def test_a_database_that_keeps_all_bytes(database: Callable[[str], Any]) -> None:
    async with open_history(await database("SQL_ASCII")) as history:
        text = "tea 茶 \N{TEACUP WITHOUT HANDLE}"
        await history.add_history(text, None, text, "ADD", actor_id=text, context={text: text})
        (record,) = await history.get_history(text)
        assert (record.new_memory, record.context) == (text, {text: text})
        assert await history.count_history(text=text, actor_id=text) == 1
        for calls in (write, read, follow, take_back, remove):
            await calls(history)
