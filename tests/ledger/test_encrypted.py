"""A ledger of an encrypted history proves what was recorded, and reveals nothing of it."""

import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from async_history import KeyMissing, Owner, open_history
from async_history._core.encryption.key_statements import owner_digest
from async_history._core.ledger.leaves import record_values
from async_history._core.records.records import fields_in_order
from async_history.ledger import verify_proof
from tests.conftest import OpenStore, new_stores, stores
from tests.ledger.ledgers import KEY, change, fill, leaves_of
from tests.support.keys import ring

pytestmark = pytest.mark.once


@pytest.fixture(params=stores("file", "postgres", "mariadb", "sqlalchemy", "sqlalchemy postgres"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return new_stores(request.param, request, tmp_path)()


async def test_records_are_proven_in_clear(store: OpenStore) -> None:
    async with store(ledger=True, keys=ring("one")) as history:
        await fill(history)
        kept = await history.ledger.checkpoint(KEY)
        text = str(await history.ledger.prove("given", kept))
        assert '"lives there"' in text
        verify_proof(text, KEY.verifier)
        total = await history.count_history()
    async with store(keys=ring("two", "one")) as history:
        await history.encryption.rotate_keys()
        report = await history.ledger.verify(kept)
        assert report.is_intact
        assert not report.unattested
        assert report.records == total
    async with store(keys=ring("two")) as history:
        erased = await history.erase(user_id="ann", reason="asked")
        report = await history.ledger.verify(kept)
        assert report.is_intact
        assert not report.unattested
        assert (report.records, report.erased) == (total, erased.records)
        assert (await history.ledger.prove("given", kept)).record is None


async def test_an_inserted_record_of_another_store_is_listed(tmp_path: Path) -> None:
    """Its text can't be decrypted, which stops nothing: only its id is needed."""
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, keys=ring("one")) as history:
        await history.add_history("m", None, "likes tea", "ADD", id="1")
        kept = await history.ledger.checkpoint(KEY)
        change(
            path,
            "INSERT INTO history (id, memory_id, new_memory, event, is_deleted)"
            " VALUES ('x', 'm', 'ahs1:0123456789abcdef:AAAA:ahs1', 'ADD', 0)",
        )
        report = await history.ledger.verify(kept)
    assert (report.is_intact, report.unattested) == (True, ("x",))


async def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, keys=ring("one")) as history:
        await history.add_history("m", None, "likes tea", "ADD", id="1", owner={"user_id": "ann"})
        checkpoint = await history.ledger.checkpoint(KEY)
    with pytest.raises(KeyMissing, match="keys=KeyRing"):
        await open_history(path)
    with pytest.raises(KeyMissing, match="one"):
        await open_history(path, keys=ring("two"))
    with closing(sqlite3.connect(path)) as connection:
        ((key_id,),) = connection.execute(
            "SELECT substr(new_memory, 6, 16) FROM history"
        ).fetchall()
    change(path, f"DELETE FROM async_history_data_keys WHERE id = '{key_id}'")
    async with open_history(path, keys=ring("one")) as history:
        with pytest.raises(KeyMissing, match=key_id):
            await history.ledger.verify(checkpoint)
        with pytest.raises(KeyMissing, match=key_id):
            await history.ledger.prove("1", checkpoint)
        assert (await history.operations())[-1].error == "KeyMissing"


async def test_a_missing_key_is_named_while_more_is_read_ahead(store: OpenStore) -> None:
    batches = 8
    async with store(ledger=True, keys=ring("one")) as history:
        for number in range(batches):
            owner = {"user_id": str(number)}
            await history.batch_add_history(
                [
                    {
                        "memory_id": f"{number} {n}",
                        "event": "ADD",
                        "owner": owner,
                        "new_memory": "x",
                    }
                    for n in range(20)
                ]
            )
        opened: Any = history.store
        digest = owner_digest(Owner(user_id="3"))

        async def lose(texts: Any) -> str:
            (key,) = await texts.table.of_owners([digest])
            await texts.table.remove([key.id])
            return str(key.id)

        lost = await opened.encryption.texts.in_transaction(lose)
    async with store(keys=ring("one")) as history:
        with pytest.raises(KeyMissing, match=lost):
            await history.ledger.verify()
        assert await history.count_history() == 20 * batches
        await history.add_history("m", None, "x", "ADD")


async def test_a_text_that_does_not_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete", keys=ring("one")) as history:
        for name in ("a", "b", "c", "d"):
            await history.add_history(name, None, name, "ADD", id=name, context={"n": name})
    whole = path.read_bytes()
    other = "(SELECT new_memory FROM history WHERE id = 'b')"
    for value in ("NULL", "'a clear text'", "substr(new_memory, 1, 40) || ':ahs1'", other):
        path.write_bytes(whole)
        change(path, f"UPDATE history SET new_memory = {value} WHERE id = 'a'")
        async with open_history(path, keys=ring("one")) as history:
            report = await history.ledger.verify()
            assert [(one.kind, one.record_id) for one in report.faults] == [("changed", "a")]
            assert report.records == 3


async def test_a_guessed_record_cannot_be_confirmed(store: OpenStore) -> None:
    """Someone with the tables who guesses a record exactly can't find out whether it is right."""
    async with store(ledger=True, keys=ring("one")) as history:
        await fill(history)
        records = {one.id: one async for one in history.query_history()}
        size = (await history.ledger.checkpoint(KEY)).size
        leaves = (await leaves_of(history, size)).values()
    attested = [leaf for leaf in leaves if leaf.kind == "record"]
    assert len(attested) == len(records)
    for leaf in attested:
        values = record_values(fields_in_order(records[leaf.name or ""]))
        text = "\n".join(json.dumps(v, ensure_ascii=False) for v in ["record", *values])
        assert leaf.is_keyed
        assert sha256(leaf.kept + text.encode()).digest() != leaf.commitment


async def test_only_records_need_the_keys(tmp_path: Path) -> None:
    """Leaves of other kinds that claim to need a key are found, and records that claim not to."""
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete", keys=ring("one")) as history:
        await history.add_history("m", None, "likes tea", "ADD", id="1", owner={"user_id": "ann"})
        await history.add_history("n", None, "likes tea", "ADD", id="2")
        await history.erase(record_ids=["2"], reason="asked", vacuum=False)
        checkpoint = await history.ledger.checkpoint(KEY)
    whole = path.read_bytes()
    for kind, found in (
        *((kind, {("damaged", None)}) for kind in ("owner", "begun", "ended", "entry")),
        ("record", {("changed", "1")}),
        ("rest", {("changed", "2")}),
    ):
        path.write_bytes(whole)
        change(path, f"UPDATE async_history_ledger SET is_keyed = 1 - is_keyed WHERE kind='{kind}'")
        async with open_history(path, keys=ring("one")) as history:
            report = await history.ledger.verify(checkpoint)
        assert {(one.kind, one.record_id) for one in report.faults} == found, kind


async def test_a_manager_from_before_the_encryption_must_open_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True) as clear:
        await clear.add_history("m", None, "likes tea", "ADD")
        async with open_history(path, keys=ring("one")) as history:
            await history.add_history("m", "likes tea", "likes milk", "UPDATE", id="2")
            checkpoint = await history.ledger.checkpoint(KEY)
        for call in (clear.ledger.verify(checkpoint), clear.ledger.prove("2", checkpoint)):
            with pytest.raises(KeyMissing, match="keys=KeyRing"):
                await call


@pytest.mark.parametrize("name", ["1", "2"])
async def test_a_manager_from_before_an_encryption_in_place_must_open_again(
    store: OpenStore, name: str
) -> None:
    """It would write leaves of the earlier kind. SQL databases refuse all of its calls."""
    async with store(ledger=True) as clear:
        await clear.add_history("m", None, "likes tea", "ADD", id="1")
        await clear.add_history("m", "likes tea", "likes milk", "UPDATE", id="2")
        old = await clear.ledger.checkpoint(KEY)
        async with store(keys=ring("one")) as history:
            await history.encryption.encrypt()
        for call in (clear.ledger.verify(old), clear.ledger.prove(name, old)):
            with pytest.raises(KeyMissing, match="keys=KeyRing"):
                await call
        with pytest.raises(KeyMissing, match="keys=KeyRing"):
            await clear.erase(record_ids=[name], reason="asked")
    async with store(keys=ring("one")) as history:
        report = await history.ledger.verify(old)
        assert report.is_intact
        assert (report.records, report.erased) == (2, 0)


async def test_leaves_from_before_the_encryption_stay_valid(store: OpenStore) -> None:
    async with store(ledger=True) as history:
        await history.add_history("m", None, "likes tea", "ADD", id="1")
        old = await history.ledger.checkpoint(KEY)
    async with store(keys=ring("one")) as history:
        await history.add_history("m", "likes tea", "likes milk", "UPDATE", id="2")
        await history.encryption.encrypt()
        new = await history.ledger.checkpoint(KEY)
        await history.encryption.replace_data_keys()
        report = await history.ledger.verify(old, new)
        assert report.is_intact
        assert (report.records, report.unattested_operations) == (2, 0)
        for name in ("1", "2"):
            verify_proof(str(await history.ledger.prove(name, new)), KEY.verifier)
