"""A user's own columns of the tables, whatever their names, change nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

import async_history._postgres
from async_history import open_history
from tests.support.all_calls import follow, read, remove, take_back, write, write_many_details
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_NAMES: Final = (r"\bAS ([a-z_]+)", r"([a-z_]+) AS \(", r"[a-z_]+ \(([a-z_]+(?:, [a-z_]+)*)\)")
"""Where a statement gives a name: to a column, a table, a CTE, the columns of one."""


def names_in_statements() -> set[str]:
    """Return the names that our statements may give to something."""
    (folder,) = async_history._postgres.__path__
    texts = [file.read_text(encoding="utf-8") for file in Path(folder).rglob("*.py")]
    found = {
        name
        for text in texts
        for pattern in _NAMES
        for names in re.findall(pattern, text)
        for name in names.split(", ")
    }
    assert {"number", "head", "tail", "is_wanted", "then_id"} <= found
    return found


async def add_columns(connection: Any, schema: str) -> None:
    for table in ("history", "messages"):
        there = (
            f"SELECT attname::text FROM pg_attribute WHERE attrelid = '{schema}.{table}'::regclass"
        )
        taken = {name for (name,) in await connection.fetch(there)}
        columns = ", ".join(
            f'ADD COLUMN "{name}" text' for name in sorted(names_in_statements() - taken)
        )
        await connection.execute(f"ALTER TABLE {schema}.{table} {columns}")


async def test_columns_with_the_names_that_statements_use(
    url: str, connect: Callable[[], Any]
) -> None:
    async with open_history(url):
        connection: asyncpg.Connection = await connect()
        await add_columns(connection, f'"{schema_of(url)}"')
    async with open_history(url) as history:
        for calls in (write, write_many_details, read, follow, take_back, remove):
            await calls(history)
