"""Encrypting a history in PostgreSQL in place: during writes, and cut off at each message."""

import asyncio
import secrets
from typing import Any

import asyncpg
import pytest

from async_history import HistoryManager, check_history, open_history
from async_history._core.encryption.sealing import BEGIN
from async_history._core.encryption.stored_texts import TextLimits
from async_history.errors import KeyMissing, StorageRefused
from tests.subprocesses.proxy import Proxy
from tests.support.encrypted_cases import ANN
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.parts import Places, in_parts
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_proxy,
    a_server,
)
from tests.support.postgres_schemas import schema_of
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

WORD = "a word in clear"
DETAILS: Any = {"context": {"why": WORD}, "cause": {"run_id": WORD}}


def opened(url: str, *names: str, **options: Any) -> HistoryManager:
    return open_history(url, keys=ring(*(names or ("one",))), **options)


def changes(records: int, prefix: str = "") -> list[dict[str, Any]]:
    """Return records of memories with and without an owner and details."""
    return [
        {
            "id": f"{prefix}{n:04}",
            "memory_id": f"{prefix}m{n % 4}",
            "old_memory": WORD if n % 3 else None,
            "new_memory": WORD,
            "event": "UPDATE",
            **(DETAILS if n % 2 else {}),
            **({"owner": ANN} if n % 4 == 1 else {}),
        }
        for n in range(records)
    ]


async def fill(url: str, records: int) -> list[Any]:
    """Fill a history in clear; return its records."""
    async with open_history(url) as history:
        await history.batch_add_history(changes(records))
        await history.save_messages([{"role": "user", "content": WORD}] * 2, "user_id=ann")
        return await all_of(history)


async def all_of(history: HistoryManager, prefix: str = "") -> list[Any]:
    return [
        record async for record in history.query_history() if record.memory_id.startswith(prefix)
    ]


async def rows_of(raw: asyncpg.Connection) -> str:
    """Return all rows of the tables with texts, as text."""
    rows = [*await raw.fetch("SELECT * FROM history"), *await raw.fetch("SELECT * FROM messages")]
    return str([tuple(row) for row in rows])


async def test_everything_in_clear_is_encrypted_in_place(url: str, raw: asyncpg.Connection) -> None:
    records = await fill(url, 1_100)
    seen: list[tuple[int, int]] = []
    async with opened(url) as history:

        async def write() -> None:
            for number in range(20):
                await history.add_history("new", None, str(number), "ADD")

        encrypting = history.encryption.encrypt(on_progress=lambda *both: seen.append(both))
        report, _ = await asyncio.gather(encrypting, write())
        assert (report.records, report.messages, report.clear) == (1_100, 2, 0)
        assert [total for _, total in seen] == [1_100] * 3
        assert "VACUUM FULL" in report.remains[0]
        assert "WAL" in report.remains[1]
        assert WORD not in await rows_of(raw)
        assert [one for one in await all_of(history) if one.memory_id != "new"] == records
        assert await history.count_history(cause={"run_id": WORD}) == 550
        assert await history.count_history(cause={"run_id": "other"}) == 0
        messages = await history.get_last_messages("user_id=ann")
        assert [message.content for message in messages] == [WORD] * 2
        assert "clear-records" not in {one.code for one in (await history.stats()).warnings}
        again = await history.encryption.encrypt()
        assert (again.records, again.messages) == (0, 0)
        last = (await history.operations())[-1]
        assert (last.kind, last.state) == ("encrypt", "finished")
        # A cause is now found by its tokens: no other texts are read for it.
        assert await raw.fetchval("SELECT is_whole FROM encryption")
    vacuumed = "SELECT count(*) FROM pg_stat_user_tables WHERE schemaname = $1 AND vacuum_count > 0"
    assert await raw.fetchval(vacuumed, schema_of(url)) >= 2
    assert (await check_history(url, keys=ring("one"))).problems == ()


async def test_a_text_encrypted_in_place_has_its_owners_key(
    url: str, raw: asyncpg.Connection
) -> None:
    await fill(url, 8)
    async with opened(url) as history:
        await history.encryption.encrypt()
        kept = await raw.fetch("SELECT * FROM history WHERE memory_id = 'm1'")
        await history.erase(**ANN, reason="asked")
        await raw.execute(
            "UPDATE history SET new_memory = $1 WHERE id = $2", kept[0]["new_memory"], "0001"
        )
        with pytest.raises(KeyMissing, match="destroyed"):
            await history.get_history("m1")
        assert (await history.get_history("m2"))[0].new_memory == WORD


async def test_a_text_erased_meanwhile_is_not_restored(url: str) -> None:
    """Another manager erases while a transaction of the encryption holds the rows."""
    await fill(url, 40)
    few = TextLimits(rows=3)
    async with limited(opened(url), texts=few) as history, opened(url) as other:
        for _ in range(3):
            await history.add_history("m1", None, WORD, "ADD")
        await asyncio.gather(
            history.encryption.encrypt(), other.erase(**ANN, reason="asked", vacuum=False)
        )
        assert {one.new_memory for one in await history.get_history("m1")} == {None}
        assert {one.new_memory for one in await history.get_history("m2")} == {WORD}


async def test_a_trigger_that_keeps_rows_unchanged_raises(
    url: str, raw: asyncpg.Connection
) -> None:
    await fill(url, 4)
    await raw.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    await raw.execute(
        "CREATE TRIGGER keep BEFORE UPDATE ON history FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    async with opened(url) as history:
        with pytest.raises(StorageRefused, match="table history keeps rows"):
            await history.encryption.encrypt()
        assert (await history.operations())[-1].error == "StorageRefused"
        # The keys that the transaction made are gone with it, in memory too.
        await history.add_history("m1", None, "later", "ADD", owner=ANN)
        assert (await history.get_history("m1"))[-1].new_memory == "later"
    async with opened(url) as history:
        assert (await history.get_history("m1"))[-1].new_memory == "later"


@pytest.mark.faults
@pytest.mark.skipif(not are_installed(), reason="needs a server of its own")
@in_parts(251, nightly=24)
async def test_encrypting_cut_off_at_each_message_and_called_again(
    proxy: Proxy, server: PostgresServer, places: Places
) -> None:
    few = TextLimits(rows=5)
    schema = f"test_{secrets.token_hex(8)}"
    url, through = (with_query(one, schema=schema) for one in (server.url(), proxy.url))
    # Opened before encryption is turned on, it writes in clear.
    async with open_history(url) as clear, opened(url) as history:
        for number, place in enumerate(places, 1):
            name = f"{number} "
            await clear.batch_add_history(changes(12, name))
            await clear.save_messages([{"role": "user", "content": WORD}] * 2, name)
            records = await all_of(clear, name)
            async with limited(opened(through, pool_size=2), texts=few) as cut:
                proxy.cut_after(place, for_good=True)
                call: Any = asyncio.ensure_future(cut.encryption.encrypt())
                while proxy.cuts < number and not call.done():  # noqa: ASYNC110 - the proxy has no event for it
                    await asyncio.sleep(0.001)
                call.cancel()  # it would retry until its deadline
                await asyncio.wait([call])
                proxy.stop_cutting()
            assert await all_of(history, name) == records
            assert (await history.encryption.encrypt()).clear == 0
            assert await all_of(history, name) == records
            assert await history.count_history(cause={"run_id": WORD}) == 6 * number
            messages = await history.get_last_messages(name)
            assert [message.content for message in messages] == [WORD] * 2
            if proxy.cuts < number:
                break
        assert number > 1
        records = await all_of(history)
    connection = await asyncpg.connect(server.url(), server_settings={"search_path": schema})
    assert WORD not in await rows_of(connection)
    for place in places:
        async with limited(opened(through, pool_size=2), texts=few) as cut:
            await cut.encryption.encrypt()
            proxy.cuts = 0
            proxy.cut_after(place, for_good=True)
            call = asyncio.ensure_future(cut.encryption.decrypt())
            while not proxy.cuts and not call.done():  # noqa: ASYNC110 - the proxy has no event for it
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait([call])
            proxy.stop_cutting()
        if await connection.fetchval("SELECT count(*) FROM wrapping_keys"):
            async with opened(url) as history:
                assert await all_of(history) == records
                await history.encryption.decrypt()
        async with open_history(url) as history:
            assert await all_of(history) == records
            assert await history.count_history(cause={"run_id": WORD}) == len(records) // 2
        assert BEGIN not in await rows_of(connection)
        if not proxy.cuts:
            break
    assert place >= places.stride
    await connection.close()
