"""Prepared statements and bulk on MariaDB: single records, and batches of many.

A batch is one call, so that it is not divided.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
from sqlalchemy.engine import URL

from async_history import HistoryManager, StorageRefused
from async_history.sql import SqlHistoryManager
from tests.support.mariadb_server import kill_sessions, run_sql

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

MANY = 80
"""More records than one block of statements gets."""

NewDatabase = Callable[[], URL]


@pytest.fixture
def url(new_database: NewDatabase) -> URL:
    return new_database()


@pytest.fixture
async def history(url: URL) -> AsyncIterator[SqlHistoryManager]:
    """A history whose writer is known to be alone."""
    async with SqlHistoryManager(url) as history:
        for text in ("x", "y"):
            await history.add_history("m", None, text, "ADD", actor_id="ann", role="user")
        yield history


def counted(url: URL, name: str) -> int:
    return int(run_sql(url, f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])


def additions(count: int = MANY, **details: Any) -> list[dict[str, Any]]:
    return [
        {"memory_id": "m", "new_memory": f"{n}", "event": "ADD", **details} for n in range(count)
    ]


async def texts(history: HistoryManager, **wanted: Any) -> list[str | None]:
    return [record.new_memory async for record in history.query_history(**wanted)]


async def selects(history: HistoryManager, url: URL, batch: Sequence[Mapping[str, Any]]) -> int:
    """Return how many SELECTs a batch takes: some if it is committed in steps."""
    of_asking = -counted(url, "Com_select") + counted(url, "Com_select")
    before = counted(url, "Com_select")
    await history.batch_add_history(batch)
    return counted(url, "Com_select") - before - of_asking


async def test_statements_are_prepared_once(history: SqlHistoryManager, url: URL) -> None:
    for batch in ([{"actor_id": "ann", **one} for one in additions(1)], additions(actor_id="ann")):
        await history.batch_add_history(batch)
        prepared, executed = counted(url, "Com_stmt_prepare"), counted(url, "Com_stmt_execute")
        for _ in range(3):
            await history.batch_add_history(batch)
        assert counted(url, "Com_stmt_prepare") == prepared
        assert counted(url, "Com_stmt_execute") - executed in (3, 6)  # records, and marks in bulk


def kinds() -> Iterator[Mapping[str, Any]]:
    """Yield records with and without each value."""
    optional: Sequence[tuple[str, Sequence[Any]]] = (
        ("old_memory", (None, "", "before 🍵 'quoted' \\ % \n")),
        ("actor_id", (None, "ann", "x" * 300)),
        ("context", (None, {"a": 1})),
        ("cause", (None, {"request_id": "7", "note": "ü"})),
    )
    names = [name for name, _ in optional]
    for values in product(*(values for _, values in optional)):
        given = {name: v for name, v in zip(names, values, strict=True) if v is not None}
        yield {"memory_id": "m", "new_memory": "after", "event": "UPDATE", **given}


@pytest.mark.parametrize("count", [1, MANY])
async def test_records_are_returned_exactly(
    history: SqlHistoryManager, url: URL, count: int
) -> None:
    """All of a batch lack the same values, so that some columns have none at all."""
    await history.add_history("m", "a", "b", "UPDATE", owner={"user_id": "u"})
    written = []
    for item in kinds():
        written += await history.batch_add_history([item] * count)
    written += await history.batch_add_history([dict(item) for item in kinds()] * 2)
    assert (await history.get_history("m"))[3:] == written
    async with SqlHistoryManager(url) as other:
        assert (await other.get_history("m"))[3:] == written
    assert len(await texts(history, actor_id="x" * 300, user_id="u")) == sum(
        one.actor_id == "x" * 300 for one in written
    )
    assert (await history.check()).problems == ()


@pytest.mark.parametrize("count", [1, MANY])
async def test_a_server_that_prepares_no_more_statements(
    new_database: NewDatabase, count: int
) -> None:
    url = new_database()
    run_sql(url, "SET GLOBAL max_prepared_stmt_count = 0")
    try:
        async with SqlHistoryManager(url) as history:
            for _ in range(3):
                await history.batch_add_history(additions(count, role="user"))
            assert await selects(history, url, additions(count, role="user")) == 0
            assert await texts(history, role="user") == [str(n) for n in range(count)] * 4
    finally:
        run_sql(url, "SET GLOBAL max_prepared_stmt_count = 16382")


@pytest.mark.parametrize("count", [1, MANY])
async def test_a_refused_record_and_a_changed_table(
    history: SqlHistoryManager, url: URL, count: int
) -> None:
    batch = additions(count)
    await history.batch_add_history(batch)
    run_sql(
        url,
        "CREATE TRIGGER no_tea BEFORE INSERT ON async_history_records FOR EACH ROW IF"
        " NEW.new_memory = 'tea' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no tea';"
        " END IF",
        "ALTER TABLE async_history_records ADD INDEX more (role, seq)",
    )
    with pytest.raises(StorageRefused, match="no tea"):
        await history.batch_add_history([*batch[1:], {**batch[0], "new_memory": "tea"}])
    await history.batch_add_history(batch)
    run_sql(url, "ALTER TABLE async_history_records DROP INDEX more, ADD COLUMN theirs INT")
    await history.batch_add_history(batch)
    assert await texts(history) == ["x", "y", *[str(n) for n in range(count)] * 3]
    numbers = run_sql(url, "SELECT seq FROM async_history_records ORDER BY seq")
    assert [seq for (seq,) in numbers] == list(range(1, 3 + 3 * count))


@pytest.mark.parametrize("count", [1, MANY])
async def test_a_new_connection_prepares_again(
    history: SqlHistoryManager, url: URL, count: int
) -> None:
    for _ in range(3):
        await history.batch_add_history(additions(count))
        kill_sessions(
            url,
            "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID()"
            " AND db = DATABASE()",
        )
    for _ in range(3):
        before = counted(url, "Com_stmt_execute")
        await history.batch_add_history(additions(count))
    assert counted(url, "Com_stmt_execute") == before + 1
    assert len(await texts(history)) == 2 + 6 * count


async def test_other_writers_are_noticed(history: SqlHistoryManager, url: URL) -> None:
    async with SqlHistoryManager(url) as other:
        for count in (1, MANY, 1, MANY):
            for one in (history, other, other, history, history):
                await one.batch_add_history(additions(count, actor_id="ann"))
        assert len(await texts(other, actor_id="ann")) == 2 + 5 * (2 + 2 * MANY)
    ((least, most, count),) = run_sql(
        url, "SELECT MIN(seq), MAX(seq), COUNT(*) FROM async_history_records"
    )
    assert (least, most) == (1, count)


async def test_a_batch_larger_than_a_packet(new_database: NewDatabase) -> None:
    url = new_database()
    run_sql(url, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with SqlHistoryManager(url) as history:
            batch = [{**one, "old_memory": "x" * 40_000} for one in additions()]
            for _ in range(3):
                await history.batch_add_history(batch)
            assert await selects(history, url, batch) == 0
            assert await history.count_history() == 4 * MANY
    finally:
        run_sql(url, "SET GLOBAL max_allowed_packet = 134217728")


async def test_tables_whose_names_are_quoted(new_database: NewDatabase) -> None:
    url = new_database()
    schema = f"{url.database} 100%s"
    run_sql(url, f"CREATE DATABASE `{schema}`".replace("%", "%%"))
    try:
        async with SqlHistoryManager(url, schema=schema) as history:
            for count in (1, 1, 1, MANY):
                await history.batch_add_history(additions(count, role="user"))
            assert len(await texts(history, role="user")) == 3 + MANY
    finally:
        run_sql(url, f"DROP DATABASE `{schema}`".replace("%", "%%"))
