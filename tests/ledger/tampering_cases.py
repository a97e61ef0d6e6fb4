"""Changes that the owner of the tables can make, for each database: what is found of them.

The fixture `tables` gives the tables of a new history with a ledger, `store` a small history whose
changes are undone.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import pytest

from async_history import HistoryManager
from async_history.errors import StorageCorrupt
from async_history.ledger import Checkpoint, LedgerReport
from tests.ledger.ledgers import KEY, OWNER, what_is_found


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names of a database's tables.

    Attributes:
        seq: the column with the place of a record in the order.
        copy: statements that copy a table with its rows.
        put_back: adds rows of a copy that a table lacks.
    """

    history: str
    seq: str
    owners: str
    operations: str
    ledger: str
    tiles: str
    names: str
    copy: Sequence[str]
    put_back: str


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a history, and a connection of their owner."""

    names: Names
    open: Callable[[], HistoryManager]
    run: Callable[[str], Awaitable[object]]


class Store(Protocol):
    """A small history with a checkpoint, and a connection of its tables' owner."""

    names: Names

    async def verified(self, *checkpoints: Checkpoint) -> LedgerReport:
        """Return what verifying reports."""

    def changed(self, *statements: Any) -> AbstractAsyncContextManager[None]:
        """Run statements, and undo them at the end."""

    async def found(self, *statements: Any) -> set[tuple[str, str | None]]:
        """Return the kinds and the subjects of what verifying finds after statements."""


async def fill_small(history: HistoryManager) -> Checkpoint:
    """Write the records, owners and operations of a small history; return its checkpoint."""
    for number in range(9):
        await history.add_history(
            f"m{number % 3}",
            "likes nothing",
            f"likes {number}",
            "UPDATE",
            id=str(number),
            owner=OWNER,
            actor_id="bo",
            role="user",
            context={"n": number},
            cause={"run_id": "r"},
        )
    await history.restore("m0", to=1, actor_id="bo")
    await history.erase(record_ids=["8"], reason="asked", vacuum=False)
    return await history.ledger.checkpoint(KEY)


class TamperingCases:
    """Changes of a small history."""

    async def test_records_with_swapped_ids_are_found(self, store: Store) -> None:
        swap = f"UPDATE {store.names.history} SET id = '{{}}' WHERE id = '{{}}'"
        pairs = ("x", "3"), ("3", "6"), ("6", "x")
        found = await store.found(*(swap.format(*pair) for pair in pairs))
        assert {("changed", "3"), ("changed", "6")} <= found

    async def test_removed_rows_are_found(self, store: Store) -> None:
        names = store.names
        assert await store.found(f"DELETE FROM {names.history} WHERE id = '5'") == {("lost", "5")}
        for removal in (
            f"{names.operations} WHERE kind = 'erase'",
            f"{names.owners} WHERE memory_id = 'm1'",
            f"{names.ledger} WHERE first = 0",
            f"{names.ledger} WHERE first = 4",
            names.tiles,
        ):
            assert await store.found(f"DELETE FROM {removal}"), removal

    async def test_an_inserted_record_is_listed(self, store: Store) -> None:
        names = store.names
        inserted = f"""INSERT INTO {names.history} ({names.seq}, id, memory_id, event, is_deleted)
            VALUES (99, 'x', 'x', 'ADD', false)"""
        assert await store.found(inserted) == {("unattested", "x")}

    async def test_leaves_that_claim_to_need_a_key_are_reported_and_verified(
        self, store: Store
    ) -> None:
        """The claim is not trusted: everything that needs salts is still checked."""
        names = store.names
        change = f"UPDATE {names.history} SET role = 'x' WHERE id = '4'"
        for kind in ("record", "rest", "owner", "begun", "ended", "entry"):
            claim = f"UPDATE {names.ledger} SET is_keyed = true WHERE kind = '{kind}'"
            assert await store.found(claim) == {("damaged", None)}
            assert await store.found(claim, change) == {("damaged", None), ("changed", "4")}

    async def test_a_removed_leaf_is_found_only_by_a_checkpoint(self, store: Store) -> None:
        """A record and its leaf are removed, as if they had never existed."""
        names = store.names
        gone = (
            f"DELETE FROM {names.history} WHERE id = '5'",
            f"""DELETE FROM {names.ledger} WHERE kind = 'record' AND names LIKE '["5"%'""",
            f"DELETE FROM {names.tiles}",
            f"DELETE FROM {names.names}",
            f"UPDATE {names.ledger} SET first = NULL",
        )
        async with store.changed(*gone):
            report = await store.verified()
            assert not [one for one in report.faults if one.record_id == "5"]
        assert {kind for kind, _ in await store.found(*gone)} >= {"rewritten"}

    async def test_a_text_from_a_backup_before_an_erasure_is_found(self, store: Store) -> None:
        replayed = f"UPDATE {store.names.history} SET new_memory = 'likes 8' WHERE id = '8'"
        assert ("changed", "8") in await store.found(replayed)

    async def test_a_removal_of_the_newest_is_found_only_by_a_checkpoint(
        self, store: Store
    ) -> None:
        """Everything about them is removed, and the tree made to fit."""
        names = store.names
        cut = (
            f"DELETE FROM {names.operations}",
            f"DELETE FROM {names.history} WHERE id NOT IN ('0', '1')",
            f"DELETE FROM {names.owners} WHERE memory_id NOT IN ('m0', 'm1')",
            f"DELETE FROM {names.ledger} WHERE first >= 4 OR first IS NULL",
            f"DELETE FROM {names.tiles}",
            f"DELETE FROM {names.names}",
            f"UPDATE {names.ledger} SET first = NULL",
        )
        async with store.changed(*cut):
            report = await store.verified()
            assert report.is_intact, report.faults
            assert (report.records, report.unattested) == (2, ())
        assert ("cut", None) in await store.found(*cut)


class RestoredCases:
    """Changes of all tables together, of which some were copied before."""

    async def test_a_pruned_record_and_its_leaf_from_a_backup_are_found(
        self, tables: Tables
    ) -> None:
        names = tables.names
        copied = names.history, names.ledger, names.names
        async with tables.open() as history:
            for number in range(3):
                await history.add_history("m", None, f"likes {number}", "ADD", id=str(number))
            await history.ledger.checkpoint(KEY)
            for table in copied:
                for statement in names.copy:
                    await tables.run(statement.format(table, f"backup_{table}"))
            await history.prune(older_than=timedelta(0), keep_last=1)
            kept = await history.ledger.checkpoint(KEY)
            assert (await history.ledger.verify(kept)).is_intact
            await tables.run(f"DELETE FROM {names.ledger} WHERE kind = 'record'")
            for table in copied:
                await tables.run(names.put_back.format(table, f"backup_{table}"))
            found = what_is_found(await history.ledger.verify(kept))
        assert found >= {("damaged", "0"), ("damaged", "1")}


_LAST = "(SELECT last FROM (SELECT max(first) AS last FROM {ledger}) AS found)"


class ResetCases:
    """A reset of a damaged ledger."""

    @pytest.mark.parametrize(
        "damage",
        [
            f"UPDATE {{ledger}} SET size = {1 << 40} WHERE first = 0",
            "UPDATE {ledger} SET size = 0 WHERE first = 0",
            "UPDATE {ledger} SET size = -3 WHERE first = 0",
            "UPDATE {ledger} SET size = 2 WHERE first = 0",
            f"UPDATE {{ledger}} SET size = {1 << 40} WHERE first = {_LAST}",
            "UPDATE {ledger} SET size = -1000",
            f"UPDATE {{ledger}} SET first = {1 << 40} WHERE first = {_LAST}",
            "UPDATE {ledger} SET first = 500 WHERE first = 1",
            "DELETE FROM {ledger} WHERE first = 0",
            "DELETE FROM {ledger} WHERE first = 1",
            "UPDATE {ledger} SET hashes = '' WHERE first = 0",
            "UPDATE {ledger} SET names = '[]' WHERE first = 0",
            """UPDATE {ledger} SET names = '["m", "m"]' WHERE first = 0""",
            "UPDATE {ledger} SET names = '3' WHERE first = 0",
            "UPDATE {ledger} SET names = 'x' WHERE first = 0",
            "UPDATE {ledger} SET kind = 'x' WHERE first = 0",
        ],
    )
    async def test_leaves_without_the_form_of_leaves_are_kept_as_evidence(
        self, tables: Tables, damage: str
    ) -> None:
        async with tables.open() as history:
            await _fill_and_damage(history, tables, damage)
            with pytest.raises(StorageCorrupt, match=r"leaves of the ledger"):
                await history.reset()
            assert await history.count_history() == 3

    @pytest.mark.parametrize(
        "damage",
        [
            f"DELETE FROM {{ledger}} WHERE first = {_LAST}",
            "DELETE FROM {tiles}",
            "DELETE FROM {names}",
            "UPDATE {ledger} SET kind = 'entry' WHERE first = 0",
        ],
    )
    async def test_other_damage_does_not_stop_a_reset(self, tables: Tables, damage: str) -> None:
        async with tables.open() as history:
            await _fill_and_damage(history, tables, damage)
            await history.reset()
            assert await history.count_history() == 0


async def _fill_and_damage(history: HistoryManager, tables: Tables, damage: str) -> None:
    """Write three leaves in bundles of their own, and damage them."""
    for number in range(3):
        await history.add_history("m", None, f"likes {number}", "ADD")
    await history.ledger.checkpoint(KEY)
    names = tables.names
    await tables.run(damage.format(ledger=names.ledger, tiles=names.tiles, names=names.names))
