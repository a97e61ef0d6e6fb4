"""Publications of the tables, and what logical replication and partial restores leave."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import asyncpg
import pytest

from async_history import CursorGone, MigrationError, open_history
from async_history.encryption import KeyRing
from tests.support.all_calls import remove, take_back, write, write_details
from tests.support.patience import LONG_S
from tests.support.postgres_schemas import schema_of, until, version
from tests.support.postgres_server import PostgresServer

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = $1::regnamespace"
)


@pytest.fixture
async def publish(raw: asyncpg.Connection, url: str) -> AsyncIterator[Callable[[], Any]]:
    """A function that publishes all tables of the test's schema, as `FOR ALL TABLES` would."""
    name = f"all_{schema_of(url)}"

    async def publish() -> None:
        tables = [table for (table,) in await raw.fetch(_TABLES, schema_of(url))]
        await raw.execute(f"CREATE PUBLICATION {name} FOR TABLE {', '.join(tables)}")

    yield publish
    await raw.execute(f"DROP PUBLICATION IF EXISTS {name}")


async def test_every_call_works_while_all_tables_are_published(
    url: str, publish: Callable[[], Any]
) -> None:
    """Logical replication must be able to identify each row that is changed or removed."""
    options: dict[str, Any] = {"keys": KeyRing({"a": b"k" * 32}), "ledger": True}
    async with open_history(url, **options) as history:
        await publish()
        await write(history)
        await take_back(history)
        await history.encryption.rotate_keys()
        await history.encryption.replace_data_keys()
        await remove(history)
        assert not (await history.ledger.verify()).faults
        await history.reset()
        await write(history)


async def test_published_tables_of_an_earlier_version_are_migrated(
    url: str, publish: Callable[[], Any]
) -> None:
    with version(11):
        async with open_history(url) as history:
            await history.add_history("m", None, "tea", "ADD")
    await publish()
    async with open_history(url) as history:
        await history.update_history("m", "mate", owner={"user_id": "ann"})


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(wal_level="logical", fsync="off").create().start()
    yield server
    server.remove()


async def test_writing_on_a_subscriber(server: PostgresServer) -> None:
    """After the steps of the guide, with keys and a ledger."""
    options: dict[str, Any] = {"keys": KeyRing({"a": b"k" * 32}), "ledger": True}
    publisher = await asyncpg.connect(server.url())
    await publisher.execute("CREATE DATABASE subscriber")
    subscriber = await asyncpg.connect(server.url("subscriber"))
    async with open_history(server.url("subscriber"), ledger=True):
        """It creates the tables."""
    async with open_history(server.url(), **options) as history:
        await history.add_history("m", None, "tea", "ADD", actor_id="ann")
        await history.save_messages([{"role": "user", "content": "tea"}], "scope")
        await history.add_history("n", None, "tea", "ADD", owner={"user_id": "bob"})
        there = await history.count_history()
        end = await history.end_cursor()
        tables = [one for (one,) in await publisher.fetch(_TABLES, "async_history")]
        names = ", ".join(f"async_history.{table}" for table in tables)
        await subscriber.execute(f"TRUNCATE {names}")
        await publisher.execute(f"CREATE PUBLICATION all_of_it FOR TABLE {names}")
        await publisher.execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
        await subscriber.execute(
            f"CREATE SUBSCRIPTION copy CONNECTION 'host={server.folder} port={server.port}"
            " user=owner dbname=postgres' PUBLICATION all_of_it"
            " WITH (create_slot = false, slot_name = 'slot')"
        )
        ready = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
        await until(subscriber, ready)
        async with open_history(server.url("subscriber"), **options) as copy:
            follower = copy.follow()
            assert len(await follower.next_records(limit=there + 1, timeout_s=LONG_S)) == there
            await history.add_history("m", None, "published", "UPDATE")
            (record,) = await follower.next_records(timeout_s=LONG_S)
            assert record.new_memory == "published"
            with pytest.raises(CursorGone):
                await anext(copy.follow(after=end))
    await subscriber.execute("ALTER SUBSCRIPTION copy DISABLE")
    await subscriber.execute("ALTER SUBSCRIPTION copy SET (slot_name = NONE)")
    await subscriber.execute("DROP SUBSCRIPTION copy")
    async with open_history(server.url("subscriber"), **options) as copy:
        for problem in (await copy.check()).problems:
            await subscriber.execute(problem.partition(": ")[2].rstrip("."))
        assert not (await copy.check()).problems
        await write_details(copy)
        await copy.update_history("m", "last")
        assert (await copy.get_history("m"))[-1].new_memory == "last"
        assert not (await copy.ledger.verify()).faults
    await publisher.close()
    await subscriber.close()


@pytest.mark.parametrize("table", ["history", "messages"])
async def test_the_check_names_numbers_that_are_behind(
    url: str, raw: asyncpg.Connection, table: str
) -> None:
    """Logical replication copies the rows and not their sequences."""
    async with open_history(url) as history:
        assert not (await history.check()).problems
        for number in range(3):
            await history.add_history("m", None, str(number), "UPDATE")
            await history.save_messages([{"role": "user", "content": str(number)}], "scope")
        sequence = await raw.fetchval("SELECT pg_get_serial_sequence($1, 'seq')", table)
        await raw.execute(f"SELECT setval('{sequence}', 4, false)")
        assert not (await history.check()).problems
        await raw.execute(f"SELECT setval('{sequence}', 3, false)")
        (problem,) = (await history.check()).problems
        assert f"newest row of {table} has the number 3, and the next one would get 3" in problem
        await raw.execute(f"ALTER SEQUENCE {sequence} RESTART")
        (problem,) = (await history.check()).problems
        assert "the next one would get 1" in problem
        await raw.execute(problem.partition(": ")[2].rstrip("."))
        assert not (await history.check()).problems
        await history.add_history("m", None, "last", "UPDATE")
        assert (await history.get_history("m"))[-1].new_memory == "last"


async def test_the_check_names_missing_and_additional_rows_of_owners_state(
    url: str, raw: asyncpg.Connection
) -> None:
    async with open_history(url) as history:
        await raw.execute("INSERT INTO owners_state SELECT * FROM owners_state")
        (problem,) = (await history.check()).problems
        assert "owners_state has 2 rows" in problem
        await raw.execute("DELETE FROM owners_state")
        (problem,) = (await history.check()).problems
        assert "owners_state has 0 rows" in problem


async def test_a_restored_schema_without_data_is_named(url: str, raw: asyncpg.Connection) -> None:
    """And another program's table `history` is not taken for one."""
    async with open_history(url):
        """It creates the tables."""
    for statement in ("DELETE FROM migrations", "DROP TABLE migrations"):
        await raw.execute(statement)
        with pytest.raises(MigrationError, match="restore without data"):
            await open_history(url)
    await raw.execute("ALTER TABLE history DROP COLUMN xact")
    with pytest.raises(MigrationError, match="something of another's"):
        await open_history(url)
