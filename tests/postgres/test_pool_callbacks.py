"""User's pools whose own functions fail."""

import logging
from typing import Any

import asyncpg
import pytest

from async_history import StorageError
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]


class Failing:
    """A function for a pool, which fails when it is told to."""

    def __init__(self) -> None:
        self.fails = False

    async def __call__(self, *_: Any) -> None:
        if self.fails:
            raise ValueError("no tenant")


@pytest.mark.parametrize("name", ["init", "setup"])
async def test_no_connection_is_a_typed_error(url: str, postgres: str, name: str) -> None:
    """At opening, for reads and for writes. Later calls work again."""
    function = Failing()
    options: dict[str, Any] = {name: function}
    async with asyncpg.create_pool(postgres, min_size=0, max_size=4, **options) as pool:
        function.fails = True
        with pytest.raises(StorageError, match=f"{name} .*no tenant"):
            await PostgresHistoryManager(pool=pool, schema=schema_of(url))
        function.fails = False
        async with PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history:
            function.fails = True
            await pool.expire_connections()
            for call in (
                lambda: history.add_history("m", None, "tea", "ADD"),
                lambda: history.get_history("m"),
                lambda: history.undo(cause={"request_id": "1"}),
                lambda: history.end_cursor(),
                lambda: anext(history.follow()),
            ):
                with pytest.raises(StorageError, match="no tenant"):
                    await call()
            assert (await history.stats()).warnings
            function.fails = False
            await history.add_history("m", None, "mate", "UPDATE")
            assert [one.new_memory for one in await history.get_history("m")] == ["mate"]


async def test_a_reset_that_fails_changes_no_result(
    url: str, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool has closed the connection. It is logged."""
    reset = Failing()
    async with asyncpg.create_pool(postgres, min_size=0, max_size=4, reset=reset) as pool:
        reset.fails = True
        with caplog.at_level(logging.WARNING, "async_history"):
            async with PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history:
                await history.add_history("m", None, "tea", "ADD")
                assert len(await history.get_history("m")) == 1
                await history.undo(cause={"request_id": "1"})
        assert "reset failed" in caplog.text


@pytest.mark.parametrize(
    ("names", "statement"),
    [(("setup",), "DISCARD ALL"), (("init", "reset"), "DEALLOCATE ALL")],
    ids=["discarded", "deallocated"],
)
async def test_statements_that_are_dropped_are_prepared_again(
    url: str, postgres: str, names: tuple[str, ...], statement: str
) -> None:
    """The driver still takes them for prepared."""

    async def drop(connection: Any) -> None:
        await connection.execute(statement)

    options: dict[str, Any] = dict.fromkeys(names, drop)
    async with (
        asyncpg.create_pool(postgres, min_size=0, max_size=4, **options) as pool,
        PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history,
    ):
        await write(history)
        await follow(history)
        await read(history)
        await take_back(history)
        await remove(history)
        async with pool.acquire() as connection:
            for number in range(2):
                async with connection.transaction():
                    new = {"memory_id": "last", "new_memory": str(number), "event": "UPDATE"}
                    await history.add_in_transaction(connection, [new])
                await drop(connection)
        assert [one.new_memory for one in await history.get_history("last")] == ["0", "1"]
