"""User's pools whose `init` sets codecs for types of the server."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from async_history import InvalidInput, open_history
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write, write_details
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]

USED = ("bool", "bytea", "int4", "text", "timestamptz")
UNUSED = (
    *("date", "float8", "int2", "interval", "json", "jsonb", "name", "numeric", "oid"),
    *("timestamp", "uuid", "varchar", "xid", "xid8"),
)


class Read(str):
    """The value that a user's codec returns."""


def setting(*names: str) -> Callable[[Any], Any]:
    """Return a pool's `init` that reads and writes types with another codec."""

    async def init(connection: Any) -> None:
        for name in names:
            await connection.set_type_codec(
                name, encoder=Read, decoder=Read, schema="pg_catalog", format="text"
            )

    return init


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in USED), ("int8", {"ledger": True})]
)
async def test_codecs_for_types_that_a_history_reads_are_refused(
    name: str, options: dict[str, Any], new_schema: Callable[[], str], postgres: str
) -> None:
    schema = schema_of(new_schema())
    async with asyncpg.create_pool(postgres, init=setting(name), min_size=2, max_size=2) as pool:
        with pytest.raises(InvalidInput, match=rf"codecs of its own .* for {name}, so"):
            await PostgresHistoryManager(pool=pool, schema=schema, **options)
        assert not await pool.fetch("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema)


async def test_a_codec_for_int8_is_refused_if_the_history_has_a_ledger(
    new_schema: Callable[[], str], postgres: str
) -> None:
    url = new_schema()
    async with open_history(url, ledger=True):
        """It makes the ledger."""
    async with asyncpg.create_pool(postgres, init=setting("int8"), min_size=2, max_size=2) as pool:
        with pytest.raises(InvalidInput, match="for int8, so"):
            await PostgresHistoryManager(pool=pool, schema=schema_of(url))


@pytest.mark.parametrize(
    ("names", "has_ledger"), [(UNUSED, True), ((*UNUSED, "int8"), False)], ids=["ledger", "int8"]
)
async def test_codecs_for_other_types_make_no_difference(
    names: tuple[str, ...], has_ledger: bool, new_schema: Callable[[], str], postgres: str
) -> None:
    async with (
        asyncpg.create_pool(postgres, init=setting(*names), min_size=2, max_size=4) as pool,
        PostgresHistoryManager(
            pool=pool, schema=schema_of(new_schema()), ledger=has_ledger
        ) as history,
    ):
        await write(history)
        async with pool.acquire() as connection, connection.transaction():
            await history.add_in_transaction(connection, [{"memory_id": "t", "event": "ADD"}])
        await read(history)
        await follow(history)
        await take_back(history)
        await remove(history)
        await write_details(history)
        records = await history.count_history()
        await history.reset()
        (reset,) = await history.operations(limit=1)
        assert reset.records == records
