"""A schema of PostgreSQL, and its owner."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from tests.support.postgres_schemas import schema_of


@pytest.fixture
def url(new_schema: Callable[[], str]) -> str:
    return new_schema()


@pytest.fixture
async def owner(postgres: str, url: str) -> AsyncIterator[Any]:
    """The tables' owner, who finds them by name."""
    connection = await asyncpg.connect(
        postgres, server_settings={"search_path": f'"{schema_of(url)}"'}
    )
    yield connection
    await connection.close()
