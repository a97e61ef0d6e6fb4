"""Changes that the owner of MariaDB's tables can make, and whether verifying finds them.

Each change is made and verified in a transaction that is rolled back.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from sqlalchemy import Executable, Table, insert, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from async_history import open_history
from async_history._core.ledger.verify import verify
from async_history._sql.keys import InClear
from async_history._sql.ledger import Attestation
from async_history._sql.names import key_of
from async_history._sql.tables import TABLES
from async_history._sql.transaction import fetch_on
from async_history.errors import StorageCorrupt
from async_history.ledger import Checkpoint, LedgerReport
from tests.ledger.ledgers import KEY, Raw, what_is_found
from tests.ledger.owner_cases import OwnerCases
from tests.ledger.tampering_cases import (
    Names,
    ResetCases,
    RestoredCases,
    Tables,
    TamperingCases,
    fill_small,
)
from tests.support.mariadb_server import run_sql

pytestmark = [pytest.mark.mariadb, pytest.mark.once]
LONG = "a long name " * 30
HISTORY, LEDGER, NAMES = TABLES.history, TABLES.ledger, TABLES.ledger_names


TABLE_NAMES = Names(
    history=HISTORY.name,
    seq="seq",
    owners=TABLES.owners.name,
    operations=TABLES.operations.name,
    ledger=LEDGER.name,
    tiles=TABLES.ledger_tiles.name,
    names=NAMES.name,
    copy=("CREATE TABLE {1} LIKE {0}", "INSERT INTO {1} SELECT * FROM {0}"),
    put_back="INSERT IGNORE INTO {0} SELECT * FROM {1}",
)


class Store:
    """A small history with a checkpoint, and a connection of the tables' owner."""

    names = TABLE_NAMES

    def __init__(self, connection: AsyncConnection, kept: Checkpoint) -> None:
        self.connection = connection
        self.kept = kept

    async def verified(self, *checkpoints: Checkpoint) -> LedgerReport:
        attestation = Attestation(TABLES, InClear("MariaDB"))
        raw = Raw(attestation.tables(partial(fetch_on, self.connection)))
        return await verify(raw, checkpoints, None)

    @asynccontextmanager
    async def changed(self, *statements: Executable | str) -> AsyncIterator[None]:
        """Run statements, and roll them back at the end."""
        try:
            for statement in statements:
                await self.connection.execute(
                    text(statement) if isinstance(statement, str) else statement
                )
            yield
        finally:
            await self.connection.rollback()

    async def found(self, *statements: Executable | str) -> set[tuple[str, str | None]]:
        """Return the kinds and the subjects of what verifying finds."""
        async with self.changed(*statements):
            return what_is_found(await self.verified(self.kept))


@pytest.fixture
async def store(new_database: Callable[[], URL]) -> AsyncIterator[Store]:
    url = new_database()
    async with open_history(url.render_as_string(hide_password=False), ledger=True) as history:
        await fill_small(history)
        await history.add_history(LONG, None, "likes tea", "ADD", id=LONG, owner={"user_id": LONG})
        kept = await history.ledger.checkpoint(KEY)
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        yield Store(connection, kept)
    await engine.dispose()


@pytest.fixture
def tables(new_database: Callable[[], URL]) -> Tables:
    url = new_database()

    async def run(sql: str) -> None:
        run_sql(url, sql)

    shown = url.render_as_string(hide_password=False)
    return Tables(TABLE_NAMES, lambda: open_history(shown, ledger=True), run)


class TestTampering(TamperingCases): ...


class TestRestored(RestoredCases): ...


class TestOwners(OwnerCases): ...


class TestResets(ResetCases): ...


@pytest.mark.parametrize("damage", ["arguments = 'x'", f"begun_at = {(1 << 63) - 1}"])
async def test_a_damaged_log_of_operations_is_called_so(tables: Tables, damage: str) -> None:
    async with tables.open() as history:
        await history.reset()
        await tables.run(f"UPDATE async_history_operations SET {damage}")
        with pytest.raises(StorageCorrupt, match="log of operations"):
            await history.operations()


def others(value: object) -> Iterator[object]:
    """Yield other values than a column's."""
    if isinstance(value, bytes):
        yield bytes([value[0] ^ 1]) + value[1:]
        yield value[:-1] + bytes([value[-1] ^ 1])
        yield value + value
        yield value[1:]
        yield b""
    elif isinstance(value, int):
        yield value + 1
        yield value + 1_000
    else:
        yield f"{value or ''}x"
        yield "[null]"


UNCOVERED = {
    ("async_history_records", "occurred_at"),
    # Without meaning unless a name is long.
    ("async_history_records", "long_names"),
    ("async_history_owners", "long_names"),
    # Columns that only serve to find leaves, and a placed bundle's former number.
    ("async_history_ledger", "number"),
    ("async_history_ledger_names", "key"),
    ("async_history_ledger_names", "place"),
}
ROWS = {
    HISTORY: HISTORY.c.id == "4",
    TABLES.owners: TABLES.owners.c.memory_id == "m1",
    TABLES.operations: TABLES.operations.c.kind == "restore",
    LEDGER: LEDGER.c.first == 4,
    TABLES.ledger_tiles: TABLES.ledger_tiles.c.level == 0,
    NAMES: NAMES.c.place == 4,
}


@pytest.mark.parametrize("table", ROWS, ids=lambda table: table.name)
async def test_each_column_of_each_table(store: Store, table: Table) -> None:
    assert not await store.found()
    where = ROWS[table]
    row = (await store.connection.execute(select(table).where(where))).mappings().one()
    tried = 0
    for column, value in row.items():
        for other in others(value):
            change = update(table).where(where).values({column: other})
            try:
                is_found = bool(await store.found(change))
            except DBAPIError:  # the column does not accept it
                await store.connection.rollback()
                continue
            assert is_found or (table.name, column) in UNCOVERED, (column, other)
            tried += is_found
    assert tried or table is NAMES


@pytest.mark.parametrize("table", [HISTORY, TABLES.owners], ids=lambda table: table.name)
async def test_a_changed_long_name_is_found(store: Store, table: Table) -> None:
    is_long = table.c.long_names.is_not(None)
    for other in ("x", "7", "{}", text("replace(long_names, 'a long', 'A long')")):
        change = update(table).where(is_long).values(long_names=other)
        assert await store.found(change), other


@pytest.mark.parametrize("column", ["id", "memory_id", "user_id"])
async def test_the_beginning_of_another_long_name_is_found(store: Store, column: str) -> None:
    """Queries look for the column's text, so they would miss the record."""
    is_long = HISTORY.c.long_names.is_not(None)
    for other in (key_of(f"another {LONG}"), "x"):
        assert await store.found(update(HISTORY).where(is_long).values({column: other}))


async def test_unreadable_hashes_are_found(store: Store) -> None:
    for table, where in ((LEDGER, "first = 4"), (TABLES.ledger_tiles, "level = 0")):
        for damage in ("concat('*', hashes)", "left(hashes, 3)", "concat(hashes, 'AAAA')", "'ä'"):
            change = f"UPDATE {table.name} SET hashes = {damage} WHERE {where}"
            assert await store.found(change), change


async def test_records_in_another_order_are_found(store: Store) -> None:
    first, other = [
        seq
        for (seq,) in await store.connection.execute(
            select(HISTORY.c.seq).where(HISTORY.c.id.in_(["3", "6"])).order_by(HISTORY.c.seq)
        )
    ]
    swapped = [
        update(HISTORY).where(HISTORY.c.seq == old).values(seq=new)
        for old, new in ((first, 999), (other, first), (999, other))
    ]
    assert {kind for kind, _ in await store.found(*swapped)} == {"moved"}


async def test_an_inserted_record_with_an_owner_is_listed(store: Store) -> None:
    inserted = insert(HISTORY).values(
        seq=99, id="x", memory_id="x", event="ADD", is_deleted=0, user_id="eve"
    )
    assert await store.found(inserted) == {("unattested", "x"), ("owners", None)}
