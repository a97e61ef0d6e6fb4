"""Changes of an encrypted history's keys while others write and vacuum: they end in time, and each
text stays readable."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from tests.support.keys import ring
from tests.support.patience import LONG_S
from tests.support.postgres_faults import until_more_wait
from tests.support.postgres_gate import shut
from tests.support.postgres_schemas import schema_of, until

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]

CALLS = ("replace_data_keys", "decrypt")

WAITS_OR_ENDED = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE query LIKE '%pg_locks AS held%' AND pid <> pg_backend_pid()
) OR NOT EXISTS (SELECT FROM {schema}.data_keys WHERE id = $1)
"""
"""Whether the open transactions were looked for, or the old key is gone."""


@pytest.fixture
def url(new_schema: Callable[[], str]) -> str:
    return new_schema()


def opened(url: str) -> HistoryManager:
    return open_history(url, keys=ring("one"))


async def write(*managers: HistoryManager) -> None:
    async with asyncio.timeout(LONG_S):
        for history in managers:
            await history.add_history("m", None, "tea", "UPDATE")


async def texts(history: HistoryManager) -> list[str | None]:
    return [record.new_memory async for record in history.query_history()]


@pytest.mark.parametrize("call", CALLS)
async def test_during_a_vacuum(url: str, connect: Any, call: str) -> None:
    schema, vacuuming = schema_of(url), await connect()
    async with opened(url) as history, opened(url) as other:
        await write(history, other)
        tables = f"{schema}.history, {schema}.messages"
        await vacuuming.execute(f"BEGIN; LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE")
        changing = asyncio.ensure_future(getattr(history.encryption, call)())
        keys = f"FROM {schema}.data_keys WHERE owner = ''"
        async with asyncio.timeout(LONG_S):
            if call == "replace_data_keys":
                await changing
            else:  # in the end it drops an index
                await until(await connect(), f"SELECT NOT EXISTS (SELECT {keys})")
            await write(history, other)
            await vacuuming.execute("COMMIT")
            await changing
        assert await texts(history) == ["tea"] * 4


@pytest.mark.parametrize("call", CALLS)
async def test_a_statement_that_began_before(url: str, connect: Any, call: str) -> None:
    """Its record is sealed under a key that is retired while it runs."""
    admin, schema = await connect(), schema_of(url)
    async with opened(url) as history, opened(url) as other:
        await write(history, other)
        key = await admin.fetchval(f"SELECT id FROM {schema}.data_keys WHERE owner = ''")
        async with shut(admin, schema):
            late = asyncio.ensure_future(
                other.add_history("m", None, "late tea", "UPDATE", role="late")
            )
            await until_more_wait(admin)
            changing = asyncio.ensure_future(getattr(history.encryption, call)())
            await until(admin, WAITS_OR_ENDED.format(schema=schema), key)
            await write(history)
            assert not changing.done()
        async with asyncio.timeout(LONG_S):
            await late
            await changing
    async with open_history(url) if call == "decrypt" else opened(url) as history:
        assert sorted(map(str, await texts(history))) == ["late tea", *["tea"] * 3]
