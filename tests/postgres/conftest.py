"""What several tests of PostgreSQL need."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest


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
