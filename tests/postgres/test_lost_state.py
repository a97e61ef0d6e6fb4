"""Rows and columns that somebody removes or changes: nothing is recorded without them."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest

from async_history import MigrationError, StorageCorrupt, StorageError, open_history
from async_history._postgres.schema import migrations
from async_history._postgres.schema.columns import OF_VERSION, column_faults
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write
from tests.support.docs_examples import example
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_ANN: Final = {"user_id": "ann"}
_NEW: Final = {"memory_id": "m", "new_memory": "mate", "event": "UPDATE"}
CALLS: Final[dict[str, Callable[[Any], Awaitable[object]]]] = {
    "one": lambda history: history.add_history("m", "tea", "mate", "UPDATE"),
    "several": lambda history: history.batch_add_history([_NEW] * 3),
    "named": lambda history: history.add_history("m", "tea", "mate", "UPDATE", id="name"),
    "owned": lambda history: history.add_history("n", None, "mate", "ADD", owner=_ANN),
    "update": lambda history: history.update_history("m", "mate"),
    "if_latest": lambda history: history.batch_add_history([_NEW], if_latest="first"),
    "messages": lambda history: history.save_messages([{"role": "user", "content": "x"}], "s"),
    "erase": lambda history: history.erase(user_id="ann", reason="asked", vacuum=False),
}


async def _fill(history: Any) -> None:
    await history.add_history("m", None, "tea", "ADD", owner=_ANN, id="first")
    await history.add_history("other", None, "tea", "ADD")


async def _stored(raw: asyncpg.Connection) -> list[Any]:
    return [
        await raw.fetchval(f"SELECT array_agg({table}::text ORDER BY seq) FROM {table}")
        for table in ("history", "messages")
    ]


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "opened later"])
@pytest.mark.parametrize(
    "change",
    ["TRUNCATE owners_state", "INSERT INTO owners_state SELECT * FROM owners_state"],
    ids=["none", "two"],
)
async def test_nothing_is_written_without_the_row_of_owners_state(
    url: str, raw: asyncpg.Connection, change: str, is_open: bool
) -> None:
    """A record would lack its memory's owner, and an erasure of the owner would leave it."""
    async with open_history(url) as history:
        await _fill(history)
        if is_open:
            await raw.execute(change)
            await _are_refused(history, raw)
    if not is_open:
        await raw.execute(change)
        async with open_history(url) as history:
            await _are_refused(history, raw)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_a_second_row_of_another_number(
    url: str, raw: asyncpg.Connection, first: bool
) -> None:
    async with open_history(url) as history:
        await history.add_history("m", None, "tea", "ADD")
        await raw.execute("INSERT INTO owners_state VALUES (5, 5)")
        if first:
            await raw.execute("UPDATE owners_state SET last = last WHERE number = 0")
        for name in ("one", "several", "named", "update"):
            with pytest.raises(StorageCorrupt, match="owners_state"):
                await CALLS[name](history)
            assert await raw.fetchval("SELECT count(*) FROM history") == 1, name


async def _are_refused(history: Any, raw: asyncpg.Connection) -> None:
    before = await _stored(raw)
    for name, call in CALLS.items():
        with pytest.raises(StorageCorrupt, match="owners_state"):
            await call(history)
        assert await _stored(raw) == before, name
    assert [one.owner.user_id for one in await history.get_history("m")] == ["ann"]


async def test_a_users_transaction_continues_without_the_row(
    url: str, raw: asyncpg.Connection
) -> None:
    async with open_history(url) as history:
        assert isinstance(history, PostgresHistoryManager)
        await _fill(history)
        await raw.execute("CREATE TABLE own (id int); TRUNCATE owners_state")
        async with raw.transaction():
            with pytest.raises(StorageCorrupt, match="owners_state"):
                await history.add_in_transaction(raw, [_NEW])
            await raw.execute("INSERT INTO own VALUES (1)")
    assert await raw.fetchval("SELECT count(*) FROM own") == 1
    assert await raw.fetchval("SELECT count(*) FROM history") == 2


async def test_the_guide_restores_the_row(url: str, raw: asyncpg.Connection) -> None:
    """Open managers, whose caches are of an earlier number, see that."""
    async with open_history(url) as history, open_history(url) as other:
        await _fill(history)
        await history.erase(user_id="bob", reason="asked", vacuum=False)
        await other.add_history("m", "tea", "mate", "UPDATE")
        await raw.execute("TRUNCATE owners_state")
        await raw.execute(re.sub(r"\basync_history\b", schema_of(url), example("owners-state")))
        for one in (other, history):
            added = await one.add_history("m", "mate", "tea", "UPDATE")
            assert added.owner is not None
            await one.add_history(f"new {id(one)}", None, "tea", "ADD", owner=_ANN)
        assert await raw.fetchval("SELECT erased_at FROM owners_state")
        await write(history)
        await read(history)
        await follow(history)
        await take_back(history)
        await remove(history)


async def test_every_lost_or_changed_column_is_named(url: str, raw: asyncpg.Connection) -> None:
    async with open_history(url, ledger=True):
        """It creates the tables."""
    assert OF_VERSION == migrations.VERSION
    schema = schema_of(url)
    assert await column_faults(raw, schema) == []
    columns = await raw.fetch(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name <> 'migrations'",
        schema,
    )
    assert len(columns) > 60
    for table, column in columns:
        for change in ("DROP {} CASCADE", "ALTER {} TYPE char(9) USING 'x'"):
            transaction = raw.transaction()
            await transaction.start()
            if "TYPE" in change:
                await raw.execute(f"ALTER TABLE {table} ALTER {column} DROP IDENTITY IF EXISTS")
                await raw.execute(f"ALTER TABLE {table} ALTER {column} DROP DEFAULT")
                await raw.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_id_check")
                indexes = await raw.fetch(
                    "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_attribute "
                    "ON attrelid = indrelid AND attname = $2 WHERE indrelid = $1::regclass "
                    "AND NOT indisprimary",
                    table,
                    column,
                )
                for (index,) in set(indexes):
                    await raw.execute(f"DROP INDEX {index}")
            await raw.execute(f"ALTER TABLE {table} {change.format(column)}")
            faults = await column_faults(raw, schema)
            await transaction.rollback()
            assert [fault for fault in faults if fault.startswith(f"{table}.{column} ")], change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP COLUMN role", "history.role is missing"),
        ("RENAME actor_id TO actor", "history.actor_id is missing"),
        ("ALTER new_memory TYPE char(300)", "history.new_memory has the type bpchar"),
        ("ALTER occurred_at TYPE timestamp", "history.occurred_at has the type timestamp instead"),
        ("ALTER occurred_at TYPE timestamptz(0)", "history.occurred_at has a limit"),
        ("ALTER created_at TYPE timestamptz USING NULL", "history.created_at has the type"),
        ("ALTER context TYPE jsonb USING NULL", "history.context has the type jsonb"),
    ],
)
async def test_changed_columns_are_named_when_it_is_opened(
    url: str, raw: asyncpg.Connection, change: str, told: str
) -> None:
    async with open_history(url) as history:
        await _fill(history)
        await raw.execute(f"ALTER TABLE history {change}")
        if "missing" in told:
            for call in (history.add_history("m", None, "x", "ADD"), history.get_history("m")):
                with pytest.raises(StorageError, match=r"has lost a column.*migrate` names it"):
                    await call
    for migrate in (True, False):
        with pytest.raises(MigrationError, match=re.escape(told)):
            await open_history(url, migrate=migrate)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("history ALTER seq DROP IDENTITY", "history.seq"),
        (
            "history ALTER seq DROP IDENTITY; ALTER TABLE history ALTER seq SET DEFAULT 0",
            "history.seq",
        ),
        ("history ALTER xact DROP DEFAULT", "history.xact"),
        ("history ALTER xact SET DEFAULT '5'", "history.xact"),
        ("messages ALTER seq DROP IDENTITY", "messages.seq"),
        ("history_ledger ALTER number DROP IDENTITY", "history_ledger.number"),
        ("history_ledger ALTER xact DROP DEFAULT", "history_ledger.xact"),
    ],
)
async def test_the_check_names_columns_without_values(
    url: str, raw: asyncpg.Connection, change: str, told: str
) -> None:
    async with open_history(url, ledger=True) as history:
        await _fill(history)
        assert not (await history.check()).problems
        await raw.execute(f"ALTER TABLE {change}")
        (problem,) = (await history.check()).problems
        assert problem.startswith(f"The column {told} has lost its identity or its default")
