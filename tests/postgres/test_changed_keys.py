"""Replacing the keys of a history in PostgreSQL: cut off at each message, and called again."""

import random
from itertools import count
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from async_history._core.stored_texts import TextLimits
from tests.subprocesses.proxy import Proxy
from tests.support.encrypted_stores import all_of, contents, fill, key_ids, stopped_by_a_cut
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are imported to be asked for
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
    assert await all_of(history) == records
    assert await contents(history) == ["hello"] * 2
    assert await history.count_history(cause={"run_id": "r"}) == 6


@pytest.mark.parametrize("call", ["rotate_keys", "replace_data_keys"])
async def test_cut_off_at_each_message_and_called_again(
    url: str, schema: str, admin: Any, proxy: Proxy, request: pytest.FixtureRequest, call: str
) -> None:
    step = 1 if request.config.getoption("--nightly") else 19
    places = count(random.randrange(step), step)  # noqa: S311 - a test's dice
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
    assert place > 19
