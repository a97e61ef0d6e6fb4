"""Schemas of earlier versions on PostgreSQL: migrated while others read and write."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from async_history import MigrationError, StorageLocked, open_history
from async_history._postgres.schema import migrations
from tests.support.patience import LONG_S
from tests.support.postgres_schemas import schema_of, until, version

pytestmark = [pytest.mark.postgres, pytest.mark.once]

OLDER = range(1, migrations.VERSION)
WAITING = [number for number in OLDER if number != 9]
"""Version 10 only adds tables, and waits for no transaction."""
ROWS = 300


class OlderProgram:
    """A program of an earlier version with an open history: it knows only its own columns."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self._table = f"{schema}.history"

    async def add(self, *memory_ids: str) -> None:
        await self._connection.execute(
            f"INSERT INTO {self._table} (id, memory_id, new_memory, event, is_deleted)"
            " SELECT gen_random_uuid()::text, name, 'x', 'ADD', false FROM unnest($1::text[]) name",
            memory_ids,
        )

    async def count(self, memory_id: str) -> int:
        sql = f"SELECT count(*) FROM {self._table} WHERE memory_id = $1"
        found: int = await self._connection.fetchval(sql, memory_id)
        return found


async def older_history(url: str, number: int, connect: Any) -> OlderProgram:
    """Make a history with records, as an earlier version does."""
    with version(number):
        async with open_history(url):
            pass
    program = OlderProgram(await connect(), schema_of(url))
    await program.add(*(f"m{n % 9}" for n in range(ROWS)))
    return program


def locked_for(number: int) -> str:
    """Return a table that the step after a version locks."""
    return {8: "erasures", 11: "owners_state"}.get(number, "history")


async def migrating(connection: Any, schema: str, table: str = "history") -> int:
    """Return the migrating process once it waits for another transaction: before it makes an index,
    or before it applies a version without one."""
    pid: int = await until(
        connection,
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND ("
        " pid IN (SELECT pid FROM pg_stat_progress_create_index WHERE relid = to_regclass($1))"
        " OR pid IN (SELECT pid FROM pg_locks WHERE NOT granted AND relation = to_regclass($1)))",
        f"{schema}.{table}",
    )
    return pid


async def check_current(connection: Any, url: str, *, records: int = ROWS) -> None:
    schema = schema_of(url)
    assert await migrations.applied_version(connection, schema) == migrations.VERSION
    indexes = await connection.fetch(
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE relnamespace = to_regnamespace($1)",
        schema,
    )
    assert all(is_valid for _, is_valid in indexes)
    assert not [name for name, _ in indexes if "_next" in name]
    async with open_history(url, migrate=False) as history:
        assert await history.count_history() >= records
        await history.add_history("m1", None, "y", "ADD", id="taken")
        found = await connection.fetchval(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = to_regclass($1) AND contype = 'p'",
            f"{schema}.history",
        )
        assert found == "PRIMARY KEY (id)"


@pytest.mark.parametrize("number", WAITING)
async def test_others_read_and_write_during_a_migration(
    number: int, new_schema: Callable[[], str], connect: Any
) -> None:
    url = new_schema()
    old = await older_history(url, number, connect)
    owner, writer = await connect(), await connect()
    begun = writer.transaction()
    await begun.start()
    await writer.execute(
        f"INSERT INTO {schema_of(url)}.history (id, memory_id, event, is_deleted)"
        " VALUES ('open', 'm', 'ADD', false)"
    )
    table = locked_for(number)
    await writer.execute(f"LOCK TABLE {schema_of(url)}.{table} IN ROW EXCLUSIVE MODE")
    opening = asyncio.ensure_future(open_history(url))  # the migration waits for the transaction
    await migrating(owner, schema_of(url), table)
    async with asyncio.timeout(LONG_S):
        there = await old.count("m1")
        await old.add("m1")
        assert await old.count("m1") == there + 1
    assert not opening.done()
    await begun.commit()
    await (await opening).aclose()
    await old.add("m1")
    await check_current(owner, url, records=ROWS + 3)


@pytest.mark.parametrize("number", WAITING)
async def test_an_interrupted_migration_is_continued(
    number: int, new_schema: Callable[[], str], connect: Any
) -> None:
    url = new_schema()
    await older_history(url, number, connect)
    owner, writer, other = await connect(), await connect(), await connect()
    async with writer.transaction():
        table = locked_for(number)
        await writer.execute(f"LOCK TABLE {schema_of(url)}.{table} IN ROW EXCLUSIVE MODE")
        task = asyncio.ensure_future(migrations.migrate(other, schema_of(url)))
        pid = await migrating(owner, schema_of(url), table)
        await owner.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await task
    await (await open_history(url)).aclose()
    await check_current(owner, url)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=[] if n in (OLDER[0], OLDER[-1]) else pytest.mark.nightly)
        for n in OLDER
    ],
)
async def test_eight_processes_migrate_at_once(
    number: int, new_schema: Callable[[], str], connect: Any
) -> None:
    url = new_schema()
    await older_history(url, number, connect)
    connections = [await connect() for _ in range(8)]
    applied = await asyncio.gather(
        *(migrations.migrate(connection, schema_of(url)) for connection in connections)
    )
    numbers = [*range(number + 1, migrations.VERSION + 1)]
    assert sorted(n for each in applied for n in each) == numbers, "each version once"
    await check_current(connections[0], url)


async def test_a_table_that_stays_locked(new_schema: Callable[[], str], connect: Any) -> None:
    url = new_schema()
    old = await older_history(url, 3, connect)
    owner, reader = await connect(), await connect()
    async with reader.transaction():
        await reader.execute(f"LOCK TABLE {schema_of(url)}.history IN ACCESS SHARE MODE")
        with pytest.raises(StorageLocked, match="version 4 can't be applied"):
            await migrations.migrate(owner, schema_of(url), switch_within_s=0)
        async with asyncio.timeout(LONG_S):
            assert await old.count("m1")
    await (await open_history(url)).aclose()
    await check_current(owner, url)


async def test_tables_that_were_dropped_by_hand_are_made_again(
    new_schema: Callable[[], str], connect: Any
) -> None:
    """Everything else that was made with them is still there."""
    url = new_schema()
    owner = await connect()
    for _ in range(2):
        async with open_history(url) as history:
            await history.add_history("m", None, "x", "ADD")
            assert await history.count_history() == 1
        tables = await owner.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace"
            " AND relkind = 'r'",
            schema_of(url),
        )
        for (table,) in tables:
            await owner.execute(f"DROP TABLE {schema_of(url)}.{table} CASCADE")


async def test_duplicate_ids_are_named(new_schema: Callable[[], str], connect: Any) -> None:
    url = new_schema()
    await older_history(url, 3, connect)
    owner = await connect()
    rows = "VALUES ('again', 'a', 'ADD', false), ('again', 'b', 'ADD', false)"
    table = f"{schema_of(url)}.history"
    await owner.execute(f"INSERT INTO {table} (id, memory_id, event, is_deleted) {rows}")
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"such as again .* another id"):
            await open_history(url)
    await owner.execute(f"UPDATE {table} SET id = 'other' WHERE memory_id = 'b'")
    await (await open_history(url)).aclose()
    await check_current(owner, url)


@pytest.mark.parametrize("table", migrations.TABLES)
async def test_a_lost_table_is_named(
    table: str, new_schema: Callable[[], str], connect: Any
) -> None:
    """A table is missing, as after a partial restore of a dump: it is not created again."""
    url = new_schema()
    async with open_history(url):
        pass
    connection = await connect()
    await connection.execute(f"DROP TABLE {schema_of(url)}.{table} CASCADE")
    for migrate in (True, False):
        with pytest.raises(MigrationError, match=f"has lost {table}: restore it from a backup"):
            await open_history(url, migrate=migrate)


async def test_migrated_tables_equal_new_ones(new_schema: Callable[[], str], connect: Any) -> None:
    for number in range(1, migrations.VERSION + 1):
        url = new_schema()
        with version(number):
            async with open_history(url):
                pass
        found = await (await connect()).fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = $1", schema_of(url)
        )
        known = {name for name, since in migrations.TABLES.items() if since <= number}
        others = {"migrations"} | ({"erasures"} if 1 < number < 9 else set())
        assert {name for (name,) in found} == known | others


async def test_the_log_of_erasures_becomes_one_of_operations(
    new_schema: Callable[[], str], connect: Any
) -> None:
    """With its rows, and with write rights for roles that may write the history."""
    url = new_schema()
    await older_history(url, 8, connect)
    schema, owner = schema_of(url), await connect()
    role = f"agent_{schema}"
    await owner.execute(
        f"INSERT INTO {schema}.erasures (id, finished_at, reason, memory_ids, records)"
        f" VALUES ('1', now(), 'asked', ARRAY['m', 'n'], 2), ('2', NULL, 'left', '{{}}', 0);"
        f"UPDATE {schema}.erasures SET actor_sha256 = 'digest' WHERE id = '2';"
        f"CREATE ROLE {role}; GRANT SELECT, INSERT ON {schema}.history TO {role}"
    )
    try:
        async with open_history(url) as history:
            one, two = await history.erasures()
            operations = await history.operations()
        rights = await owner.fetch(
            f"SELECT privilege_type, column_name FROM information_schema.column_privileges"
            f" WHERE grantee = '{role}' AND table_name = 'operations'"
        )
        assert {column for right, column in rights if right == "UPDATE"} == {
            *("ended_at", "error", "records", "messages")
        }
        assert {right for right, _ in rights} == {"SELECT", "INSERT", "UPDATE"}
    finally:
        await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert (one.id, one.reason, one.memory_ids, one.records) == ("1", "asked", ("m", "n"), 2)
    assert (one.actor_sha256, two.actor_sha256) == (None, "digest")
    assert one.finished_at == one.begun_at
    assert (two.id, two.finished_at) == ("2", None)
    migration = next(one for one in operations if one.kind == "migrate")
    assert migration.arguments == {"from_version": 8, "to_version": migrations.VERSION}
    assert migration.database_role == await owner.fetchval("SELECT current_user")


async def test_a_migration_by_several_versions_is_one_operation(
    new_schema: Callable[[], str], connect: Any
) -> None:
    url = new_schema()
    await older_history(url, 4, connect)
    async with open_history(url) as history:
        (one,) = await history.operations()
    assert one.arguments == {"from_version": 4, "to_version": migrations.VERSION}


async def test_a_ledger_covers_a_migration(new_schema: Callable[[], str], connect: Any) -> None:
    url = new_schema()
    with version(8):
        async with open_history(url):
            pass
    await migrations.make_ledger(await connect(), schema_of(url))
    async with open_history(url) as history:
        assert [one.kind for one in await history.operations()] == ["migrate"]
        report = await history.ledger.verify()
        assert report.is_intact
        assert (report.operations, report.unattested_operations) == (2, 0)
