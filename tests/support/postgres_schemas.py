"""Schemas on PostgreSQL: their names, earlier versions, and waiting for other sessions."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from async_history._postgres.schema import migrations
from tests.support.patience import LONG_S


def schema_of(url: str) -> str:
    """Return the schema that a URL names."""
    return parse_qs(urlsplit(url).query)["schema"][0]


@contextmanager
def version(number: int) -> Iterator[None]:
    """Make a schema as a program of an earlier version has it."""
    with pytest.MonkeyPatch.context() as patched:
        older = {n: text for n, text in migrations.SCRIPTS.items() if n <= number}
        patched.setattr(migrations, "SCRIPTS", older)
        patched.setattr(migrations, "VERSION", number)
        yield


async def until(connection: Any, sql: str, *arguments: Any) -> Any:
    """Wait until a query returns a value."""
    async with asyncio.timeout(LONG_S):
        while True:
            if found := await connection.fetchval(sql, *arguments):
                return found
            await asyncio.sleep(0.01)
