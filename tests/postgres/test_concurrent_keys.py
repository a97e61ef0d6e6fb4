"""Changes of an encrypted history's keys while others write and vacuum: they end in time, and each
text stays readable."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from async_history import HistoryManager, StorageLocked, open_history
from async_history._postgres.key_statements import CLEAR_INDEX
from async_history._postgres.schema.indexes import make
from async_history.postgres import PostgresHistoryManager
from tests.support.encrypted_stores import until_turned_off
from tests.support.keys import ring
from tests.support.look_alikes import LOOK_SEALED
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
IS_TURNING_ON = "SELECT EXISTS (SELECT FROM {schema}.data_keys WHERE id = 'turning on')"
WAITS_OR_IS_ON = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE query LIKE '%pg_locks AS held%' AND pid <> pg_backend_pid() AND query_start > $1
) OR EXISTS (SELECT FROM {schema}.wrapping_keys)
    AND NOT EXISTS (SELECT FROM {schema}.data_keys WHERE id = 'turning on')
"""
"""Whether the open transactions were looked for since an instant, or encryption is on."""


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


async def add_look_alikes(history: PostgresHistoryManager, connection: Any) -> None:
    late = [{"memory_id": "m", "event": "ADD", "new_memory": text} for text in LOOK_SEALED]
    await history.add_in_transaction(connection, late)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("has_been_on", [False, True])
async def test_a_clear_record_on_its_way_while_another_manager_opens(
    url: str, connect: Any, *, isolation: str, has_been_on: bool
) -> None:
    """Its text looks encrypted. The search for such texts, as encryption is turned on, finds it."""
    admin, other_session, schema = await connect(), await connect(), schema_of(url)
    keys = ring("one") if has_been_on else None
    async with asyncio.timeout(LONG_S), PostgresHistoryManager(url, keys=keys) as clear:
        if has_been_on:
            await until_turned_off(clear)
        else:  # otherwise the opening waits for the transaction to create the index
            await make(admin, schema, CLEAR_INDEX)
        await other_session.execute(f"BEGIN ISOLATION LEVEL {isolation}; SELECT 1")
        await add_look_alikes(clear, other_session)
        if has_been_on:
            encrypting = asyncio.ensure_future(clear.encryption.encrypt())
            await until(admin, IS_TURNING_ON.format(schema=schema))
            encrypting.cancel()
            await asyncio.wait([encrypting])
        since = await admin.fetchval("SELECT clock_timestamp()")
        history = PostgresHistoryManager(url, keys=ring("one"), retry_timeout_s=10 * LONG_S)
        opening = asyncio.ensure_future(history.__aenter__())
        await until(admin, WAITS_OR_IS_ON.format(schema=schema), since)
        await other_session.execute("COMMIT")
        await opening
        assert not await admin.fetchval(IS_TURNING_ON.format(schema=schema))
        assert await texts(history) == list(LOOK_SEALED)
        await history.aclose()


async def test_a_clear_record_that_stays_on_its_way(url: str, connect: Any) -> None:
    """Managers open, and write, without completing the search; `encrypt` says why it can't."""
    admin, other_session, schema = await connect(), await connect(), schema_of(url)
    async with asyncio.timeout(LONG_S), PostgresHistoryManager(url) as clear:
        await make(admin, schema, CLEAR_INDEX)
        await other_session.execute("BEGIN")
        await add_look_alikes(clear, other_session)
        async with PostgresHistoryManager(url, keys=ring("one"), retry_timeout_s=3) as history:
            await write(history)
            with pytest.raises(StorageLocked, match=f"process {other_session.get_server_pid()}"):
                await history.encryption.encrypt()
            await other_session.execute("COMMIT")
            assert sorted(map(str, await texts(history))) == sorted([*LOOK_SEALED, "tea"])
        assert await admin.fetchval(IS_TURNING_ON.format(schema=schema))
    async with opened(url) as history:
        assert not await admin.fetchval(IS_TURNING_ON.format(schema=schema))
        assert sorted(map(str, await texts(history))) == sorted([*LOOK_SEALED, "tea"])
