"""Distributing the tables while others use them. No Citus is needed: they are locked first."""

import asyncio
from typing import Any

import asyncpg
import pytest

from async_history import StorageLocked, open_history
from async_history._postgres import citus
from tests.support.patience import LONG_S
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_schema,
    a_server,
    a_url,
)
from tests.support.postgres_server import PostgresServer, are_installed

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]


async def test_others_do_not_wait_while_it_waits_for_a_lock(
    server: PostgresServer, url: str, schema: str, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has_citus(_: Any) -> bool:
        return True

    async def is_distributed(*_: Any) -> bool:
        return False

    monkeypatch.setattr(citus, "has_citus", has_citus)
    monkeypatch.setattr(citus, "is_distributed", is_distributed)
    reader = await asyncpg.connect(server.url())
    try:
        async with asyncio.timeout(LONG_S), open_history(url) as history:
            await history.add_history("m", None, "x", "ADD")
            await reader.execute(f"BEGIN; LOCK TABLE {schema}.history IN ACCESS SHARE MODE")
            task = asyncio.ensure_future(citus.distribute(url, schema, switch_within_s=0.5))
            while not task.done():
                await history.add_history("n", None, "y", "ADD")
                assert await history.get_history("n")
            with pytest.raises(StorageLocked, match="distribute again"):
                await task
            index = "SELECT indisunique FROM pg_index WHERE indexrelid = to_regclass($1)"
            assert await admin.fetchval(index, f"{schema}.history_pkey")
    finally:
        await reader.close()
