"""Changes that someone with the file can make, and whether verifying finds them."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryError, NotProven, open_history
from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.data_keys import DataKeys, KeysChanged
from async_history._core.encryption.store_encryption import EncryptedStore
from async_history._core.ledger.changes import prune
from async_history._core.ledger.entries import Removed, entry_bundle
from async_history._core.ledger.leaves import RECORD
from async_history._core.ledger.tables import LedgerTables
from async_history._core.records.records import COLUMN_LIST, COLUMNS
from async_history._core.records.values import plain
from async_history._sqlite.index import THROUGH_INDEX
from async_history._sqlite.keys import Seal, Sealing
from async_history._sqlite.ledger import tables as tables_on
from async_history.encryption import KeyRing
from async_history.errors import StorageCorrupt
from async_history.ledger import Checkpoint
from tests.ledger.ledgers import (
    IN_CLEAR,
    KEY,
    change,
    connected,
    verified,
    verified_here,
)
from tests.support.keys import ring
from tests.support.parts import Places, in_parts

pytestmark = pytest.mark.once


async def small(path: Path, keys: KeyRing | None = None) -> tuple[list[str], Checkpoint]:
    """Write a few records; return their ids, in order, and a checkpoint of them."""
    async with open_history(path, ledger=True, journal="delete", keys=keys) as history:
        owner = {"user_id": "ann"}
        for number in range(12):
            name = f"m{number % 3}"
            await history.add_history(name, None, f"likes {number}", "ADD", owner=owner)
        checkpoint = await history.ledger.checkpoint(KEY)
        return [record.id async for record in history.query_history()], checkpoint


@pytest.fixture
async def store(tmp_path: Path) -> tuple[Path, list[str], Checkpoint]:
    path = tmp_path / "history.db"
    return path, *await small(path)


Store = tuple[Path, list[str], Checkpoint]


class TestRecords:
    async def test_a_changed_column_is_found(self, store: Store) -> None:
        path, ids, checkpoint = store
        whole = path.read_bytes()
        for column in COLUMNS[1:]:
            path.write_bytes(whole)
            change(path, f"UPDATE history SET {column} = 1 WHERE id = '{ids[4]}'")
            report = await verified(path, checkpoint)
            assert [(one.kind, one.record_id) for one in report.faults] == [("changed", ids[4])]
            assert report.records == 11

    async def test_a_value_of_another_type_is_found(self, store: Store) -> None:
        path, ids, checkpoint = store
        change(path, f"UPDATE history SET new_memory = x'00ff' WHERE id = '{ids[4]}'")
        report = await verified(path, checkpoint)
        assert [(one.kind, one.record_id) for one in report.faults] == [("changed", ids[4])]
        assert report.records == 11

    async def test_a_changed_context_and_cause_are_found(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, ledger=True) as history:
            await history.add_history("a", None, "x", "ADD", context={"n": 1}, id="1")
            await history.add_history("b", None, "x", "ADD", cause={"why": "b"}, id="2")
        change(
            path,
            """UPDATE async_history_details SET context = '{"n":2}' WHERE id = '1'""",
            "UPDATE async_history_details SET cause = NULL WHERE id = '2'",
        )
        found = [(one.kind, one.record_id) for one in (await verified(path)).faults]
        assert found == [("changed", "1"), ("changed", "2")]

    async def test_records_in_another_order_are_found(self, store: Store) -> None:
        path, _, checkpoint = store
        swap = "UPDATE history SET rowid = {} WHERE rowid = {}"
        change(path, swap.format(99, 2), swap.format(2, 8), swap.format(8, 99))
        report = await verified(path, checkpoint)
        assert {one.kind for one in report.faults} == {"moved"}

    async def test_a_changed_owner_is_found(self, store: Store) -> None:
        path, _, checkpoint = store
        change(
            path,
            """UPDATE async_history_owners SET owner = '{"user_id":"eve"}'
               WHERE memory_id = 'm1'""",
        )
        report = await verified(path, checkpoint)
        assert [(one.kind, one.memory_id) for one in report.faults] == [("changed", "m1")]


class TestBackups:
    async def test_a_removal_of_the_newest_is_found_by_a_checkpoint(self, store: Store) -> None:
        path, _, old = store
        backup = path.with_name("backup.db")
        shutil.copy(path, backup)
        async with open_history(path, ledger=True, journal="delete") as history:
            await history.add_history("m1", None, "likes milk", "ADD")
            new = await history.ledger.checkpoint(KEY)
        assert (await verified(path, old, new)).is_intact
        assert (await verified(backup, old)).is_intact
        assert [one.kind for one in (await verified(backup, old, new)).faults] == ["cut"]

    async def test_records_of_an_older_backup_are_found(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, ledger=True, journal="delete") as history:
            record = await history.add_history("m", None, "likes tea", "ADD")
            backup = tmp_path / "backup.db"
            await history.backup(backup)
            await history.erase(memory_ids=["m"], reason="asked")
            checkpoint = await history.ledger.checkpoint(KEY)
        change(
            path,
            f"ATTACH '{backup}' AS backup",
            "UPDATE history SET new_memory = (SELECT new_memory FROM backup.history)",
        )
        found = (await verified(path, checkpoint)).faults
        assert [(one.kind, one.record_id) for one in found] == [("changed", record.id)]

    async def test_a_pruned_record_and_its_leaf_of_an_older_backup_are_found(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, ledger=True, journal="delete") as history:
            for number in range(3):
                await history.add_history("m", None, f"likes {number}", "ADD", id=str(number))
            await history.ledger.checkpoint(KEY)
            await history.backup(tmp_path / "backup.db")
            await history.prune(older_than=timedelta(0), keep_last=1)
            checkpoint = await history.ledger.checkpoint(KEY)
        assert (await verified(path, checkpoint)).is_intact
        change(
            path,
            f"ATTACH '{tmp_path / 'backup.db'}' AS backup",
            f"INSERT OR IGNORE INTO history (rowid, {COLUMN_LIST})"
            f" SELECT rowid, {COLUMN_LIST} FROM backup.history",
            "REPLACE INTO async_history_ledger SELECT * FROM backup.async_history_ledger"
            " WHERE kind = 'record'",
            "INSERT OR IGNORE INTO async_history_ledger_names"
            " SELECT * FROM backup.async_history_ledger_names",
        )
        report = await verified(path, checkpoint)
        found = [(one.kind, one.record_id) for one in report.faults]
        assert found == [("damaged", "0"), ("damaged", "1")]
        assert report.pruned == 2


CHANGES = (
    "DELETE FROM async_history_ledger WHERE first = 3",
    "DELETE FROM async_history_ledger WHERE first = 0",
    "UPDATE async_history_ledger SET first = first + 100 WHERE first >= 3",
    "UPDATE async_history_ledger SET hashes = zeroblob(48) WHERE first = 3",
    "UPDATE async_history_ledger SET hashes = zeroblob(47) WHERE first = 3",
    "UPDATE async_history_ledger SET hashes = 1000000000000000 WHERE first = 3",
    "UPDATE async_history_ledger SET names = x'00ff' WHERE first = 3",
    "UPDATE async_history_ledger_tiles SET hashes = 1000000000000000",
    "UPDATE async_history_ledger SET names = '[null]' WHERE first = 3",
    "UPDATE async_history_ledger SET names = '3' WHERE first = 3",
    "UPDATE async_history_ledger SET kind = 'entry' WHERE first = 3",
    "UPDATE async_history_ledger SET size = 2 WHERE first = 3",
    "UPDATE async_history_ledger SET first = 99 - first",
    "DELETE FROM async_history_ledger_tiles",
    "UPDATE async_history_ledger_tiles SET hashes = zeroblob(480)",
    "DELETE FROM async_history_ledger",
)


class TestLedgerTables:
    async def test_a_rewritten_store_is_found_only_by_a_checkpoint(self, store: Store) -> None:
        """The store is made again by the library's own code, with one other record."""
        path, ids, checkpoint = store
        other = path.with_name("other.db")
        async with open_history(path, migrate=False) as true:
            records = [record async for record in true.query_history()]
        async with open_history(other, ledger=True, journal="delete") as false:
            for record in records:
                fields: dict[str, Any] = {**record.as_dict(), "owner": record.owner}
                if record.id == ids[4]:
                    fields["new_memory"] = "likes nothing"
                await false.batch_add_history([fields])
        assert (await verified(other)).is_intact
        (fault,) = (await verified(other, checkpoint)).faults
        assert fault.kind == "rewritten"
        async with open_history(other) as false:
            with pytest.raises(NotProven):
                await false.ledger.prove(ids[4], checkpoint)
            with pytest.raises(NotProven):
                await false.ledger.prove_growth(checkpoint, await false.ledger.checkpoint(KEY))

    async def test_a_negative_size_is_refused(self, store: Store) -> None:
        """A tree of such a size would have infinitely many tiles."""
        path, _, checkpoint = store
        change(path, "UPDATE async_history_ledger SET size = -1000")
        with pytest.raises(StorageCorrupt, match="last leaves"):
            await verified(path, checkpoint)

    async def test_changes_of_the_ledgers_tables_are_found(self, store: Store) -> None:
        path, _, checkpoint = store
        whole = path.read_bytes()
        for statement in CHANGES:
            path.write_bytes(whole)
            change(path, statement)
            report = await verified(path, checkpoint)
            assert not report.is_intact, statement

    async def test_leaves_that_claim_to_need_a_key_are_counted_proven_and_erased(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "history.db"
        ids, checkpoint = await small(path)
        async with open_history(path) as history:
            await history.erase(record_ids=ids[:1], reason="asked", vacuum=False)
        whole = path.read_bytes()
        for kind in ("record", "rest", "owner", "begun", "ended", "entry"):
            path.write_bytes(whole)
            change(path, f"UPDATE async_history_ledger SET is_keyed = 1 WHERE kind = '{kind}'")
            report = await verified(path, checkpoint)
            assert {one.kind for one in report.faults} == {"damaged"}, kind
            assert (report.records, report.erased, report.unattested) == (12, 1, ())
            assert report.unattested_operations == report.unattested_owners == 0
            async with open_history(path) as history:
                await history.ledger.prove(ids[5], checkpoint)
                await history.erase(user_id="ann", reason="asked", vacuum=False)
                report = await history.ledger.verify(checkpoint)
            assert {one.kind for one in report.faults} == {"damaged"}

    async def test_a_forged_entry_does_not_change_what_a_checkpoint_covers(
        self, store: Store
    ) -> None:
        """Someone who removes a record can enter that it was pruned. The entry shows, and when."""
        path, ids, checkpoint = store
        change(path, f"DELETE FROM history WHERE id = '{ids[4]}'")

        def enter() -> None:
            with closing(connected(path)) as connection:
                run_to_completion(prune(tables_on(connection), [ids[4]], []))

        await asyncio.to_thread(enter)
        report = await verified(path, checkpoint)
        assert report.is_intact
        assert (report.records, report.pruned) == (11, 1)
        place = report.size - 1
        change(path, f"UPDATE async_history_ledger SET names = '[]' WHERE first = {place}")
        assert not (await verified(path, checkpoint)).is_intact

    @pytest.mark.parametrize("how", ["hidden", "records", "live", "", 5, ["pruned"], None])
    async def test_an_entry_of_another_kind_hides_no_removal(self, store: Store, how: Any) -> None:
        """It would be counted nowhere."""
        path, ids, checkpoint = store
        change(path, f"DELETE FROM history WHERE id = '{ids[4]}'")

        async def hide(tables: LedgerTables) -> None:
            await tables.grow_completely()
            (place,) = await tables.leaves_of(RECORD, [ids[4]])
            (stored,) = await tables.bundles_at([place])
            await tables.rewrite(stored, [place - stored.first], keeps_names=False)
            await tables.append(entry_bundle(Removed(how, [(place, place + 1)], "2026-01-01")))

        def enter() -> None:
            with closing(connected(path)) as connection:
                run_to_completion(hide(tables_on(connection)))

        await asyncio.to_thread(enter)
        report = await verified(path, checkpoint)
        assert {one.kind for one in report.faults} == {"damaged"}
        assert report.records == 11

    @pytest.mark.parametrize("record_id", ["NULL", "x'ff00'", "char(0) || 'a'", "'a' || char(0)"])
    async def test_an_inserted_record_that_no_look_up_finds_is_listed(
        self, store: Store, record_id: str
    ) -> None:
        path, _, checkpoint = store
        inserted = f"{record_id}, 'm0', 'injected', 'ADD', 0"
        columns = "id, memory_id, new_memory, event, is_deleted"
        change(path, f"INSERT INTO history ({columns}) VALUES ({inserted})")
        report = await verified(path, checkpoint)
        assert len(report.unattested) == 1
        assert report.is_intact


def flips(path: Path, places: Places) -> Iterator[tuple[int, Path]]:
    """Yield copies of a file in which one byte is flipped."""
    whole = path.read_bytes()
    copy = path.with_name("flipped.db")
    copy.write_bytes(whole)
    for at in takewhile(len(whole).__gt__, places):
        with copy.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 0xFF]))
        yield at, copy
        # Verifying may have written, if the flipped byte allowed it.
        copy.write_bytes(whole)


def seen(connection: sqlite3.Connection, ids: list[str], seal: Seal) -> Any:
    """Return what a store says of its records and their owners."""
    found = tables_on(connection, seal)
    records = run_to_completion(found.records(ids))
    owner = THROUGH_INDEX.details.owner("history")
    rows = connection.execute(
        f"SELECT rowid, id, memory_id, {owner} FROM history ORDER BY rowid"
    ).fetchall()
    owners = run_to_completion(found.owners(["m0", "m1", "m2"]))
    values = {name: [plain(v) for v in one.values] for name, one in records.items()}
    return rows, values, json.dumps({name: owner.as_dict() for name, owner in owners.items()})


def flip_each(
    path: Path, ids: list[str], checkpoint: Checkpoint, places: Places, keys: DataKeys | None
) -> tuple[int, int]:
    """Return how many flipped bytes are found, and how many are harmless."""
    seal = IN_CLEAR if keys is None else Sealing(keys)
    with closing(connected(path)) as connection:
        true = seen(connection, ids, seal)
    found = harmless = 0
    for at, copy in flips(path, places):
        if keys is not None:
            keys.forget()  # the file has them
        try:
            with closing(connected(copy)) as connection:
                now = seen(connection, ids, seal)
            report = verified_here(copy, checkpoint, seal=seal)
        except (sqlite3.Error, HistoryError, KeysChanged, ValueError, UnicodeError):
            found += 1
            continue
        if report.faults or report.unattested or report.unattested_owners:
            found += 1
        else:
            assert now == true, f"the flipped byte {at} changed what is read, and is not found"
            harmless += 1
    return found, harmless


class TestEachByte:
    @in_parts(1009, nightly=16)
    @pytest.mark.parametrize("keys", [None, ring("one")], ids=["clear", "encrypted"])
    async def test_a_flipped_byte_is_found_or_harmless(
        self, tmp_path: Path, places: Places, keys: KeyRing | None
    ) -> None:
        path = tmp_path / "history.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA page_size = 512")
            connection.execute("VACUUM")
        ids, checkpoint = await small(path, keys)
        async with open_history(path, journal="delete", keys=keys) as history:
            await history.prune(older_than=timedelta(days=1))  # removes nothing, indexes the rest
        data_keys = None
        if keys is not None:
            async with open_history(path, journal="delete", keys=keys) as history:
                store = history.store
                assert isinstance(store, EncryptedStore)
                assert store.encryption is not None
                data_keys = store.encryption.keys
        found, harmless = await asyncio.to_thread(
            flip_each, path, ids, checkpoint, places, data_keys
        )
        assert found > 0
        assert harmless > 0
