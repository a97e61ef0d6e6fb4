"""The cost of pruning and erasing grows with what they remove, on PostgreSQL.

Counted in the rows and index entries that statements read, including those of dead rows.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from async_history import HistoryManager, open_history
from async_history._core.records.records import COLUMNS
from async_history._core.removing.prune_request import PruneLimits
from async_history.postgres import PostgresHistoryManager
from tests.support.history_shapes import (
    GROWTH,
    LARGE,
    LONG_SHAPES,
    REMOVALS,
    SHAPES,
    SMALL,
    Call,
    Shape,
    above,
    by_two,
    moment,
    prune,
    row,
)

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_READ = """
SELECT (
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))
    FROM pg_stat_all_tables WHERE schemaname = $1
) + (SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE schemaname = $1)
"""
_NEEDED = 15
"""The first version whose counts can be read at any moment."""


async def read(owner: Any, history: HistoryManager, schema: str) -> int:
    """Return how many rows and entries the writer's connection has read so far."""
    assert isinstance(history, PostgresHistoryManager)
    await history.store.run_exclusively(
        lambda connection, *_: connection.execute("SELECT pg_stat_force_next_flush()")
    )
    return int(await owner.fetchval(_READ, schema))


async def measured(
    owner: Any, url: str, shape: Shape, size: int, calls: Mapping[str, Call]
) -> list[int]:
    schema = parse_qs(urlsplit(url).query)["schema"][0]
    taken: list[int] = []
    async with open_history(url) as history:
        await history.batch_add_history(
            [dict(zip(COLUMNS, shape(n), strict=True)) for n in range(size)]
        )
        for call in calls.values():
            before = await read(owner, history, schema)
            await call(history, size)
            taken.append(await read(owner, history, schema) - before)
    return taken


async def connected(postgres: str) -> Any:
    owner = await asyncpg.connect(postgres)
    if owner.get_server_version().major < _NEEDED:
        await owner.close()
        pytest.skip("this server reports its reads late")
    return owner


@pytest.mark.parametrize("shape", [name for name in LONG_SHAPES if not name.startswith("no time")])
async def test_pruning_and_erasing_grow_with_what_is_removed(
    new_schema: Callable[[], str], postgres: str, shape: str
) -> None:
    made = by_two(LONG_SHAPES[shape])
    owner = await connected(postgres)
    try:
        small = await measured(owner, new_schema(), made, SMALL, REMOVALS)
        large = await measured(owner, new_schema(), made, LARGE, REMOVALS)
    finally:
        await owner.close()
    pairs = zip(REMOVALS, small, large, strict=True)
    # The number of dead index entries that are read varies. A square would be 3 * GROWTH.
    assert not above({name: b / a for name, a, b in pairs}, 2 * GROWTH)


async def test_keeping_many_records_costs_no_more_than_keeping_one(
    new_schema: Callable[[], str], postgres: str
) -> None:
    calls = {str(keep_last): prune(keep_last) for keep_last in (1, 1_000)}
    owner = await connected(postgres)
    try:
        shape = SHAPES["as we write it"]
        one, many = await measured(owner, new_schema(), shape, LARGE, calls)
    finally:
        await owner.close()
    assert many < 2.5 * one


async def test_pruning_reads_little_but_what_may_be_removed(
    new_schema: Callable[[], str], postgres: str
) -> None:
    """If all have a time it does not read each one's next record, nor the newest in small steps.

    For a removed record it reads the row, the next row of the memory, the row again to remove it,
    and the position where a step ends, each by an index. Of the newest it reads each row.
    """
    kinds = ("UPDATE", "UPDATE", "DELETE")
    old, steps = LARGE // 4, 0

    def count(done: int, total: int) -> None:
        nonlocal steps
        steps += 1

    async def prune_old(history: HistoryManager, _: int) -> None:
        assert (await history.prune(older_than=moment(old), on_progress=count)).records == old

    owner = await connected(postgres)
    try:
        (rows,) = await measured(
            owner,
            new_schema(),
            lambda n: row(n, f"m{n % old}", moment(n).isoformat(), kinds[n % 3]),
            LARGE,
            {"prune": prune_old},
        )
    finally:
        await owner.close()
    assert steps <= old // PruneLimits().records + 2
    assert rows < 8.3 * old + 6 * (LARGE - old)
