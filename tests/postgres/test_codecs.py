"""User's pools whose `init` sets a codec, for each type of the server in turn."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from async_history import InvalidInput
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]

USED = ("bool", "bytea", "int4", "int8", "text", "timestamptz")
UNUSED = (
    *("date", "float8", "int2", "interval", "json", "jsonb", "name", "numeric", "oid"),
    *("timestamp", "uuid", "varchar", "xid", "xid8"),
)


class Read(str):
    """The value that a user's codec returns."""


def setting(name: str) -> Callable[[Any], Any]:
    """Return a pool's `init` that reads and writes a type with another codec."""

    async def init(connection: Any) -> None:
        await connection.set_type_codec(
            name, encoder=Read, decoder=Read, schema="pg_catalog", format="text"
        )

    return init


@pytest.mark.parametrize("name", USED)
async def test_codecs_for_types_that_a_history_reads_are_refused(
    name: str, new_schema: Callable[[], str], postgres: str
) -> None:
    schema = schema_of(new_schema())
    async with asyncpg.create_pool(postgres, init=setting(name), min_size=2, max_size=2) as pool:
        with pytest.raises(InvalidInput, match=rf"codecs of its own .* for {name}, so"):
            await PostgresHistoryManager(pool=pool, schema=schema)
        assert not await pool.fetch("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema)


@pytest.mark.parametrize("name", UNUSED)
async def test_codecs_for_other_types_make_no_difference(
    name: str, new_schema: Callable[[], str], postgres: str
) -> None:
    async with (
        asyncpg.create_pool(postgres, init=setting(name), min_size=2, max_size=4) as pool,
        PostgresHistoryManager(pool=pool, schema=schema_of(new_schema()), ledger=True) as history,
    ):
        await write(history)
        async with pool.acquire() as connection, connection.transaction():
            await history.add_in_transaction(connection, [{"memory_id": "t", "event": "ADD"}])
        await read(history)
        await follow(history)
        await take_back(history)
        await remove(history)
        await history.reset()
