"""The ledger of the log of operations."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from async_history import open_history
from async_history._core.operations.operations import new_operation
from tests.conftest import OpenStore, new_stores, stores
from tests.ledger.ledgers import KEY, OWNER, change, leaves_of, operate, verified

pytestmark = pytest.mark.once


@pytest.fixture(params=stores("file", "mariadb", "sqlalchemy", "sqlalchemy postgres"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return new_stores(request.param, request, tmp_path)()


async def test_operations_have_leaves(store: OpenStore) -> None:
    async with store(ledger=True) as history:
        done = await operate(history)
        assert [one.kind for one in done] == ["restore", "prune", "checkpoint"]
        assert done[-1].arguments == {"origin": KEY.name, "size": 7}
        report = await history.ledger.verify()
        assert report.is_intact
        assert (report.operations, report.unattested_operations) == (4, 0)
        logged = (await history.operations())[-1]
        assert (logged.kind, logged.state, logged.records) == ("verify", "finished", 3)


async def test_a_change_of_the_log_is_found(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        restored = (await operate(history))[0].id
    whole = path.read_bytes()
    for column in (
        "kind",
        "begun_at",
        "actor_id",
        "process_id",
        "host",
        "arguments",
        "ended_at",
        "error",
        "records",
        "messages",
    ):
        path.write_bytes(whole)
        change(path, f"UPDATE async_history_operations SET {column} = '7' WHERE id = '{restored}'")
        (fault,) = (await verified(path)).faults
        assert (fault.kind, fault.operation_id) == ("changed", restored), column
    path.write_bytes(whole)
    change(path, f"DELETE FROM async_history_operations WHERE id = '{restored}'")
    assert {(one.kind, one.operation_id) for one in (await verified(path)).faults} == {
        ("lost", restored)
    }
    path.write_bytes(whole)
    columns = "kind, begun_at, ended_at, error, process_id, host, arguments, records, messages"
    change(
        path,
        f"INSERT INTO async_history_operations (id, {columns}) "
        f"SELECT 'new', {columns} FROM async_history_operations LIMIT 1",
    )
    report = await verified(path)
    assert report.is_intact
    assert report.unattested_operations == 1


async def test_a_forged_end_of_an_operation_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        await history.store.operations.begin(new_operation("prune"))
    assert (await verified(path)).unattested_operations == 0
    change(path, "UPDATE async_history_operations SET ended_at = begun_at")
    assert (await verified(path)).unattested_operations == 1


async def test_an_erased_actor_is_removed_from_the_log(store: OpenStore) -> None:
    async with store(ledger=True) as history:
        await operate(history)
        size = (await history.ledger.checkpoint(KEY)).size
        begun = [one for one in (await leaves_of(history, size)).values() if one.kind == "begun"]
        await history.erase(actor_id="bo", reason="asked")
        assert {one.actor_id for one in await history.operations()} == {None}
        report = await history.ledger.verify()
        assert report.is_intact
        assert report.unattested_operations == 0
        now = await leaves_of(history, size)
        erased = {one.name for one in now.values() if one.kind == "begun" and one.is_erased}
        assert erased == {begun[0].name}


async def test_an_actor_that_is_inserted_after_that_is_found(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        await operate(history)
        await history.erase(actor_id="bo", reason="asked")
    change(path, "UPDATE async_history_operations SET actor_id = 'al' WHERE kind = 'restore'")
    assert [one.kind for one in (await verified(path)).faults] == ["changed"]


async def test_a_reset_keeps_the_log(store: OpenStore) -> None:
    async with store(ledger=True) as history:
        await operate(history)
        kept = await history.ledger.checkpoint(KEY)
        await history.reset()
        report = await history.ledger.verify(kept)
        assert report.is_intact
        assert (report.records, report.reset) == (0, 3)
        assert (report.operations, report.unattested_operations) == (6, 0)


async def test_the_rest_of_a_changed_record_is_not_attested(tmp_path: Path) -> None:
    """An erasure of a text or an owner attests nothing that was not recorded."""
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        for name in ("a", "b"):
            await history.add_history(name, None, "likes tea", "ADD", id=name, owner=OWNER)
    change(
        path,
        "UPDATE history SET actor_id = 'eve' WHERE id = 'a'",
        """UPDATE async_history_owners SET owner = '{"user_id":"ann","agent_id":"eve"}'
           WHERE memory_id = 'a'""",
    )
    async with open_history(path) as history:
        await history.erase(user_id="ann", reason="asked")
        report = await history.ledger.verify()
        assert report.unattested == ("a",)
        assert (report.records, report.owners, report.unattested_owners) == (1, 1, 1)


async def test_without_a_ledger_nothing_is_added(store: OpenStore) -> None:
    async with store() as history:
        await history.prune(older_than=datetime.now(UTC))
        assert [one.kind for one in await history.operations()] == ["prune"]
