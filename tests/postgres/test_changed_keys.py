"""Replacing and destroying keys in PostgreSQL: cut off at each message, and called again."""

import asyncio
from functools import partial
from typing import Any

import pytest

from async_history import HistoryManager, Owner, open_history
from async_history._core.encryption.key_statements import owner_digest
from async_history._core.encryption.stored_texts import TextLimits
from tests.subprocesses.proxy import Proxy
from tests.support.encrypted_stores import (
    FEW_ERASED,
    all_of,
    contents,
    fill,
    key_ids,
    record_for,
    require_forgotten,
    require_readable,
    stopped_by_a_cut,
    until_turned_off,
)
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.look_alikes import fill_with_look_alikes, turn_on_and_off
from tests.support.parts import Places, in_parts
from tests.support.patience import LONG_S
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_proxy,
    a_schema,
    a_server,
    a_url,
)
from tests.support.postgres_server import are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.faults,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]


async def check(history: HistoryManager, records: list[Any]) -> None:
    assert [one for one in await all_of(history) if len(one.id) == 2] == records
    assert await contents(history) == ["hello"] * 2
    assert await history.count_history(cause={"run_id": "r"}) == 6


@in_parts(79, nightly=2)
@pytest.mark.parametrize("call", ["rotate_keys", "replace_data_keys"])
async def test_replacing_keys_cut_off_at_each_message_and_called_again(
    url: str, schema: str, admin: Any, proxy: Proxy, call: str, places: Places
) -> None:
    through = with_query(proxy.url, schema=schema)
    async with open_history(url, keys=ring("0")) as history:
        records = await fill(history)
    for number, place in enumerate(places, 1):
        names = (str(number), str(number - 1)) if call == "rotate_keys" else ("0",)
        opened = open_history(through, pool_size=2, keys=ring(*names))
        async with limited(opened, texts=TextLimits(rows=5)) as cut:
            before = proxy.cuts
            proxy.cut_after(place, for_good=True)
            await stopped_by_a_cut(getattr(cut.encryption, call), proxy, before)
            proxy.stop_cutting()
        async with open_history(url, keys=ring(*names)) as history:
            await check(history, records)
            await getattr(history.encryption, call)()
        async with open_history(url, keys=ring(names[0])) as history:
            await check(history, records)
            found = await key_ids(history)
            assert found["used"] == found["there"]
        for table, there in (("wrapping_keys", 1), ("data_keys", 3)):
            assert await admin.fetchval(f'SELECT count(*) FROM "{schema}".{table}') == there
        if proxy.cuts == before:
            break
    assert place >= places.stride


@in_parts(199, nightly=8)
async def test_an_erasure_of_an_owner_cut_off_at_each_message_and_called_again(
    url: str, schema: str, admin: Any, proxy: Proxy, places: Places
) -> None:
    through = with_query(proxy.url, schema=schema)

    async def keys_of(name: str) -> int:
        count = f'SELECT count(*) FROM "{schema}".data_keys WHERE owner = $1'
        found: int = await admin.fetchval(count, owner_digest(Owner(user_id=name)))
        return found

    async with open_history(url, keys=ring("0")) as history:
        records = await fill(history)
        for number, place in enumerate(places):
            name = f"owner {number}"
            await record_for(history, name)
            assert await keys_of(name) == 1
            opened = open_history(through, pool_size=2, keys=ring("0"))
            async with limited(opened, erase=FEW_ERASED) as cut:
                before = proxy.cuts
                proxy.cut_after(place, for_good=True)
                erase = partial(cut.erase, user_id=name, reason="asked", vacuum=False)
                await stopped_by_a_cut(erase, proxy, before)
                proxy.stop_cutting()
            async with open_history(url, keys=ring("0")) as fresh:  # it has no key in memory
                await require_readable(fresh, name)
            await history.erase(user_id=name, reason="asked", vacuum=False)
            await require_forgotten(history, name)
            assert await keys_of(name) == 0
            await check(history, records)
            if proxy.cuts == before:
                break
    assert place >= places.stride


async def test_a_record_in_clear_that_arrives_after_encryption_was_turned_on_is_encrypted(
    url: str, schema: str, proxy: Proxy
) -> None:
    """Encryption was off when it was sent. The search for texts like it has ended."""
    text = "ahs1:on its way"
    through = with_query(proxy.url, schema=schema)
    async with open_history(url, keys=ring("0")) as history:
        await fill(history)
        await until_turned_off(history)
        async with open_history(through, keys=ring("0")) as late:
            for _ in range(4):  # so that the held one is a statement that is prepared
                await late.add_history("m", None, "in clear", "ADD")
            held = proxy.hold(text.encode())
            writing = asyncio.ensure_future(late.add_history("m", None, text, "ADD"))
            await asyncio.wait_for(held.came.wait(), LONG_S)
            await history.encryption.encrypt()
            held.release()
            await writing
        found = [one.new_memory for one in await history.get_history("m")]
        assert found == [*["in clear"] * 4, text]
        assert (await history.encryption.encrypt()).clear == 0


@in_parts(1201, nightly=48)
async def test_texts_that_look_encrypted_stay_when_cut_off_at_each_message(
    url: str, schema: str, proxy: Proxy, places: Places
) -> None:
    """From the first opening with keys to the end of the decryption."""
    through = with_query(proxy.url, schema=schema)

    def open_with_keys(url: str) -> HistoryManager:
        return limited(open_history(url, pool_size=2, keys=ring("0")), texts=TextLimits(rows=5))

    async with open_history(url) as history:
        await fill_with_look_alikes(history)
    for place in places:
        before = proxy.cuts
        proxy.cut_after(place)
        opened = partial(open_with_keys, through), partial(open_history, through)
        await stopped_by_a_cut(partial(turn_on_and_off, *opened), proxy, before)
        proxy.stop_cutting()
        await turn_on_and_off(partial(open_with_keys, url), partial(open_history, url))
        if proxy.cuts == before:
            break
    assert place >= places.stride
