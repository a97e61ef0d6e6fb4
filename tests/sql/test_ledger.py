"""The ledger of a history in MariaDB, beyond the cases in tests/ledger."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from async_history import InvalidInput, MigrationError, StorageError, copy_history, open_history
from async_history._core.ledger.changes import prune
from async_history.sql import SqlHistoryManager, ledger_metadata
from tests.ledger.ledgers import KEY, OWNER, fill, operate
from tests.support.keys import ring
from tests.support.mariadb_server import kill_sessions, run_sql

pytestmark = [pytest.mark.mariadb, pytest.mark.once]


@pytest.fixture
def url(new_database: Callable[[], URL]) -> URL:
    return new_database()


@pytest.fixture
async def owner(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection of the tables' owner that commits each statement."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


def opened(url: URL, **options: Any) -> SqlHistoryManager:
    return SqlHistoryManager(url, ledger=True, **options)


async def fetched(connection: AsyncConnection, sql: str) -> Sequence[Any]:
    return (await connection.execute(text(sql))).all()


async def sizes(owner: AsyncConnection, where: str) -> list[int]:
    rows = await fetched(owner, f"SELECT size FROM async_history_ledger WHERE {where} ORDER BY 1")
    return [size for (size,) in rows]


class TestTransactions:
    async def test_leaves_commit_and_roll_back_with_the_programs_transaction(
        self, url: URL, engines: Callable[[str], AsyncEngine]
    ) -> None:
        engine = engines(url.render_as_string(hide_password=False))
        async with opened(url) as history, AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            one = [{"memory_id": "t", "event": "ADD", "id": "kept", "owner": OWNER}]
            await history.add_in_transaction(session, one)
            await session.commit()
            other = [{"memory_id": "t", "event": "UPDATE", "id": "gone"}]
            await history.add_in_transaction(session, other)
            await session.rollback()
            async with session.begin_nested() as savepoint:
                await history.add_in_transaction(session, other)
                await savepoint.rollback()
            await history.add_in_transaction(session, [{"memory_id": "t", "event": "DELETE"}])
            await session.commit()
            report = await history.ledger.verify(await history.ledger.checkpoint(KEY))
            assert report.is_intact, report.faults
            assert (report.records, report.owners, report.unattested_owners) == (2, 1, 0)
            assert report.unattested == ()

    async def test_a_lone_writers_batch_takes_one_round_trip(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async def sent() -> int:
            rows = await fetched(owner, "SHOW GLOBAL STATUS LIKE 'Questions'")
            return int(rows[0][1])

        batch = [{"memory_id": f"m{n}", "event": "ADD"} for n in range(60)]
        owned = [{**one, "memory_id": f"o{n}", "owner": OWNER} for n, one in enumerate(batch)]
        async with opened(url) as history:
            await history.batch_add_history(owned)
            await history.batch_add_history(batch)
            for records in (batch, batch[:1], owned):
                before = await sent()
                await history.batch_add_history(records)
                assert await sent() - before == 2  # and the reads
            report = await history.ledger.verify()
            assert report.is_intact, report.faults
            assert (report.records, report.unattested) == (241, ())

    async def test_a_large_call_has_bundles_of_the_usual_size(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        records = [{"memory_id": f"m{n}", "event": "ADD", "owner": OWNER} for n in range(1_100)]
        async with opened(url) as history:
            await history.batch_add_history(records)
            assert await sizes(owner, "kind = 'owner'") == [76, 512, 512]
            assert sum(await sizes(owner, "kind = 'record'")) == 1_100
            report = await history.ledger.verify()
            assert (report.records, report.owners, report.unattested) == (1_100, 1_100, ())

    async def test_long_ids_fit_into_what_the_server_takes(self, url: URL) -> None:
        run_sql(url, "SET GLOBAL max_allowed_packet = 1048576")
        try:
            async with opened(url) as history:
                ids = [f"{number} {'x' * 4_000}" for number in range(400)]
                await history.batch_add_history(
                    [{"memory_id": "m", "event": "UPDATE", "id": one} for one in ids]
                )
                kept = await history.ledger.checkpoint(KEY)
                assert (await history.ledger.prove(ids[7], kept)).record is not None
                report = await history.ledger.verify(kept)
                assert (report.is_intact, report.records) == (True, 400)
        finally:
            run_sql(url, "SET GLOBAL max_allowed_packet = 134217728")

    async def test_a_record_that_a_trigger_refuses_has_no_leaf(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async with opened(url) as history:
            await owner.exec_driver_sql(
                """CREATE TRIGGER refuse BEFORE INSERT ON async_history_records FOR EACH ROW
                   IF NEW.memory_id = 'refused' THEN SIGNAL SQLSTATE '45000'; END IF"""
            )
            await history.add_history("m", None, "likes tea", "ADD")
            for records in (1, 3):
                with pytest.raises(StorageError):
                    await history.batch_add_history(
                        [{"memory_id": "refused", "event": "ADD"}] * records
                    )
            await history.add_history("m", "likes tea", "likes milk", "UPDATE")
            report = await history.ledger.verify()
            assert report.is_intact
            assert (report.records, report.size) == (2, 3)  # and the start of the verification

    async def test_sql_modes_without_escapes(self, url: URL) -> None:
        mode = "SET SESSION sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'"
        engine = create_async_engine(
            url, connect_args={"init_command": mode}, isolation_level="AUTOCOMMIT"
        )
        async with open_history(engine=engine, ledger=True) as history:
            await fill(history)
            report = await history.ledger.verify(await history.ledger.checkpoint(KEY))
            assert report.is_intact
            assert report.unattested == ()
        await engine.dispose()


class TestRemovals:
    async def test_leaves_have_places_before_a_removal(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        """Even if the removal fails: placing all leaves in its transaction takes too long."""
        now = timedelta(0)
        removals: dict[str, Callable[[], Any]] = {
            "UPDATE ON async_history_records": lambda: history.erase(memory_ids=["m"], reason="a"),
            "DELETE ON async_history_records": lambda: history.prune(older_than=now, keep_last=0),
            "INSERT ON async_history_operations": lambda: history.reset(),
        }
        async with opened(url) as history:
            for change, remove in removals.items():
                await history.add_history("m", None, "likes tea", "ADD")
                assert await sizes(owner, "first IS NULL AND kind = 'record'") == [1]
                refuse = f"CREATE TRIGGER refuse BEFORE {change} FOR EACH ROW SIGNAL SQLSTATE "
                await owner.exec_driver_sql(f"{refuse} '45000'")
                with pytest.raises(StorageError):
                    await remove()
                assert await sizes(owner, "first IS NULL AND kind = 'record'") == []
                await owner.exec_driver_sql("DROP TRIGGER refuse")
            await history.reset()
            assert (await history.ledger.verify()).is_intact

    async def test_a_reset_removes_names_and_salts_but_those_of_operations(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async with opened(url) as history:
            await fill(history)
            kept = await history.ledger.checkpoint(KEY)
            await history.reset()
            report = await history.ledger.verify(kept)
            assert report.is_intact
            assert report.unattested_operations == 0
            assert history.store.ledger is not None
            leaves = await history.store.ledger.read(lambda tables: tables.leaves(range(kept.size)))
            assert {(leaf.name, leaf.is_erased) for leaf in leaves.values()} == {(None, True)}
            names = await fetched(owner, "SELECT count(*) FROM async_history_ledger_names")
            assert names[0][0] <= 6

    async def test_a_change_of_leaves_waits_for_writers(self, url: URL) -> None:
        """Even if only the log of operations is changed."""
        waiting = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        engine = create_async_engine(url)
        async with opened(url) as history, engine.connect() as writer:
            await operate(history)
            await writer.execute(text("UPDATE async_history_state SET last = last"))
            forgetting = asyncio.ensure_future(history.store.operations.forget_actor("bo"))
            while not forgetting.done() and not (await fetched(writer, waiting))[0][0]:
                # InnoDB refreshes its locks only after 0.1 s without a query.
                await asyncio.wait([forgetting], timeout=0.2)
            assert not forgetting.done()
            await writer.rollback()
            await forgetting
            report = await history.ledger.verify()
            assert (report.is_intact, report.unattested_operations) == (True, 0)
        await engine.dispose()

    async def test_a_forged_entry_does_not_change_what_a_checkpoint_covers(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async with opened(url) as history:
            record = await history.add_history("m", None, "likes tea", "ADD")
            kept = await history.ledger.checkpoint(KEY)
            await owner.execute(text("DELETE FROM async_history_records"))
            assert history.store.ledger is not None
            await history.store.ledger.write(lambda tables: prune(tables, [record.id], []))
            report = await history.ledger.verify(kept)
            assert (report.is_intact, report.records, report.pruned) == (True, 0, 1)


class TestOpening:
    async def test_no_ledger_is_added_where_migration_is_off(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async with SqlHistoryManager(url) as history:
            await history.add_history("m", None, "likes tea", "ADD", id="before")
            bytes_before = (await history.stats()).file_bytes
            with pytest.raises(InvalidInput, match="ledger=True"):
                _ = history.ledger
        with pytest.raises(MigrationError, match="has no ledger"):
            await opened(url, migrate=False)
        assert not await fetched(owner, "SHOW TABLES LIKE '%ledger%'")
        async with opened(url, create=False) as history:
            await history.add_history("m", "likes tea", "likes milk", "UPDATE")
        async with SqlHistoryManager(url, migrate=False) as other:
            await other.add_history("m", "likes milk", "likes ale", "UPDATE")
            report = await other.ledger.verify()
            assert (report.records, report.unattested) == (2, ("before",))
            bytes_now = (await other.stats()).file_bytes
            assert bytes_before is not None
            assert bytes_now is not None
            assert bytes_now >= bytes_before + 5 * 16_384, "three tables and two indexes"

    async def test_the_programs_own_migration_may_make_the_tables(
        self, url: URL, owner: AsyncConnection
    ) -> None:
        async with SqlHistoryManager(url):
            await owner.run_sync(ledger_metadata.create_all)
        async with opened(url, migrate=False) as history:
            await fill(history)
            assert (await history.ledger.verify()).unattested == ()
        assert await owner.run_sync(lambda one: len(inspect(one).get_table_names())) == 14

    async def test_decrypting_stops_if_a_ledger_was_added_meanwhile(self, url: URL) -> None:
        async with SqlHistoryManager(url, keys=ring("one")) as history:
            await history.add_history("m", None, "likes tea", "ADD")
            async with opened(url, keys=ring("one")) as other:
                await other.add_history("m", "likes tea", "likes milk", "UPDATE")
                with pytest.raises(InvalidInput, match="has a ledger"):
                    await other.encryption.decrypt()
            with pytest.raises(StorageError, match="given a ledger meanwhile"):
                await history.encryption.decrypt()
        async with opened(url, keys=ring("one")) as history:
            report = await history.ledger.verify()
            assert report.is_intact
            assert report.records == 1


async def test_verifying_continues_after_lost_connections(url: URL) -> None:
    others = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> "
    lost: list[asyncio.Future[int]] = []

    def lose() -> int:
        return len(kill_sessions(url, f"{others} connection_id()"))

    def lose_meanwhile(done: int, of: int) -> None:
        if not lost or lost[-1].done():
            lost.append(asyncio.ensure_future(asyncio.to_thread(lose)))

    async with opened(url) as history:
        for _ in range(8):
            await fill(history, 500)
        kept = await history.ledger.checkpoint(KEY)
        report = await history.ledger.verify(kept, on_progress=lose_meanwhile)
        assert sum(await asyncio.gather(*lost)) > 0
        assert report.is_intact, report.faults
        assert (report.records, report.unattested) == (await history.count_history(), ())


async def test_copies_to_and_from_a_file_have_leaves(url: URL, tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    async with open_history(file, ledger=True) as source, opened(url) as history:
        await fill(source)
        await copy_history(source, history)
        async with open_history(tmp_path / "back.db", ledger=True) as back:
            await copy_history(history, back)
            for one in (history, back):
                report = await one.ledger.verify(await one.ledger.checkpoint(KEY))
                assert report.is_intact
                assert (report.unattested, report.unattested_owners) == ((), 0)
                assert report.records == await source.count_history()
