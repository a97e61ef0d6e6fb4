"""The ledger of a history on PostgreSQL: what only a server has, and which changes are found."""

import asyncio
from datetime import timedelta
from typing import Any, Final

import pytest

from async_history import InvalidInput, MigrationError, StorageDenied, open_history
from async_history._postgres.grants import Grants, Level, grant
from async_history._postgres.schema import migrations
from tests.ledger.ledgers import KEY, OWNER, fill, leaves_of, opened, operate, what_is_found
from tests.support.keys import ring
from tests.support.postgres_roles import (
    ROLE_PASSWORD,
    as_role,
    make_records,
    remove,
    server_of,
    take_back,
)
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.once]


async def small(url: str) -> None:
    async with opened(url) as history:
        for number in range(12):
            await history.add_history(
                f"m{number % 3}", None, f"likes {number}", "ADD", id=str(number), owner=OWNER
            )


class TestTampering:
    async def test_each_change_of_a_row_is_found_and_nothing_else(
        self, url: str, owner: Any
    ) -> None:
        await small(url)
        async with opened(url) as history:
            kept = await history.ledger.checkpoint(KEY)
            for table, column, value in (
                *(("history", name, "'x'") for name in ("old_memory", "new_memory", "event")),
                *(("history", name, "'x'") for name in ("created_at", "updated_at", "actor_id")),
                *(("history", name, "'{}'") for name in ("context", "cause")),
                ("history", "role", "'x'"),
                ("history", "is_deleted", "true"),
                ("history", "user_id", "'eve'"),
                ("history", "agent_id", "NULL"),
                ("history", "app_id", "'x'"),
                ("history", "memory_id", "'m9'"),
            ):
                async with owner.transaction():
                    before = await owner.fetchval(f"SELECT {column} FROM {table} WHERE id = '4'")
                    await owner.execute(f"UPDATE {table} SET {column} = {value} WHERE id = '4'")
                assert ("changed", "4") in what_is_found(await history.ledger.verify(kept)), column
                await owner.execute(f"UPDATE {table} SET {column} = $1 WHERE id = '4'", before)
            assert (await history.ledger.verify(kept)).is_intact

    async def test_rows_that_are_inserted_dropped_or_moved_to_another_memory_are_found(
        self, url: str, owner: Any
    ) -> None:
        await small(url)
        async with opened(url) as history:
            kept = await history.ledger.checkpoint(KEY)
            await owner.execute(
                "INSERT INTO history (id, memory_id, event, is_deleted)"
                " VALUES ('x', 'x', 'ADD', false)"
            )
            report = await history.ledger.verify(kept)
            assert report.is_intact
            assert report.unattested == ("x",)
            await owner.execute("UPDATE history SET user_id = 'eve' WHERE id = 'x'")
            assert (await history.ledger.verify(kept)).unattested_owners == 1
            await owner.execute("DELETE FROM history WHERE id = '4'")
            assert ("lost", "4") in what_is_found(await history.ledger.verify(kept))
            await owner.execute("UPDATE owners SET run_id = 'eve' WHERE memory_id = 'm0'")
            assert ("changed", "m0") in what_is_found(await history.ledger.verify(kept))

    async def test_a_change_of_the_order_is_found(self, url: str, owner: Any) -> None:
        await small(url)
        places = "SELECT seq FROM history WHERE id = ANY($1) ORDER BY seq"
        first, other = [row[0] for row in await owner.fetch(places, ["2", "8"])]
        swap = "UPDATE history SET seq = {} WHERE id = '{}'"
        await owner.execute("ALTER TABLE history ALTER COLUMN seq DROP IDENTITY")
        for record_id, seq in (("2", other), ("8", first)):
            await owner.execute(swap.format(seq, record_id))
        async with opened(url, migrate=False) as history:
            assert {kind for kind, _ in what_is_found(await history.ledger.verify())} == {"moved"}

    async def test_changes_of_the_log_are_found(self, url: str, owner: Any) -> None:
        async with opened(url) as history:
            restored = (await operate(history))[0].id
            for column, value in (("database_role", "eve"), ("actor_id", None), ("kind", "prune")):
                before = await owner.fetchval(
                    f"SELECT {column} FROM operations WHERE id = $1", restored
                )
                change = f"UPDATE operations SET {column} = $1 WHERE id = $2"
                await owner.execute(change, value, restored)
                assert what_is_found(await history.ledger.verify()) == {
                    ("changed", restored),
                    ("operations", None),
                }, column
                await owner.execute(change, before, restored)
            await owner.execute("UPDATE operations SET ended_at = now() WHERE id = $1", restored)
            assert what_is_found(await history.ledger.verify()) == {
                ("changed", restored),
                ("operations", None),
            }

    @pytest.mark.parametrize(
        "change",
        [
            "DELETE FROM history_ledger WHERE first = 4",
            "UPDATE history_ledger SET hashes = substr(hashes, 2) WHERE first = 4",
            "UPDATE history_ledger SET names = '[null]' WHERE first = 4",
            "UPDATE history_ledger_tiles SET hashes = hashes || hashes WHERE number = 1",
            "DELETE FROM history_ledger_tiles",
        ],
    )
    async def test_changes_of_the_ledgers_tables_are_found(
        self, url: str, owner: Any, change: str
    ) -> None:
        await small(url)
        async with opened(url) as history:
            kept = await history.ledger.checkpoint(KEY)
            await owner.execute(change)
            report = await history.ledger.verify(kept)
            harmless = "hashes || hashes" in change  # tile 1 does not exist
            assert report.is_intact == harmless


class TestTransactions:
    async def test_leaves_come_and_go_with_their_transaction(self, url: str, owner: Any) -> None:
        async with opened(url) as history:
            one = [{"memory_id": "t", "event": "ADD", "id": "kept", "owner": OWNER}]
            other = [{"memory_id": "t", "event": "UPDATE", "id": "gone"}]
            async with owner.transaction():
                await history.add_in_transaction(owner, one)
            transaction = owner.transaction()
            await transaction.start()
            await history.add_in_transaction(owner, other)
            await transaction.rollback()
            report = await history.ledger.verify()
            assert report.is_intact
            assert (report.records, report.owners, report.unattested_owners) == (1, 1, 0)

    async def test_a_leaf_that_commits_late_comes_after_those_with_places(
        self, url: str, owner: Any
    ) -> None:
        async with opened(url) as history:
            await history.add_history("m", None, "likes tea", "ADD")
            kept = [await history.ledger.checkpoint(KEY)]
            async with owner.transaction():
                await history.add_in_transaction(
                    owner, [{"memory_id": "late", "event": "ADD", "id": "late"}]
                )
                for number in range(3):
                    await history.add_history("m", "likes tea", f"likes {number}", "UPDATE")
                    kept.append(await history.ledger.checkpoint(KEY))
                with pytest.raises(InvalidInput, match="no leaf"):
                    await history.ledger.prove("late", kept[-1])
            kept.append(await history.ledger.checkpoint(KEY))
            (await history.ledger.prove("late", kept[-1])).require_proven()
            report = await history.ledger.verify(*kept)
            assert report.is_intact, report.faults
            assert report.records == 5
            await history.ledger.prove_growth(kept[0], kept[-1])

    async def test_writers_do_not_wait_while_leaves_are_placed(self, url: str, owner: Any) -> None:
        async with opened(url) as history:
            assert history.store.ledger is not None
            async with owner.transaction():
                await owner.execute(history.store.ledger.attestation.lock)
                await fill(history)
            assert (await history.ledger.verify()).is_intact

    async def test_a_batch_takes_one_round_trip(self, url: str) -> None:
        sent: list[str] = []
        batch = [{"memory_id": f"m{n}", "event": "ADD"} for n in range(80)]
        owned = [{**one, "memory_id": f"o{n}", "owner": OWNER} for n, one in enumerate(batch)]
        async with opened(url) as history:
            await history.batch_add_history(owned[:1])

            async def hear(connection: Any, *_: object) -> None:
                connection.add_query_logger(lambda query: sent.append(query.query))

            await history.store.run_exclusively(hear)
            for records in (batch, batch[:1], [{**one, "memory_id": "x"} for one in owned]):
                sent.clear()
                await history.batch_add_history(records)
                assert len(sent) == 1, sent
            assert (await history.ledger.verify()).unattested == ()

    async def test_a_large_call_has_bundles_of_the_usual_size(self, url: str, owner: Any) -> None:
        async with opened(url) as history:
            await history.batch_add_history(
                [{"memory_id": f"m{n}", "event": "ADD", "owner": OWNER} for n in range(1_100)]
            )
            report = await history.ledger.verify()
            assert (report.records, report.owners, report.unattested) == (1_100, 1_100, ())
        sizes = "SELECT array_agg(DISTINCT size ORDER BY size) FROM history_ledger"
        assert await owner.fetchval(f"{sizes} WHERE kind IN ('record', 'owner')") == [76, 512]

    async def test_a_record_that_a_trigger_refuses_has_no_leaf(self, url: str, owner: Any) -> None:
        async with opened(url) as history:
            await owner.execute(
                """CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RETURN NULL; END $$;
                   CREATE TRIGGER leave_out BEFORE INSERT ON history FOR EACH ROW
                   WHEN (NEW.memory_id = 'refused') EXECUTE FUNCTION leave_out()"""
            )
            for records in (1, 3):
                with pytest.raises(Exception, match="trigger"):
                    await history.batch_add_history(
                        [{"memory_id": "refused", "event": "ADD"}] * records
                    )
            await history.add_history("m", None, "likes tea", "ADD")
            report = await history.ledger.verify()
            assert report.is_intact
            assert (report.records, report.size) == (1, 2)  # and the start of the verification


class TestReset:
    async def test_a_reset_removes_names_and_salts_but_those_of_operations(
        self, url: str, owner: Any
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
            operations = [one.id for one in await history.operations()]
            begun = await history.store.ledger.read(
                lambda tables: tables.places("begun", operations)
            )
            assert len(begun) == len(operations)
            assert await owner.fetchval("SELECT count(*) FROM history_ledger_names") <= 6


async def test_salts_are_removed_from_the_tables_file_as_texts_are(url: str, owner: Any) -> None:
    file = "pg_read_binary_file(pg_relation_filepath('history_ledger'))"
    async with opened(url) as history:
        for text in ("likes tea", "likes milk"):
            await history.add_history("m", None, text, "ADD")
        size = (await history.ledger.checkpoint(KEY)).size
        salts = [leaf.kept for leaf in (await leaves_of(history, size)).values()]
        await owner.execute("CHECKPOINT")
        assert await owner.fetchval(f"SELECT position($1 IN {file}) > 0", salts[0])
        report = await history.erase(memory_ids=["m"], reason="asked", vacuum="full")
        await owner.execute("CHECKPOINT")
        assert not await owner.fetchval(f"SELECT position($1 IN {file}) > 0", salts[0])
        assert not [one for one in report.remains if "not vacuumed" in one]


class TestOpening:
    async def test_no_ledger_is_added_where_migration_is_off(self, url: str, owner: Any) -> None:
        async with open_history(url) as history:
            await history.add_history("m", None, "likes tea", "ADD", id="before")
            with pytest.raises(InvalidInput, match="ledger=True"):
                _ = history.ledger
        with pytest.raises(MigrationError, match="has no ledger"):
            await opened(url, migrate=False)
        assert not await migrations.has_ledger(owner, schema_of(url))
        async with opened(url, create=False) as history:
            await history.add_history("m", "likes tea", "likes milk", "UPDATE")
        async with open_history(url, migrate=False) as other:
            await other.add_history("m", "likes milk", "likes ale", "UPDATE")
            report = await other.ledger.verify()
            assert (report.records, report.unattested) == (2, ("before",))

    async def test_a_taken_table_name_is_named(self, url: str, owner: Any) -> None:
        async with open_history(url):
            await owner.execute("CREATE TABLE history_ledger (number int)")
        with pytest.raises(MigrationError, match="history_ledger"):
            await opened(url)
        async with open_history(url) as history:
            await history.add_history("m", None, "likes tea", "ADD")

    async def test_a_cluster_has_no_ledger(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def is_distributed(*_: object) -> bool:
            return True

        async with open_history(url):
            pass
        monkeypatch.setattr(migrations, "is_distributed", is_distributed)
        with pytest.raises(InvalidInput, match="Citus"):
            await opened(url)

    async def test_a_role_needs_rights(self, url: str, owner: Any) -> None:
        await small(url)
        await owner.execute(f"CREATE ROLE attested LOGIN PASSWORD '{ROLE_PASSWORD}'")
        levels: tuple[Level, ...] = ("writer", "operator")
        try:
            for level in levels:
                wanted = Grants(role="attested", level=level)
                await grant(server_of(url), schema_of(url), wanted, is_dry_run=False)
                async with open_history(as_role(url, "attested")) as history:
                    await history.add_history("m", None, "likes tea", "ADD")
                    await make_records(history)
                    await take_back(history)
                    if level == "operator":
                        await history.ledger.checkpoint(KEY)
                        await remove(history)
                        assert (await history.ledger.verify()).is_intact
                    else:
                        with pytest.raises(StorageDenied):
                            await history.ledger.checkpoint(KEY)
        finally:
            await owner.execute("DROP OWNED BY attested; DROP ROLE attested")


async def test_a_ledger_of_an_encrypted_history_attests_records_in_clear(
    url: str, owner: Any
) -> None:
    async with opened(url, keys=ring("one")) as history:
        await fill(history)
        kept = await history.ledger.checkpoint(KEY)
        assert '"lives there"' in str(await history.ledger.prove("given", kept))
        total = await history.count_history()
        assert await owner.fetchval(
            "SELECT bool_and(is_keyed) FROM history_ledger WHERE kind='record'"
        )
    async with opened(url, keys=ring("two", "one")) as history:
        await history.encryption.rotate_keys()
        report = await history.ledger.verify(kept)
        assert report.is_intact
        assert (report.records, report.unattested) == (total, ())
        await owner.execute("UPDATE history SET new_memory = 'clear' WHERE memory_id = 'm1'")
        assert {kind for kind, _ in what_is_found(await history.ledger.verify(kept))} == {"changed"}
        erased = await history.erase(user_id="ann", reason="asked")
        report = await history.ledger.verify(kept)
        assert report.erased == erased.records


async def test_without_a_ledger_its_tables_are_not_used(url: str, owner: Any) -> None:
    async with open_history(url) as history:
        await history.add_history("m", None, "likes tea", "ADD")
        await history.erase(memory_ids=["m"], reason="asked")
        await history.reset()
    assert not await migrations.has_ledger(owner, schema_of(url))


async def test_verifying_continues_after_lost_connections(url: str, owner: Any) -> None:
    async with opened(url) as history:
        for part in range(4):
            await fill(history, 500)
            record = {"memory_id": "m", "new_memory": f"{part}", "event": "ADD"}
            await history.batch_add_history([record] * 8_000)
        kept = await history.ledger.checkpoint(KEY)
        undisturbed = await history.ledger.verify(kept)

        def lose(done: int, of: int) -> None:
            ended.append(asyncio.ensure_future(owner.fetchval(_END_OTHERS)))

        ended: list[asyncio.Future[int]] = []
        report = await history.ledger.verify(kept, on_progress=lose)
        assert sum(await asyncio.gather(*ended[:1])) > 0
        assert report.is_intact, report.faults
        assert report.unattested == ()
        assert report.records == undisturbed.records


_END_OTHERS: Final = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'
"""


async def test_a_ledger_where_backslashes_escape(url: str, owner: Any) -> None:
    database = await owner.fetchval("SELECT current_database()")
    async with opened(url) as history:
        await fill(history)
        await history.reset()
        before = await history.ledger.verify()
    await owner.execute(f'ALTER DATABASE "{database}" SET standard_conforming_strings = off')
    try:
        async with opened(url) as history:
            await fill(history)
            await history.prune(older_than=timedelta(), keep_last=1)
            await history.reset()
            report = await history.ledger.verify()
    finally:
        await owner.execute(f'ALTER DATABASE "{database}" RESET standard_conforming_strings')
    assert report.is_intact, report.faults
    assert report.reset > before.reset
