"""Calls that wait for a lock or take too long are refused, and their batch is written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from async_history import HistoryManager
from async_history._core.writing.commit_function import OutcomeUnknown
from async_history.sql import SqlHistoryManager
from tests.support.mariadb_server import MariaDBServer, run_sql

pytestmark = [pytest.mark.mariadb, pytest.mark.faults, pytest.mark.once]

NewDatabase = Callable[[], URL]

SHORT_S = 12.0
"""Enough for locks: a try has four seconds, and is not cut off on a busy machine."""
LIMITED_S = 20.0
"""Enough for statements with a limit, which a busy machine keeps: most of a second."""

CALLS = 20
BAD = 7

ROW = (
    "INSERT INTO async_history_records (seq, id, memory_id, event, is_deleted)"
    " VALUES (900, 'bad', 'x', 'ADD', 0)"
)
"""A row that a new record's id waits for."""
GAP = "SELECT * FROM async_history_records WHERE memory_id = 'bad' FOR UPDATE"
TRIGGER = """
CREATE TRIGGER rule AFTER INSERT ON async_history_records
FOR EACH ROW BEGIN IF NEW.memory_id = 'bad' THEN {}; END IF; END
"""
DEADLOCK = TRIGGER.format("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213")
HANG = TRIGGER.format("DO SLEEP(3600)")


@pytest.fixture(scope="module")
def strict_server() -> Iterator[MariaDBServer]:
    """A server where a lock timeout rolls back the whole transaction."""
    server = MariaDBServer(**{"innodb-rollback-on-timeout": "ON"}).create().start()
    yield server
    server.remove()


@pytest.fixture
def new_strict_database(strict_server: MariaDBServer) -> NewDatabase:
    names = (f"h{number}" for number in range(100))

    def url() -> URL:
        name = next(names)
        run_sql(strict_server.url(), f"CREATE OR REPLACE DATABASE {name}")
        return strict_server.url(name)

    return url


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url, isolation_level="REPEATABLE READ")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


def calls(history: HistoryManager, good: str = "m") -> list[Awaitable[object]]:
    """Return calls that wait for one batch; one of them is for the memory, and the id, `bad`."""
    names = [f"{good}{number}" for number in range(CALLS)]
    names[BAD] = "bad"
    return [
        history.batch_add_history(
            [
                {"id": name, "memory_id": name, "new_memory": name, "event": "ADD"},
                {"memory_id": f"{good} all", "new_memory": name, "event": "UPDATE"},
            ]
        )
        for name in names
    ]


async def outcomes(begun: list[Awaitable[object]]) -> list[str]:
    found = await asyncio.gather(*begun, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, Exception) else "ok" for one in found]


def refused_one(error: str) -> list[str]:
    found = ["ok"] * CALLS
    found[BAD] = error
    return found


async def texts(history: HistoryManager, memory_id: str) -> list[str | None]:
    return [record.new_memory for record in await history.get_history(memory_id)]


async def prepare(history: HistoryManager) -> None:
    for name in ("b", "bz"):  # the ends of a gap
        await history.add_history(name, None, "x", "ADD")


async def check_written(history: HistoryManager, good: str = "m") -> None:
    """Check that all but the refused call are there, in order."""
    wanted = [f"{good}{number}" for number in range(CALLS) if number != BAD]
    assert await texts(history, f"{good} all") == wanted
    assert await texts(history, "bad") == []
    assert (await history.check()).problems == ()


# Waiting takes most of the time: cases wait together, though not all of them, which would be late
# on a busy machine.


@pytest.mark.postgres
async def test_a_lock_that_one_waits_for_does_not_fail_the_others(
    new_database: NewDatabase,
    new_strict_database: NewDatabase,
    new_schema: Callable[[], str],
    postgres: str,
) -> None:
    async with asyncio.TaskGroup() as cases:
        cases.create_task(a_lock(GAP, new_database()))
        cases.create_task(a_lock(ROW, new_strict_database()))  # its timeout rolls back
        cases.create_task(a_lock_on_postgresql(new_schema, postgres))


async def test_late_batches(new_database: NewDatabase, new_strict_database: NewDatabase) -> None:
    async with asyncio.TaskGroup() as cases:
        cases.create_task(
            a_lock_on_one_table_does_not_fail_the_calls_that_do_not_use_it(new_database)
        )
        cases.create_task(the_calls_behind_a_late_batch_are_written(new_database))
        cases.create_task(a_call_whose_earlier_try_has_an_unknown_outcome(new_database))
        cases.create_task(
            a_batch_whose_transaction_was_rolled_back_acknowledges_nothing_of_it(
                new_strict_database
            )
        )


async def test_late_statements(new_database: NewDatabase) -> None:
    async with asyncio.TaskGroup() as cases:
        cases.create_task(managers_whose_batches_wait_for_each_other(new_database))
        for trigger, error, retry_timeout_s in (
            (DEADLOCK, "StorageLocked", SHORT_S),
            (HANG, "StorageUnreachable", LIMITED_S),
        ):
            cases.create_task(
                a_trigger_that_one_runs_does_not_fail_the_others(
                    trigger, error, retry_timeout_s, new_database
                )
            )


async def a_lock(lock: str, url: URL) -> None:
    async with SqlHistoryManager(url, retry_timeout_s=SHORT_S) as history, connected(url) as other:
        await prepare(history)
        await other.exec_driver_sql(lock)
        assert await outcomes(calls(history)) == refused_one("StorageLocked")
        await other.rollback()
        await check_written(history)


async def a_lock_on_postgresql(new_schema: Callable[[], str], postgres: str) -> None:
    schema = str(make_url(new_schema()).query["schema"])
    server = make_url(postgres).set(drivername="postgresql+asyncpg")
    async with (
        SqlHistoryManager(server, schema=schema, retry_timeout_s=SHORT_S) as history,
        connected(server) as other,
    ):
        await prepare(history)
        await other.exec_driver_sql(ROW.replace("async_", f'"{schema}".async_'))
        assert await outcomes(calls(history)) == refused_one("StorageLocked")
        await other.rollback()
        await check_written(history)


async def a_lock_on_one_table_does_not_fail_the_calls_that_do_not_use_it(
    new_database: NewDatabase,
) -> None:
    url = new_database()
    async with SqlHistoryManager(url, retry_timeout_s=SHORT_S) as history, connected(url) as other:
        await other.exec_driver_sql("LOCK TABLES async_history_messages WRITE")
        begun = calls(history)
        begun[BAD].close()  # type: ignore[attr-defined]
        begun[BAD] = history.save_messages([{"role": "user", "content": "x"}], "scope")
        assert await outcomes(begun) == refused_one("StorageLocked")
        await other.exec_driver_sql("UNLOCK TABLES")
        await check_written(history)
        assert await history.get_last_messages("scope") == []


async def managers_whose_batches_wait_for_each_other(new_database: NewDatabase) -> None:
    """Each has a call that waits for the lock, while it keeps the others from writing."""
    url = new_database()
    names = "klm"
    async with AsyncExitStack() as stack:
        histories = [
            await stack.enter_async_context(SqlHistoryManager(url, retry_timeout_s=LIMITED_S))
            for _ in names
        ]
        other = await stack.enter_async_context(connected(url))
        await prepare(histories[0])
        await other.exec_driver_sql(GAP.replace("FOR UPDATE", "LOCK IN SHARE MODE"))
        found = await asyncio.gather(
            *(outcomes(calls(one, name)) for one, name in zip(histories, names, strict=True))
        )
        assert found == [refused_one("StorageLocked")] * len(names)
        await other.rollback()
        for name in names:
            await check_written(histories[0], name)


async def the_calls_behind_a_late_batch_are_written(new_database: NewDatabase) -> None:
    url = new_database()
    async with (
        SqlHistoryManager(url, retry_timeout_s=SHORT_S, batch_records=2 * CALLS) as history,
        connected(url) as other,
    ):
        await prepare(history)
        await other.exec_driver_sql(ROW)
        later = [history.add_history(f"later {n}", None, "x", "ADD") for n in range(50)]
        found = await outcomes(calls(history) + list[Awaitable[object]](later))
        assert found == [*refused_one("StorageLocked"), *["ok"] * 50]
        await other.rollback()


async def a_call_whose_earlier_try_has_an_unknown_outcome(new_database: NewDatabase) -> None:
    """A call that can't be looked up may be written; one that can be is not."""
    url = new_database()
    async with SqlHistoryManager(url, retry_timeout_s=SHORT_S) as history, connected(url) as other:
        async with connected(url) as another:
            await other.exec_driver_sql("LOCK TABLES async_history_messages WRITE")
            await another.exec_driver_sql(ROW)
            begun = calls(history)
            begun[3].close()  # type: ignore[attr-defined]
            begun[3] = history.save_messages([{"role": "user", "content": "x"}], "scope")
            first = _FirstTry(history)
            found = await outcomes(begun)
        assert first.tries > 1
        await other.exec_driver_sql("UNLOCK TABLES")
        assert (found.pop(BAD), found.pop(3)) == ("StorageLocked", "CommitUnknown")
        assert set(found) == {"ok"}


class _FirstTry:
    """Lets the first try of a history's next batch have an unknown outcome."""

    def __init__(self, history: SqlHistoryManager) -> None:
        self.tries = 0
        connections: Any = history.store.connections
        write = connections.write

        async def fail_first(*arguments: Any) -> Any:
            self.tries += 1
            if self.tries == 1:
                raise OutcomeUnknown("as if the connection was lost")
            return await write(*arguments)

        connections.write = fail_first


async def a_batch_whose_transaction_was_rolled_back_acknowledges_nothing_of_it(
    new_strict_database: NewDatabase,
) -> None:
    """A call is refused, so the others are written in halves. Then one waits for a lock, whose
    timeout rolls back the halves that were written."""
    url = new_strict_database()
    async with SqlHistoryManager(url, retry_timeout_s=SHORT_S) as history, connected(url) as other:
        await prepare(history)
        run_sql(url, TRIGGER.format("SIGNAL SQLSTATE '45000'").replace("'bad'", "'m2'"))
        await other.exec_driver_sql(ROW)
        found = await outcomes(calls(history))
        wanted = refused_one("StorageLocked")
        wanted[2] = "StorageRefused"
        assert found == wanted
        await other.rollback()
        texts_ = [f"m{number}" for number in range(CALLS) if number not in (2, BAD)]
        assert await texts(history, "m all") == texts_


async def a_trigger_that_one_runs_does_not_fail_the_others(
    trigger: str, error: str, retry_timeout_s: float, new_database: NewDatabase
) -> None:
    url = new_database()
    async with SqlHistoryManager(url, retry_timeout_s=retry_timeout_s) as history:
        run_sql(url, trigger)
        assert await outcomes(calls(history)) == refused_one(error)
        await check_written(history)
