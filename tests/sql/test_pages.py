"""Pages and counts on MariaDB cost what they return: rows and index entries read, in a small and in
a large history, before the tables have statistics and with them.

Left out: two names, or a name and an event, that are both frequent and never together. Such a
query reads all marks of the rarer name, or all records of the name.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any

import asyncmy
import pytest
from sqlalchemy.engine import URL

from async_history._sql.tables import SPAN_BITS
from async_history.sql import SqlHistoryManager
from tests.support.mariadb_plans import fill, read_page, reads
from tests.support.questions import START, questions, scans

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

SMALL, LARGE, NIGHTLY = 10_000, 66_400, 304_000
"""Their middles are at the same place of a span, or before; the user has records with the agent."""
MORE = 20
"""Rows that the large history may read beyond twice those of the small one and its spans."""
OF_A_USER = 250
"""The same for a user's records. There are 100 in any history, and the server may read the marks of
all of them, or only those of a second name."""

Call = Callable[[], Awaitable[object]]


def pages(history: SqlHistoryManager, rows: int) -> Iterator[tuple[str, Call]]:
    """Yield the page of every query."""
    for question in questions(rows):
        if "not together" not in question.name:
            yield question.name, partial(read_page, history, question)


def counts(history: SqlHistoryManager, rows: int) -> Iterator[tuple[str, Call]]:
    """Yield the counts that read many records in any history."""
    middle = START + timedelta(seconds=rows / 2)
    moments = {"since": middle, "until": middle + timedelta(seconds=10)}
    cases: dict[str, dict[str, Any]] = {
        "of a memory": {"memory_id": "m77"},
        "of ten memories": {"memory_id": [f"m{n}" for n in range(10)]},
        "of a user": {"user_id": "u7"},
        "of a user's events": {"user_id": "u7", "event": "UPDATE"},
        "of a request": {"cause": {"request_id": "7"}},
        "of ten seconds": moments,
        "of an event in ten seconds": {**moments, "event": "ADD"},
        "of an actor in ten seconds": {**moments, "actor_id": "a7"},
        "of a memory in ten seconds": {**moments, "memory_id": "large"},
        "of memories in ten seconds": {**moments, "memory_id": ["large", "m77"]},
        "of the last seconds": {"since": START + timedelta(seconds=rows - 9)},
    }
    for name, wanted in cases.items():
        yield f"the count {name}", partial(history.count_history, **wanted)


@pytest.fixture
async def cursor(mariadb: URL) -> AsyncIterator[Any]:
    """A cursor of the driver, without a database."""
    connection = await asyncmy.connect(
        unix_socket=mariadb.query.get("unix_socket"),
        host=mariadb.host or "localhost",
        port=mariadb.port or 3306,
        user=mariadb.username,
        password=str(mariadb.password or ""),
        charset="utf8mb4",
    )
    async with connection.cursor() as cursor:
        yield cursor
    await connection.ensure_closed()


async def filled(cursor: Any, url: URL, rows: int) -> SqlHistoryManager:
    """Return an open history of this many records."""
    history = await SqlHistoryManager(url)
    await cursor.execute(f"USE {url.database}")
    await fill(cursor, rows)
    return history


@pytest.mark.parametrize(
    ("large", "step"),
    [(LARGE, 7), pytest.param(NIGHTLY, 1, marks=pytest.mark.nightly)],
    ids=["some", "all"],
)
async def test_pages_and_counts_cost_the_same(
    new_database: Callable[[], URL], cursor: Any, large: int, step: int
) -> None:
    urls = {rows: new_database() for rows in (SMALL, large)}
    histories = {rows: await filled(cursor, url, rows) for rows, url in urls.items()}
    for has_statistics in (False, True):
        read: dict[str, list[int]] = {}
        for rows, history in histories.items():
            if has_statistics:
                await cursor.execute(f"USE {urls[rows].database}")
                await cursor.execute("ANALYZE TABLE async_history_records, async_history_marks")
                await cursor.fetchall()
            asked = [*list(pages(history, rows))[::step], *counts(history, rows)]
            for name, call in asked:
                read.setdefault(name, []).append(await reads(cursor, call))
        more = MORE + (large >> SPAN_BITS)
        grown = {
            name: took
            for name, took in read.items()
            if took[1] > 2 * took[0] + more + (OF_A_USER if "user" in name else 0)
        }
        assert grown == {}
    for history in histories.values():
        await history.aclose()


@pytest.mark.parametrize(
    "step", [7, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"]
)
async def test_a_page_with_a_scan_size_reads_no_more_rows(
    new_database: Callable[[], URL], cursor: Any, step: int
) -> None:
    """Whatever is looked for, and through whichever index."""
    scan = 400
    history = await filled(cursor, new_database(), SMALL)
    too_many: dict[str, int] = {}
    for question in islice(scans(SMALL, scan), 0, None, step):
        call = partial(read_page, history, question)
        if (took := await reads(cursor, call)) > 3 * scan + MORE:
            too_many[question.name] = took
    assert too_many == {}
    await history.aclose()


async def test_one_version_of_a_long_memory_reads_one_record(
    new_database: Callable[[], URL], cursor: Any
) -> None:
    rows = 20_400
    history = await filled(cursor, new_database(), rows)
    for when, number in ((2, 10), (START + timedelta(seconds=rows - 90), rows - 90)):
        call = partial(history.memory_at, "large", when)
        found = await call()
        assert found is not None
        assert found.id == f"id-{number}"
        assert await reads(cursor, call) < 60
    assert await reads(cursor, partial(history.restore, "large", to=2)) < 60
    await history.aclose()


async def test_two_names_read_the_marks_of_the_rarer_one(
    new_database: Callable[[], URL], cursor: Any
) -> None:
    history = await filled(cursor, new_database(), 20_400)

    async def page(**wanted: Any) -> object:
        return await anext(aiter(history.query_history(page_size=10, **wanted).pages()))

    cases: dict[int, dict[str, Any]] = {
        5: {"app_id": "app", "actor_id": "rare"},
        99: {"app_id": "app", "user_id": "u7", "role": "user"},
        10: {"role": "user", "cause": {"request_id": "7"}},
    }
    for number, wanted in cases.items():
        found = [record async for record in history.query_history(**wanted)]
        assert len(found) == number
        for order in ("oldest", "newest"):
            assert await reads(cursor, partial(page, order=order, **wanted)) < 100, (wanted, order)
        assert await reads(cursor, partial(history.count_history, **wanted)) < 1_000, wanted
    await history.aclose()
