"""Changes of owners that the owner of the tables can make, for each database: what is found.

The fixture `tables` gives the tables of a new history with a ledger, `owners` its statements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from async_history import HistoryManager
from tests.ledger.ledgers import KEY, what_is_found
from tests.ledger.tampering_cases import Names, Tables

_OWNED = (("a", "ann"), ("b", "bob"))


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnerStatements:
    """Statements that change what a database stores of owners.

    Attributes:
        of_record: gives a record, `{id}`, the owner of a memory, `{memory}`, whose user
            is `{user}`.
        of_no_memory: takes a record's owner.
        of_memory: changes the user of a memory.
        new: gives a memory an owner.
        swapped: exchange the users ann and bob in all tables.
        removed: removes a memory's owner.
        moved: gives a memory's owner to another one, `{other}`.
    """

    of_record: str
    of_no_memory: str
    of_memory: str
    new: str
    swapped: Sequence[str]
    removed: str
    moved: str


def with_scopes(names: Names) -> OwnerStatements:
    """Return the statements for tables with a column for each scope."""
    user = "CASE user_id WHEN 'ann' THEN 'bob' ELSE 'ann' END"
    return OwnerStatements(
        of_record=f"UPDATE {names.history} SET user_id = '{{user}}' WHERE id = '{{id}}'",
        of_no_memory=f"UPDATE {names.history} SET user_id = NULL WHERE id = '{{id}}'",
        of_memory=f"UPDATE {names.owners} SET user_id = '{{user}}' WHERE memory_id = '{{memory}}'",
        new=f"INSERT INTO {names.owners} (memory_id, user_id) VALUES ('{{memory}}', '{{user}}')",
        swapped=[
            f"UPDATE {table} SET user_id = {user} WHERE user_id IN ('ann', 'bob')"
            for table in (names.history, names.owners)
        ],
        removed=f"DELETE FROM {names.owners} WHERE memory_id = '{{memory}}'",
        moved=f"UPDATE {names.owners} SET memory_id = '{{other}}' WHERE memory_id = '{{memory}}'",
    )


class OwnerCases:
    """A history of two memories with an owner, a and b, and one without, c."""

    @pytest.fixture
    def owners(self, tables: Tables) -> OwnerStatements:
        return with_scopes(tables.names)

    async def test_a_record_that_lost_its_memorys_owner_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.of_no_memory.format(id="a1"))
            assert await found_in(history) == {("changed", "a1")}
            assert await _ids_of(history, "ann") == ["a0", "a2"]

    async def test_a_record_with_another_memorys_owner_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.of_record.format(id="a1", memory="b", user="bob"))
            assert await found_in(history) == {("changed", "a1")}

    async def test_an_owner_of_a_record_without_one_is_found_or_not_read(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.of_record.format(id="c1", memory="a", user="ann"))
            records = await history.get_history("c")
            is_read = any(record.owner is not None for record in records)
            assert bool(await found_in(history)) == is_read
            assert is_read or "c1" not in await _ids_of(history, "ann")

    async def test_a_changed_owner_of_a_memory_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.of_memory.format(memory="a", user="eve"))
            assert ("changed", "a") in await found_in(history)

    async def test_owners_that_were_swapped_are_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        """In all tables, as if each memory had been given the other's owner."""
        async with tables.open() as history:
            await fill_owned(history)
            for statement in owners.swapped:
                await tables.run(statement)
            assert await found_in(history) == {
                ("changed", "a"),
                ("changed", "b"),
                ("owners", None),
            }

    async def test_a_removed_owner_of_a_memory_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.removed.format(memory="a"))
            assert ("lost", "a") in await found_in(history)

    async def test_an_owner_that_was_moved_to_another_memory_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.moved.format(memory="a", other="d"))
            assert {("lost", "a"), ("owners", None)} <= await found_in(history)

    async def test_an_owner_that_was_added_is_found(
        self, tables: Tables, owners: OwnerStatements
    ) -> None:
        async with tables.open() as history:
            await fill_owned(history)
            await tables.run(owners.new.format(memory="c", user="eve"))
            assert ("owners", None) in await found_in(history)


async def fill_owned(history: HistoryManager) -> None:
    """Write three records of each memory in one batch."""
    await history.batch_add_history(
        [
            {
                "memory_id": memory,
                "new_memory": f"likes {number}",
                "event": "ADD",
                "id": f"{memory}{number}",
                **({"owner": {"user_id": user}} if user else {}),
            }
            for memory, user in (*_OWNED, ("c", None))
            for number in range(3)
        ]
    )
    await history.ledger.checkpoint(KEY)
    assert await found_in(history) == set()


async def found_in(history: HistoryManager) -> set[tuple[str, str | None]]:
    """Return the kinds and the subjects of what verifying finds."""
    return what_is_found(await history.ledger.verify())


async def _ids_of(history: HistoryManager, user_id: str) -> list[str]:
    return sorted([record.id async for record in history.query_history(user_id=user_id)])
