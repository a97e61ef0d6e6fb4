"""Pruning on a server decides in sets; on a cluster the core decides record by record.

Both remove the same of the same histories, also of records without a time, in steps of any size.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from async_history import open_history
from async_history._core.removing.prune import PruneCursor, PruneReport, PruneStep, prune_in_steps
from async_history._core.removing.prune_request import PruneLimits, PruneRequest, new_prune_request
from async_history._core.removing.prune_transaction import PruneTries
from async_history._postgres.removing.prune import prune
from async_history._postgres.store import PostgresStore
from async_history.testing.model import pruned
from tests.contract.dated_changes import CUTOFF, change, everything
from tests.support.limits import limited
from tests.support.postgres_faults import until_more_wait, waiting_for_locks

pytestmark = [pytest.mark.postgres, pytest.mark.once]

SOME_UNDATED = "UPDATE {}.history SET occurred_at = NULL WHERE id = ANY($1::text[])"
LEFT = "SELECT id FROM {}.history ORDER BY seq"
SLOW_TRIGGER = """
CREATE FUNCTION {0}.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_catalog.pg_sleep(0.02); RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER DELETE ON {0}.history DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION {0}.slow()
"""
KEPT = (0, 1, 2, 3, 7)
"""Up to 4 each record's later ones are counted; for more each memory's first kept one is found."""


def some_changes(chance: random.Random) -> list[dict[str, Any]]:
    return [
        change(
            chance.choice("abc"),
            chance.choice(["ADD", "UPDATE", "UPDATE", "DELETE"]),
            chance.choice([300, 120, 100, 90, 10] if chance.random() < 0.5 else [300]),
        )
        for _ in range(chance.randrange(40))
    ]


async def pruned_on(
    connection: Any, schema: str, asked: PruneRequest, *, is_distributed: bool
) -> PruneReport:
    async def step(request: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        return await prune(
            connection,
            schema,
            (),
            request,
            reached,
            PruneTries[Any](),
            None,
            is_distributed=is_distributed,
        )

    return await prune_in_steps(step, asked, None)


async def test_sets_remove_what_the_core_decides(
    new_schema: Callable[[], str], postgres: str
) -> None:
    connection = await asyncpg.connect(postgres)
    async with open_history(new_schema()) as history, open_history(new_schema()) as other:
        assert isinstance(history.store, PostgresStore)
        assert isinstance(other.store, PostgresStore)
        schemas = (history.store.schema, other.store.schema)
        for seed in range(40):
            chance = random.Random(seed)  # noqa: S311 - a test's random choices
            changes = some_changes(chance)
            named = [one | {"id": f"id-{n}"} for n, one in enumerate(changes)]
            undated = chance.sample([one["id"] for one in named], len(named) * (seed % 3) // 4)
            for one, schema in ((history, schemas[0]), (other, schemas[1])):
                await one.reset()
                await one.batch_add_history(named)
                await connection.execute(SOME_UNDATED.format(schema), undated)
            size = chance.choice((3, 1_000))
            steps = PruneLimits(records=size, most_records=size, passed_over=2)
            for is_dry in (True, False):
                asked = new_prune_request(CUTOFF, KEPT[seed % 5], dry_run=is_dry, limits=steps)
                report, expected = [
                    await pruned_on(connection, schema, asked, is_distributed=is_distributed)
                    for schema, is_distributed in zip(schemas, (False, True), strict=True)
                ]
                assert report.records == expected.records, (seed, is_dry)
                assert report.memories_gone == expected.memories_gone, (seed, is_dry)
            left, expected_left = [
                [tuple(row) for row in await connection.fetch(LEFT.format(schema))]
                for schema in schemas
            ]
            assert left == expected_left, seed
    await connection.close()


@pytest.mark.parametrize("keep_last", [4, 5])
async def test_long_memories_in_one_step(new_schema: Callable[[], str], keep_last: int) -> None:
    async with open_history(new_schema()) as history:
        await history.batch_add_history([change(f"m{n % 7}", "UPDATE", 200) for n in range(600)])
        expected = pruned(await everything(history), CUTOFF, keep_last)
        report = await history.prune(older_than=CUTOFF, keep_last=keep_last)
        assert report.records == 600 - 7 * keep_last
        assert await everything(history) == expected


async def test_owners_go_with_the_last_record_of_their_memory(
    new_schema: Callable[[], str], postgres: str
) -> None:
    owned = {"owner": {"user_id": "ann"}}
    async with limited(
        open_history(new_schema()), prune=PruneLimits(records=3, most_records=3)
    ) as history:
        assert isinstance(history.store, PostgresStore)
        await history.batch_add_history(
            [change(f"m{n % 4}", "DELETE" if n > 9 else "UPDATE", 200) | owned for n in range(12)]
        )
        connection = await asyncpg.connect(postgres)
        report = await history.prune(older_than=CUTOFF)
        assert (report.records, report.memories_gone) == (10, 2)
        rows = await connection.fetch(
            f"SELECT memory_id FROM {history.store.schema}.owners ORDER BY 1"
        )
        assert [row["memory_id"] for row in rows] == ["m0", "m1"]
        await connection.close()


async def test_a_record_that_others_change_meanwhile_goes_with_its_memory(
    new_schema: Callable[[], str], postgres: str
) -> None:
    """If it stayed, the memory would return to an earlier state."""
    async with open_history(new_schema()) as history:
        assert isinstance(history.store, PostgresStore)
        await history.batch_add_history(
            [change("m", "ADD", 200), change("m", "UPDATE", 199), change("m", "DELETE", 198)]
        )
        owner, watching = [await asyncpg.connect(postgres) for _ in range(2)]
        before = await waiting_for_locks(watching)
        erasing = owner.transaction()
        await erasing.start()
        await owner.execute(
            f"UPDATE {history.store.schema}.history SET new_memory = NULL, user_id = 'x'"
            " WHERE event = 'ADD'"
        )
        pruning = asyncio.ensure_future(history.prune(older_than=CUTOFF, keep_last=5))
        await until_more_wait(watching, before)
        await erasing.commit()
        report = await pruning
        assert (report.records, report.memories_gone) == (3, 1)
        assert await history.get_history("m") == []
        await owner.close()
        await watching.close()


async def test_new_records_with_the_numbers_of_old_ones_stay(
    new_schema: Callable[[], str], postgres: str
) -> None:
    """After a switch from logical replication, numbers may be given out again."""
    async with open_history(new_schema()) as history:
        assert isinstance(history.store, PostgresStore)
        await history.batch_add_history([change("m", "UPDATE", 200) for _ in range(10)])
        connection = await asyncpg.connect(postgres)
        await connection.execute(
            f"ALTER TABLE {history.store.schema}.history ALTER COLUMN seq RESTART"
        )
        await connection.close()
        new = [change(f"new {n}", "UPDATE", days) for n, days in enumerate([1, 200] * 5)]
        await history.batch_add_history(new)
        assert (await history.prune(older_than=CUTOFF)).records == 9
        left = sorted(record.memory_id for record in await everything(history))
        assert left == ["m", *(f"new {n}" for n in range(10))]


async def test_writers_wait_for_triggers_at_the_commit_too(
    new_schema: Callable[[], str], postgres: str
) -> None:
    """So steps stay small if these are slow."""
    limits = PruneLimits(records=10, most_records=100, step_s=0.1)
    async with limited(open_history(new_schema()), prune=limits) as history:
        assert isinstance(history.store, PostgresStore)
        await history.batch_add_history([change("m", "UPDATE", 200) for _ in range(50)])
        connection = await asyncpg.connect(postgres)
        await connection.execute(SLOW_TRIGGER.format(history.store.schema))
        await connection.close()
        report = await history.prune(older_than=CUTOFF)
    assert (report.records, report.batches) == (49, 5)
