"""A server that has statistics of a table only once a test, or the library, analyzes it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from tests.support.postgres_server import PostgresServer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of the server."""
    server = PostgresServer(fsync="off", autovacuum="off", jit="off", shared_buffers="128MB")
    yield server.create().start().url()
    server.remove()


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Any]:
    """A connection of the owner of the tables."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()
