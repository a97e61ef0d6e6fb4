"""Pages on PostgreSQL cost what they return: buffers read in a small and in a large history.

Every filter but a text's, in either order, at times and cursors; with custom and generic plans;
before the table has statistics, with them, and after a removal that was not vacuumed.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import chain, islice
from secrets import token_hex
from typing import Any

import pytest

from async_history import open_history
from async_history._core.reading.filters import new_filter
from async_history._postgres.reading.time_chunks import CHUNK_BITS
from tests.support.postgres_plans import IN_ORDER, SHUFFLED, Explainer, fill, fill_alike
from tests.support.questions import FULL_PAGE, START, Question, alike, of_owners, questions, scans

pytestmark = [pytest.mark.postgres, pytest.mark.once]

NOTHING: Any = dict.fromkeys(("memory_id", "actor_id", "role", "event", "text"))
SMALL, LARGE, NIGHTLY = 10_000, 60_000, 300_000
MORE = 200
"""Buffers that a page of the large history may read beyond twice those of the small one. Rows of
the small history share pages; in the large one each lies on its own page."""
A_CHUNK = 8
"""More for each chunk of the history, for a query by time: two statements check in the index of
times whether the chunk has a record of that time, with three pages of the index and a row."""
A_REMOVED = 1 / 80
"""More for each removed row until it is vacuumed: its index entries stay, and the pages of a few
indexes are passed over."""


async def buffers(
    connection: Any,
    schemas: dict[int, str],
    asked: Callable[[int], Iterable[Question]],
    *,
    is_generic: bool,
    has_removed: bool = False,
) -> dict[str, list[int]]:
    """Return the buffers that the page of each query reads, in each history of so many rows."""
    read: dict[str, list[int]] = {}
    for rows, schema in schemas.items():
        explainer = Explainer(connection, schema, is_generic=is_generic)
        for question in asked(rows):
            if has_removed:
                await explainer.page(question)  # the first reader marks dead rows
            read.setdefault(question.name, []).append(await explainer.page(question))
    return read


async def grown(
    connection: Any,
    schemas: dict[int, str],
    asked: Callable[[int], Iterable[Question]],
    *,
    is_generic: bool,
    removed: int = 0,
) -> str:
    """Return the queries of a history of so many rows whose pages cost too much."""
    read = await buffers(connection, schemas, asked, is_generic=is_generic, has_removed=removed > 0)
    more = MORE + A_CHUNK * (max(schemas) >> CHUNK_BITS) + A_REMOVED * removed
    most = {name: (one, other) for name, (one, other) in read.items() if other > 2 * one + more}
    return "\n".join(f"{name}: {one} and {other}" for name, (one, other) in most.items())


def every(step: int, rows: int) -> Iterable[Question]:
    """Return every `step`th of the queries, beginning with the first."""
    return islice(chain(questions(rows), of_owners(rows)), 0, None, step)


@pytest.mark.parametrize(
    ("large", "steps"),
    [
        (LARGE, (23, 29, 19, 31, 29, 37)),
        pytest.param(NIGHTLY, [1] * 6, marks=pytest.mark.nightly),
    ],
    ids=["some", "all"],
)
@pytest.mark.parametrize("seconds", [IN_ORDER, SHUFFLED], ids=["in order", "shuffled"])
async def test_a_page_costs_the_same(
    url: str, connection: Any, seconds: str, large: int, steps: Sequence[int]
) -> None:
    schemas = {rows: f"of_{rows}_{token_hex(4)}" for rows in (SMALL, large)}
    for rows, schema in schemas.items():
        async with open_history(url, schema=schema):
            pass
        await fill(connection, schema, rows, seconds)
    asked = (partial(every, step) for step in steps)
    for is_generic in (False, True):
        assert not await grown(connection, schemas, next(asked), is_generic=is_generic)
    for schema in schemas.values():
        await connection.execute(f"ANALYZE {schema}.history")
    for is_generic in (False, True):
        assert not await grown(connection, schemas, next(asked), is_generic=is_generic)
    for rows, schema in schemas.items():
        await connection.execute(f"DELETE FROM {schema}.history WHERE seq < {rows} * 0.4")
    for is_generic in (False, True):
        assert not await grown(
            connection,
            schemas,
            next(asked),
            is_generic=is_generic,
            removed=large * 2 // 5,
        )


async def test_a_page_without_a_time_costs_at_most_twice(url: str, connection: Any) -> None:
    """Nothing is allowed beyond that, before and after ANALYZE.

    A query by time also looks into each chunk, and reads one from its end: see `A_CHUNK`. Of a
    user's agent, the two histories have different records.
    """
    schemas = {rows: f"timeless_{rows}_{token_hex(4)}" for rows in (SMALL, LARGE)}
    for rows, schema in schemas.items():
        async with open_history(url, schema=schema):
            """It makes the tables."""
        await fill(connection, schema, rows, IN_ORDER)

    def without_time(rows: int) -> Iterable[Question]:
        of_all = (one for one in questions(rows) if "a user's agent" not in one.name)
        return [one for one in of_all if (one.wanted.since, one.wanted.until) == (None, None)]

    for has_statistics in (False, True):
        if has_statistics:
            for schema in schemas.values():
                await connection.execute(f"ANALYZE {schema}.history")
        for is_generic in (False, True):
            read = await buffers(connection, schemas, without_time, is_generic=is_generic)
            assert {name: took for name, took in read.items() if took[1] > 2 * took[0]} == {}


@pytest.mark.parametrize("is_one", [False, True], ids=["a memory each", "one memory"])
async def test_a_full_page_reads_no_more_rows_than_it_has(
    url: str, connection: Any, is_one: bool
) -> None:
    rows = 2 * SMALL
    schema = f"alike_{token_hex(4)}"
    async with open_history(url, schema=schema):
        pass  # opening makes the tables
    await fill_alike(connection, schema, rows, is_one=is_one)
    found: dict[str, int] = {}
    for is_known in (False, True):
        if is_known:
            await connection.execute(f"ANALYZE {schema}.history")
        explainer = Explainer(connection, schema, is_generic=is_known)
        for question in alike(rows, is_one=is_one):
            await explainer.page(question, FULL_PAGE)
            found[question.name] = max(found.get(question.name, 0), explainer.rows)
    assert {name: read for name, read in found.items() if read > FULL_PAGE + MORE} == {}


@pytest.mark.parametrize(
    "steps",
    [(11, 13), pytest.param((1, 1), marks=pytest.mark.nightly)],
    ids=["some", "all"],
)
async def test_a_page_with_a_scan_size_reads_no_more_rows(
    url: str, connection: Any, steps: Sequence[int]
) -> None:
    """Whatever is looked for, and in whichever list."""
    scan = 400
    schema = f"scanned_{token_hex(4)}"
    async with open_history(url, schema=schema):
        pass  # opening makes the tables
    await fill(connection, schema, SMALL)
    for is_generic, step in zip((False, True), steps, strict=True):
        explainer = Explainer(connection, schema, is_generic=is_generic)
        too_many: dict[str, int] = {}
        for question in islice(scans(SMALL, scan), 0, None, step):
            await explainer.page(question)
            if explainer.rows > 2 * scan + MORE:
                too_many[question.name] = explainer.rows
        assert too_many == {}


async def test_one_version_of_a_long_memory_reads_one_record(url: str, connection: Any) -> None:
    rows = 2 * SMALL
    schema = f"long_{token_hex(4)}"
    async with open_history(url, schema=schema):
        pass  # opening makes the tables
    await fill_alike(connection, schema, rows, is_one=True)
    for is_known in (False, True):
        if is_known:
            await connection.execute(f"ANALYZE {schema}.history")
        for when, number in ((3, 3), (START + timedelta(seconds=rows - 3), rows - 3)):
            explainer = Explainer(connection, schema, is_generic=is_known)
            found = await explainer.reader.last_change("m", when)
            assert found is not None
            assert found.id == f"id-{number}"
            assert explainer.rows < 20


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_a_time_without_records_is_looked_up_in_many_chunks_at_once(
    url: str, connection: Any, order: Any
) -> None:
    chunks = 200  # as many as 3 million records have
    schema = f"sparse_{token_hex(4)}"
    async with open_history(url, schema=schema):
        pass  # opening makes the tables
    await connection.execute(
        f"INSERT INTO {schema}.history (seq, id, memory_id, event, is_deleted, occurred_at)"
        f" OVERRIDING SYSTEM VALUE SELECT n::bigint << {CHUNK_BITS}, 'id-' || n, 'm', 'ADD', false,"
        f" '{START.isoformat()}' FROM generate_series(1, {chunks}) AS n"
    )
    year = timedelta(days=365)
    wanted = new_filter(**NOTHING, since=START + year, until=START + 2 * year, order=order)
    explainer = Explainer(connection, schema)
    await explainer.page(Question("next year", wanted))
    (plan,) = explainer.plans
    lookups = next(part for part in plan["Plan"]["Plans"] if part.get("Subplan Name") == "CTE run")
    assert lookups["Actual Rows"] == 1


async def test_an_erasure_leaves_statistics(url: str, connection: Any) -> None:
    schema = f"erased_{token_hex(4)}"
    async with open_history(url, schema=schema) as history:
        await fill(connection, schema, 1_000)
        await history.erase(memory_ids=["large"], reason="measured")
        known = "SELECT count(*) FROM pg_stats WHERE schemaname = $1 AND tablename = 'history'"
        assert await connection.fetchval(known, schema)


@pytest.mark.parametrize("seconds", [IN_ORDER, SHUFFLED], ids=["in order", "shuffled"])
async def test_memories_at_an_early_instant_reads_the_memories_of_that_time(
    url: str, connection: Any, seconds: str
) -> None:
    schema = f"early_{token_hex(4)}"
    early = START + timedelta(seconds=50)
    async with open_history(url, schema=schema) as history:
        await fill(connection, schema, 2 * SMALL, seconds)
        await connection.execute(f"DELETE FROM {schema}.history WHERE occurred_at IS NULL")
        latest: dict[str, Any] = {}
        async for record in history.query_history():
            if record.occurred_at is not None and record.occurred_at <= early:
                latest[record.memory_id] = record
        there = {record.id for record in latest.values() if not record.is_deleted}
        for is_known in (False, True):
            if is_known:
                await connection.execute(f"ANALYZE {schema}.history")
            assert {record.id async for record in history.memories_at(early)} == there
            explainer = Explainer(connection, schema)
            await explainer.memories_at(early)
            assert explainer.rows < 300
            await explainer.memories_at(START + timedelta(days=1))
            assert explainer.rows < 2 * SMALL + 2_000
        last = datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))
        assert len([record async for record in history.memories_at(last)]) == 600


async def test_events_and_roles_that_share_a_number_are_distinguished(
    url: str, connection: Any
) -> None:
    """An index has an event's first letter and a part of a role's hash."""
    schema = f"alike_{token_hex(4)}"
    async with open_history(url, schema=schema) as history:
        one, other = await connection.fetchrow(
            "SELECT min(role), max(role) FROM generate_series(1, 40000) AS n,"
            " LATERAL (SELECT 'r' || n AS role) AS named"
            " GROUP BY hashtext(role) & 16777215 HAVING count(*) > 1 LIMIT 1"
        )
        kinds = [(e, r) for e in ("ADD", "ADDED", "UPDATE") for r in (one, other, "user", None)]
        # The first records of a kind come long after others of the same number.
        placed = [kind for kind in kinds for _ in range(150)] + kinds * 5
        await connection.executemany(
            f"INSERT INTO {schema}.history (id, memory_id, event, is_deleted, actor_id, role)"
            " VALUES ($1, 'm' || $2::int % 7, $3, false, 'a' || $2::int % 3, $4)",
            [(f"id-{n}", n, *kind) for n, kind in enumerate(placed)],
        )
        for event in (None, "ADD", "UPDATE"):
            for role in (None, one, other, "user"):
                for actor in (None, 1):
                    expected = [
                        f"id-{n}"
                        for n, kind in enumerate(placed)
                        if event in (None, kind[0])
                        and role in (None, kind[1])
                        and actor in (None, n % 3)
                    ]
                    asked: dict[str, Any] = {"event": event, "role": role}
                    asked["actor_id"] = None if actor is None else f"a{actor}"
                    first = history.query_history(**asked, page_size=40)
                    assert [record.id async for record in first] == expected
                    last = history.query_history(**asked, page_size=40, order="newest")
                    assert [record.id async for record in last] == expected[::-1]
