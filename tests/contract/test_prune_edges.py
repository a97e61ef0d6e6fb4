"""A memory's last records stay, also if others remove some meanwhile; and on a cluster."""

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from async_history import HistoryManager, HistoryRecord, open_history
from async_history._core.removing.prune import PruneCursor, PruneStep, prune_in_steps
from async_history._core.removing.prune_request import PruneLimits, PruneRequest, new_prune_request
from async_history._core.removing.prune_transaction import PruneTries
from async_history._postgres.removing.prune import prune
from async_history._postgres.store import PostgresStore
from async_history.postgres import PostgresHistoryManager
from async_history.testing.model import pruned
from tests.contract.dated_changes import CUTOFF, change, everything
from tests.support.limits import limited

pytestmark = pytest.mark.once

OLD = 200
FEW = PruneLimits(records=3, most_records=3, passed_over=2)


def opened(where: str | Path, *, edges: int = 50_000) -> HistoryManager:
    """Open a history that is pruned in small steps."""
    return limited(open_history(where), prune=replace(FEW, edges=edges))


@contextmanager
def before_step(
    history: HistoryManager, number: int, call: Callable[[], Awaitable[None]]
) -> Iterator[None]:
    kind = type(history.store)
    taken = 0

    async def step(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        if taken == number:
            await call()
        taken += 1
        return await original(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        original = kind.prune_step
        patched.setattr(kind, "prune_step", step)
        yield


def texts(records: Sequence[HistoryRecord]) -> list[str | None]:
    return [record.new_memory for record in records]


async def test_last_records_that_others_remove_are_not_counted(tmp_path: Path) -> None:
    """Nor are other rows that got their rowids."""
    path = tmp_path / "h.db"
    async with opened(path) as history:
        await history.batch_add_history([change("m", "UPDATE", OLD, f"{n}") for n in range(9)])

        def remove_them() -> None:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("DELETE FROM history WHERE new_memory IN ('6', '7', '8')")

        async def remove() -> None:
            await asyncio.to_thread(remove_them)
            await history.batch_add_history([change("n", "UPDATE", OLD, "n")] * 3)

        with before_step(history, 1, remove):
            await history.prune(older_than=CUTOFF, keep_last=3)
        assert texts(await history.get_history("m")) == ["3", "4", "5"]
        assert texts(await history.get_history("n")) == ["n"] * 3


async def test_last_records_that_others_remove_from_a_server_are_not_counted(
    new_schema: Callable[[], str], postgres: str
) -> None:
    async with opened(new_schema()) as history:
        assert isinstance(history.store, PostgresStore)
        schema = history.store.schema
        await history.batch_add_history([change("m", "UPDATE", OLD, f"{n}") for n in range(9)])

        async def remove() -> None:
            owner = await asyncpg.connect(postgres)
            sql = f"DELETE FROM {schema}.history WHERE new_memory IN ('6', '7', '8')"
            await owner.execute(sql)
            await owner.close()

        with before_step(history, 1, remove):
            await history.prune(older_than=CUTOFF, keep_last=3)
        assert texts(await history.get_history("m")) == ["3", "4", "5"]


async def test_many_memories_are_pruned_with_few_edges_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path / "h.db", edges=2) as history:
        await history.batch_add_history(
            [change(f"m{n % 5}", "UPDATE", OLD, f"{n}") for n in range(40)]
        )
        expected = pruned(await everything(history), CUTOFF, 3)
        await history.prune(older_than=CUTOFF, keep_last=3)
        assert await everything(history) == expected


def some_changes(seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)  # noqa: S311 - a test's random choices
    return [
        change(
            chance.choice("abc"),
            chance.choice(["ADD", "UPDATE", "UPDATE", "DELETE"]),
            chance.choice([300, 120, 90, 10]),
        )
        for _ in range(chance.randrange(25))
    ]


async def test_on_a_cluster_no_statement_has_a_subquery(
    new_schema: Callable[[], str], postgres: str
) -> None:
    """Citus cannot plan some. Tried on one server, with the same result."""
    sent: list[str] = []
    connection = await asyncpg.connect(postgres)
    connection.add_query_logger(lambda query: sent.append(query.query))
    async with open_history(new_schema()) as history:
        assert isinstance(history.store, PostgresStore)
        schema = history.store.schema

        async def step(asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
            return await prune(
                connection, schema, (), asked, reached, PruneTries(), None, is_distributed=True
            )

        for seed in range(30):
            await history.reset()
            await history.batch_add_history(some_changes(seed))
            before = await everything(history)
            expected = pruned(before, CUTOFF, seed % 4)
            for is_dry in (True, False):
                asked = new_prune_request(CUTOFF, seed % 4, dry_run=is_dry, limits=FEW)
                report = await prune_in_steps(step, asked, None)
                assert report.records == len(before) - len(expected)
            assert await everything(history) == expected
    await connection.close()
    selects = [sql for sql in sent if ".history" in sql]
    assert any("OFFSET" in sql for sql in selects)
    assert not [sql for sql in selects if sql.count("SELECT") + sql.count("DELETE FROM") > 1]


async def test_a_cutoff_outside_of_the_drivers_range(new_schema: Callable[[], str]) -> None:
    async with opened(new_schema()) as history:
        await history.batch_add_history([change("m", "UPDATE", OLD)] * 3)
        far = datetime(9999, 12, 31, tzinfo=UTC) - timedelta(microseconds=1)
        assert (await history.prune(older_than=far)).records == 2


async def test_records_are_found_by_id_alone_where_that_is_enough(
    new_schema: Callable[[], str],
) -> None:
    """Comparing each with a list of 500 memories took most of the server's time for a step."""
    given: list[tuple[str, Sequence[Any]]] = []
    async with open_history(new_schema()) as history:
        assert isinstance(history, PostgresHistoryManager)
        await history.batch_add_history([*some_changes(1), change("m", "ADD", OLD)])
        connection = history.store.connections._writing._connection
        connection.add_query_logger(lambda query: given.append((query.query, query.args or ())))
        await history.erase(memory_ids=["m"], reason="asked", vacuum=False)
    by_id = [arguments for sql, arguments in given if "id = ANY($1" in sql and len(arguments) > 1]
    assert by_id
    assert all(len(ids) > 0 and memory_ids is None for ids, memory_ids in by_id)
