"""A history spread over a Citus cluster: only where `TEST_CITUS_URL` names its coordinator.

Neither the dev extra nor Debian has Citus. Without a cluster these are skipped.
"""

import asyncio
import os
import secrets
from collections.abc import Iterator
from datetime import timedelta

import pytest

from async_history import HistoryConflict, IdConflict, InvalidInput, open_history
from async_history._postgres.citus import distribute
from tests.support.postgres_server import drop_schemas, with_query

URL = os.environ.get("TEST_CITUS_URL", "")

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not URL, reason="set TEST_CITUS_URL to a cluster's coordinator"),
]


@pytest.fixture
def schema() -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    yield name
    drop_schemas(URL, [name])


async def test_a_distributed_history(schema: str) -> None:
    """Existing records are moved. Order, ids, conflicts, buffers and reset work as before."""
    url = with_query(URL, schema=schema)
    async with open_history(url) as history:
        before = await history.batch_add_history(
            [{"memory_id": f"m{n % 7}", "new_memory": str(n), "event": "UPDATE"} for n in range(50)]
        )
        await history.save_messages([{"role": "user", "content": "x"}] * 12, "s0")
    assert await distribute(URL, schema) == ["history", "owners", "messages"]
    assert await distribute(URL, schema) == []
    async with open_history(url) as history:
        assert [record async for record in history.query_history(page_size=20)] == before
        await asyncio.gather(
            *(history.add_history(f"m{n % 50}", None, str(n), "UPDATE") for n in range(1_000))
        )
        for memory in range(7, 50):
            texts = [record.new_memory for record in await history.get_history(f"m{memory}")]
            assert texts == [str(n) for n in range(memory, 1_000, 50)]
        named = {"memory_id": "m", "event": "ADD", "id": "one"}
        (first,) = await history.batch_add_history([named])
        assert await history.batch_add_history([named]) == [first]
        with pytest.raises(IdConflict):
            await history.batch_add_history([named | {"memory_id": "another"}])
        update = {"memory_id": "m", "event": "UPDATE"}
        await history.batch_add_history([update], if_latest=first)
        with pytest.raises(HistoryConflict):
            await history.batch_add_history([update], if_latest=first)
        await asyncio.gather(
            *(
                history.save_messages([{"role": "user", "content": f"{n}"}] * 3, f"s{n % 5}")
                for n in range(30)
            )
        )
        assert [len(await history.get_last_messages(f"s{n}")) for n in range(5)] == [10] * 5
        with pytest.raises(InvalidInput, match="can't be followed"):
            history.follow()
        with pytest.raises(InvalidInput, match="can't be followed"):
            await history.end_cursor()
        assert (await history.prune(older_than=timedelta(0))).done
        assert [len(await history.get_history(f"m{n}")) for n in range(50)] == [1] * 50
        await history.erase(memory_ids=["m7"], reason="a test")
        assert [record.new_memory for record in await history.get_history("m7")] == [None]
        report = await history.erase(memory_ids=["m8"], reason="a test", vacuum="full")
        assert not [sentence for sentence in report.remains if "not vacuumed" in sentence]
        await history.reset()
        assert [record async for record in history.query_history()] == []
