"""Fixtures for the tests of PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from tests.support.postgres_schemas import schema_of


@pytest.fixture
async def connect(postgres: str) -> AsyncIterator[Callable[[], Any]]:
    """A function that connects as the owner of the tables."""
    connections: list[Any] = []

    async def connected() -> Any:
        connections.append(await asyncpg.connect(postgres))
        return connections[-1]

    yield connected
    for connection in connections:
        connection.terminate()


@pytest.fixture
def url(new_schema: Callable[[], str]) -> str:
    """The URL of an unused schema."""
    return new_schema()


@pytest.fixture
async def raw(postgres: str, url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the history's schema as its search path."""
    schema = schema_of(url)
    connection = await asyncpg.connect(postgres, server_settings={"search_path": f'"{schema}"'})
    yield connection
    await connection.close()
