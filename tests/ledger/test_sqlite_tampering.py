"""Changes that someone with a file's tables can make, and whether verifying finds them.

Each change is made in the file, which is put back.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from async_history import Owner, open_history
from async_history.ledger import Checkpoint, LedgerReport
from tests.ledger.ledgers import change, verified, what_is_found
from tests.ledger.owner_cases import OwnerCases, OwnerStatements, fill_owned, found_in
from tests.ledger.tampering_cases import Names, ResetCases, Tables, TamperingCases, fill_small

pytestmark = pytest.mark.once
NAMES = Names(
    history="history",
    seq="rowid",
    owners="async_history_owners",
    operations="async_history_operations",
    ledger="async_history_ledger",
    tiles="async_history_ledger_tiles",
    names="async_history_ledger_names",
    copy=("CREATE TABLE {1} AS SELECT * FROM {0}",),
    put_back="INSERT OR IGNORE INTO {0} SELECT * FROM {1}",
)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    path = tmp_path / "history.db"

    async def run(sql: str) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(sql)

    return Tables(NAMES, lambda: open_history(path, ledger=True), run)


class SmallStore:
    """A small history with a checkpoint. The file is put back after each change."""

    names = NAMES

    def __init__(self, path: Path, kept: Checkpoint) -> None:
        self._path = path
        self._kept = kept

    async def verified(self, *checkpoints: Checkpoint) -> LedgerReport:
        return await verified(self._path, *checkpoints)

    @asynccontextmanager
    async def changed(self, *statements: str) -> AsyncIterator[None]:
        whole = self._path.read_bytes()
        change(self._path, *statements)
        try:
            yield
        finally:
            self._path.write_bytes(whole)

    def columns(self, table: str) -> list[tuple[str, str]]:
        """Return the names and types of a table's columns."""
        with closing(sqlite3.connect(self._path)) as connection:
            rows = connection.execute("SELECT name, type FROM pragma_table_info(?)", [table])
            return rows.fetchall()

    async def found(self, *statements: str) -> set[tuple[str, str | None]]:
        async with self.changed(*statements):
            return what_is_found(await self.verified(self._kept))


@pytest.fixture
async def store(tmp_path: Path) -> SmallStore:
    path = tmp_path / "small.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        return SmallStore(path, await fill_small(history))


class TestTampering(TamperingCases): ...


class TestResets(ResetCases): ...


_OWNER_NUMBER = "(SELECT number FROM async_history_owners WHERE memory_id = '{memory}')"
_USER = """'{{"user_id":"{user}"}}'"""
OWNERS = OwnerStatements(
    of_record=f"""REPLACE INTO async_history_details (id, owner)
        VALUES ('{{id}}', {_OWNER_NUMBER})""",
    of_no_memory="UPDATE async_history_details SET owner = NULL WHERE id = '{id}'",
    of_memory=f"UPDATE async_history_owners SET owner = {_USER} WHERE memory_id = '{{memory}}'",
    new=f"""INSERT INTO async_history_owners (number, memory_id, owner)
        VALUES (9, '{{memory}}', {_USER})""",
    swapped=[
        f"""UPDATE async_history_owners SET owner = CASE memory_id
            WHEN 'a' THEN {_USER.format(user="bob")} ELSE {_USER.format(user="ann")} END"""
    ],
    removed="DELETE FROM async_history_owners WHERE memory_id = '{memory}'",
    moved="UPDATE async_history_owners SET memory_id = '{other}' WHERE memory_id = '{memory}'",
)


class TestOwners(OwnerCases):
    @pytest.fixture
    def owners(self) -> OwnerStatements:
        return OWNERS

    async def test_an_owner_with_another_number_is_found(self, tables: Tables) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run("UPDATE async_history_owners SET number = 9 WHERE memory_id = 'a'")
            assert {("changed", f"a{n}") for n in range(3)} <= await found_in(history)

    async def test_a_second_owner_of_a_memory_is_found(self, tables: Tables) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(OWNERS.new.format(memory="a", user="eve"))
            await tables.run("UPDATE async_history_details SET owner = 9 WHERE id = 'a1'")
            assert await found_in(history) == {("owners", None)}

    async def test_a_record_that_is_not_indexed_is_read_with_its_memorys_owner(
        self, tables: Tables
    ) -> None:
        """It needs no number until then, so that it lost one is no fault."""
        async with tables.open() as history:
            await fill_owned(history)
            await history.add_history("a", None, "likes tea", "UPDATE", id="last")
            await tables.run(OWNERS.of_no_memory.format(id="last"))
            assert await found_in(history) == set()
            last = (await history.get_history("a"))[-1]
            assert (last.id, last.owner) == ("last", Owner(user_id="ann"))


OTHERS = {
    "TEXT": (
        "coalesce({0}, '') || 'x'",
        "'[null]'",
        "x'ff00'",
        "replace(hex(zeroblob(2000)), '0', '[')",
    ),
    "INTEGER": ("coalesce({0}, 0) + 1", "coalesce({0}, 0) + 1000", "{0} + 0.5", "'x'", "x'ff00'"),
    "BLOB": ("CAST({0} || {0} AS BLOB)", "substr({0}, 2)", "x''", "1.5", "'x'"),
    "DATETIME": ("coalesce({0}, '') || 'x'",),
}
"""Other values than a column's, by its type."""
UNCOVERED = {
    # Columns that only serve to find leaves, and a placed bundle's former number.
    ("async_history_ledger", "number"),
    ("async_history_ledger_names", "key"),
    ("async_history_ledger_names", "place"),
}
ROWS = {
    "history": "WHERE id = '4'",
    "async_history_details": "WHERE id = '4'",
    "async_history_owners": "WHERE memory_id = 'm1'",
    "async_history_operations": "WHERE kind = 'restore'",
    "async_history_ledger": "WHERE first = 4",
    "async_history_ledger_tiles": "",
    "async_history_ledger_names": "",
}


@pytest.mark.parametrize("table", ROWS)
async def test_each_column_of_each_table(store: SmallStore, table: str) -> None:
    assert not await store.found()
    tried = 0
    for column, kind in store.columns(table):
        for other in OTHERS[kind]:
            changed = f"UPDATE {table} SET {column} = {other.format(column)} {ROWS[table]}"
            try:
                is_found = bool(await store.found(changed))
            except sqlite3.IntegrityError:
                continue
            assert is_found or (table, column) in UNCOVERED, changed
            tried += is_found
    assert tried or table == "async_history_ledger_names"
