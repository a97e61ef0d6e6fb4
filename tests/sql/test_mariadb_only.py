"""Tests that need a server: transactions of the program, errors, sessions that die, several
processes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from async_history import (
    CommitUnknown,
    HistoryConflict,
    HistoryManager,
    InvalidInput,
    MigrationError,
    StorageDenied,
    StorageError,
    StorageMissing,
    StorageReadOnly,
    StorageRefused,
    StorageUnreachable,
    copy_history,
    open_history,
)
from async_history.blocking import BlockingHistoryManager
from async_history.cli.app import app
from async_history.sql import SqlHistoryManager, metadata
from tests.support.mariadb_server import MariaDBServer, in_thread, run_sql
from tests.support.patience import PATIENCE

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

NewDatabase = Callable[[], URL]


@pytest.fixture
async def engine(new_database: NewDatabase) -> AsyncIterator[AsyncEngine]:
    """An application's engine, of an empty database."""
    engine = create_async_engine(new_database())
    yield engine
    await engine.dispose()


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


async def texts(history: HistoryManager, **wanted: Any) -> list[str | None]:
    return [record.new_memory async for record in history.query_history(**wanted)]


# The program's own transaction


async def test_a_row_of_the_program_and_its_history_commit_together(engine: AsyncEngine) -> None:
    """With a session and with a connection, in a transaction older than others' commits."""
    async with engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE notes (t VARCHAR(20) PRIMARY KEY) ENGINE=InnoDB")
        )
        await connection.run_sync(metadata.create_all)  # as the program's own migration does
    async with open_history(engine=engine) as opened:
        history = opened
        assert isinstance(history, SqlHistoryManager)
        first = await history.add_history("m", None, "1", "ADD", owner={"user_id": "ann"})
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT * FROM notes"))  # its snapshot begins
            second = await history.update_history("m", "2")
            await history.add_history("late", None, "1", "ADD")
            await session.execute(text("INSERT INTO notes VALUES ('kept')"))
            change = {"memory_id": "m", "new_memory": "3", "event": "UPDATE"}
            with pytest.raises(HistoryConflict):
                await history.add_in_transaction(session, [change], if_latest=first)
            (third,) = await history.add_in_transaction(session, [change], if_latest=second)
            assert third.owner == first.owner
            given = {"memory_id": "late", "event": "UPDATE", "owner": {"user_id": "bob"}}
            await history.add_in_transaction(session, [given])
            assert await texts(history, memory_id="m") == ["1", "2"], "not committed yet"
            await session.commit()
        async with engine.connect() as connection:
            await history.add_in_transaction(connection, [change | {"new_memory": "lost"}])
            await connection.rollback()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(InvalidInput, match="AUTOCOMMIT"):
                await history.add_in_transaction(connection, [change])
        await history.update_history("m", "4")
        assert await texts(history, memory_id="m") == ["1", "2", "3", "4"]
        assert await texts(history, user_id="ann") == ["1", "2", "3", "4"]
        assert await texts(history, user_id="bob") == ["1", None]
        assert (await history.check()).problems == ()
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT t FROM notes"))).scalars().all() == [
                "kept"
            ]
            numbers = text("SELECT seq FROM async_history_records ORDER BY seq")
            assert (await connection.execute(numbers)).scalars().all() == [1, 2, 3, 4, 5, 6]
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1, "it is not closed"


async def test_an_engine_with_one_connection_is_refused(engine: AsyncEngine) -> None:
    narrow = create_async_engine(engine.url, pool_size=1, max_overflow=0)
    for given in (narrow, "engine"):
        with pytest.raises(InvalidInput, match="engine"):
            open_history(engine=given)
    with pytest.raises(InvalidInput, match="either"):
        open_history("memory://", engine=narrow)


async def test_eight_managers_open_an_empty_database_at_once(new_database: NewDatabase) -> None:
    """Each makes the tables, and a ledger's, if no other has."""
    url = new_database()
    opened = [SqlHistoryManager(url, ledger=True) for _ in range(8)]
    await asyncio.gather(*opened)
    for number, history in enumerate(opened):
        await history.add_history("m", None, str(number), "UPDATE")
    assert await texts(opened[0]) == [str(number) for number in range(8)]
    report = await opened[0].ledger.verify()
    assert report.is_intact, report.faults
    assert len(run_sql(url, "SELECT id FROM async_history_state")) == 1
    await asyncio.gather(*(history.aclose() for history in opened))


async def test_the_tables_may_be_in_another_database(new_database: NewDatabase) -> None:
    url, other = new_database(), new_database()
    async with SqlHistoryManager(url, schema=str(other.database), ledger=True) as history:
        for number in range(3):  # the third is one statement
            await history.add_history(
                *("m", None, str(number), "UPDATE"), actor_id="ann", owner={"user_id": "ann"}
            )
        assert await texts(history, user_id="ann") == ["0", "1", "2"]
        await history.save_messages([{"role": "user", "content": "hi"}], "s")
        await history.prune(older_than=timedelta(0), keep_last=1)
        await history.erase(user_id="ann", reason="asked")
        assert await texts(history, memory_id="m") == [None]
        assert (await history.check()).problems == ()
        assert (await history.ledger.verify()).is_intact
    assert run_sql(url, "SHOW TABLES") == []
    async with SqlHistoryManager(other, migrate=False) as history:
        assert len(await history.get_history("m")) == 1


# Order


async def test_a_follower_misses_nothing_of_several_writers(new_database: NewDatabase) -> None:
    """Three managers write, a fourth follows: every record once, in the order of the numbers."""
    url = new_database()
    count, tasks = 40, 10
    opened = [SqlHistoryManager(url, batch_records=7) for _ in range(4)]
    await asyncio.gather(*opened)  # at the same time, in an empty database
    try:

        async def write(history: HistoryManager, task: int) -> None:
            for number in range(count):
                await history.add_history(f"m{task}", None, str(number), "UPDATE")

        writing = asyncio.gather(*(write(h, t) for h in opened[:3] for t in range(tasks)))
        seen: list[str] = []
        async for record in opened[3].follow(after=None, poll_interval_s=0.02):
            seen.append(record.id)
            if len(seen) == 3 * count * tasks:
                break
        await writing
        assert seen == [record.id async for record in opened[0].query_history()]
        assert len(set(seen)) == len(seen)
        rows = run_sql(url, "SELECT MIN(seq), MAX(seq), COUNT(*) FROM async_history_records")
        assert [tuple(row) for row in rows] == [(1, len(seen), len(seen))], "no gap"
    finally:
        await asyncio.gather(*(history.aclose() for history in opened))


async def test_a_lone_writer_needs_one_statement(new_database: NewDatabase) -> None:
    url = new_database()

    def questions() -> int:
        return int(run_sql(url, "SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])

    async with SqlHistoryManager(url) as history:

        async def write(count: int) -> None:
            for number in range(count):
                await history.add_history("m", None, str(number), "ADD", actor_id="ann")

        await write(3)
        of_asking = -questions() + questions()
        before = questions()
        await write(5)
        assert questions() - before - of_asking == 5


async def test_alternating_writers_find_each_others_records(new_database: NewDatabase) -> None:
    """The bounds of times and events cover both writers' records."""
    url = new_database()
    async with SqlHistoryManager(url) as one, SqlHistoryManager(url) as other:

        async def write(history: HistoryManager, event: str, year: int) -> None:
            for _ in range(3):
                moment = f"{year}-01-01T00:00:00+00:00"
                await history.add_history(
                    *("m", None, "x", event), created_at=moment, updated_at=moment
                )

        await write(one, "ADD", 2020)
        await write(other, "DELETE", 2010)
        await write(one, "ADD", 2020)
        await write(one, "UPDATE", 2030)
        for event, year in (("ADD", 2020), ("DELETE", 2010), ("UPDATE", 2030)):
            since, until = (datetime(year, 1, day, tzinfo=UTC) for day in (1, 2))
            assert len(await texts(one, event=event)) == 3 + 3 * (event == "ADD")
            found = await texts(one, since=since, until=until)
            assert len(found) == 3 + 3 * (event == "ADD"), year
        numbers = run_sql(url, "SELECT seq FROM async_history_records ORDER BY seq")
        assert [seq for (seq,) in numbers] == list(range(1, 13))


# Values


async def test_the_servers_settings_do_not_matter(new_database: NewDatabase) -> None:
    """Neither sql_mode nor isolation level, autocommit or collation."""
    odd = (
        "SET SESSION sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION sql_mode='NO_BACKSLASH_ESCAPES'",
    )
    names = ["a", "A", "a ", "ä", "a\u0308", "x" * 300, "x" * 301, "🍵", "%", "\\", "'"]
    for statement in odd:
        engine = create_async_engine(
            new_database(), connect_args={"init_command": statement}, isolation_level="AUTOCOMMIT"
        )
        async with open_history(engine=engine) as history:
            for name in names:
                await history.add_history(
                    *(name, None, name, "ADD"), actor_id=name, role=name, owner={"user_id": name}
                )
            for name in names:
                (record,) = await history.get_history(name)
                assert (record.memory_id, record.actor_id, record.role) == (name, name, name)
                for wanted in ("memory_id", "actor_id", "role", "user_id"):
                    assert await texts(history, **{wanted: name}) == [name], (wanted, name)
            assert await texts(history, text="A") == ["A"]
            await history.erase(user_id="x" * 300, reason="asked")
            assert [one.owner for one in await history.get_history("x" * 300)] == [None]
            assert (await history.check()).problems == ()
        await engine.dispose()


async def test_a_connection_that_loses_characters_is_refused(new_database: NewDatabase) -> None:
    engine = create_async_engine(new_database(), connect_args={"charset": "latin1"})
    with pytest.raises(StorageError, match="charset=utf8mb4"):
        await open_history(engine=engine)
    await engine.dispose()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sql_select_limit = 1000", "results would be cut.*sql_select_limit = DEFAULT"),
        ("sql_safe_updates = 1", "sql_safe_updates = 0"),
        ("completion_type = 1", "completion_type = 0"),
        ("sql_mode = 'EMPTY_STRING_IS_NULL'", "empty texts would be lost"),
        ("character_set_results = latin1", "charset=utf8mb4"),
    ],
)
async def test_a_connection_that_cuts_or_refuses_is_refused(
    new_database: NewDatabase, setting: str, words: str
) -> None:
    engine = create_async_engine(new_database())

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.cursor().execute(f"SET SESSION {setting}")

    with pytest.raises(StorageError, match=words):
        await open_history(engine=engine)
    await engine.dispose()


async def test_a_text_that_the_server_does_not_accept(new_database: NewDatabase) -> None:
    """It is refused and named; its neighbours are written."""
    url = new_database()
    run_sql(url, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with SqlHistoryManager(url) as history:
            large = history.add_history("m", None, "'" * 700_000, "ADD")
            done = await asyncio.gather(
                large, history.add_history("m", None, "x", "ADD"), return_exceptions=True
            )
            assert isinstance(done[0], StorageRefused)
            assert "max_allowed_packet" in str(done[0])
            assert await texts(history) == ["x"]
    finally:
        run_sql(url, "SET GLOBAL max_allowed_packet = 134217728")


async def test_a_record_that_a_trigger_refuses_does_not_fail_its_neighbours(
    new_database: NewDatabase,
) -> None:
    url = new_database()
    async with SqlHistoryManager(url) as history:
        for before in ("x", "y"):  # so that the next batch is one statement
            await history.add_history("m", None, before, "ADD")
        run_sql(
            url,
            "CREATE TRIGGER no_tea BEFORE INSERT ON async_history_records FOR EACH ROW IF"
            " NEW.new_memory = 'tea' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no tea';"
            " END IF",
        )
        calls = [history.add_history("m", None, t, "ADD") for t in ("a", "tea", "b")]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[1], StorageRefused)
        assert "no tea" in str(done[1])
        assert await texts(history) == ["x", "y", "a", "b"]
        numbers = run_sql(url, "SELECT seq FROM async_history_records ORDER BY seq")
        assert [seq for (seq,) in numbers] == [1, 2, 3, 4]


# Errors


async def test_authentication_that_needs_a_package(new_database: NewDatabase, mariadb: URL) -> None:
    if find_spec("nacl") is not None:
        pytest.skip("the package is installed")
    url = new_database()
    run_sql(
        mariadb,
        "INSTALL SONAME 'auth_ed25519'",
        "CREATE USER IF NOT EXISTS ed IDENTIFIED VIA ed25519 USING PASSWORD('right')",
    )
    try:
        with pytest.raises(StorageError, match=r"needs a package: 'pynacl'"):
            await SqlHistoryManager(url.set(username="ed", password="right"))  # noqa: S106
    finally:
        run_sql(mariadb, "DROP USER ed", "UNINSTALL SONAME 'auth_ed25519'")


async def test_each_error_has_its_type(new_database: NewDatabase, mariadb: URL) -> None:
    url = new_database()
    run_sql(
        mariadb,
        "CREATE USER IF NOT EXISTS reader IDENTIFIED BY 'right'",
        f"GRANT SELECT ON {url.database}.* TO reader",
    )

    async def opening(url: URL, **options: Any) -> type[BaseException]:
        with pytest.raises(Exception) as failed:  # noqa: PT011 - which is asked
            await SqlHistoryManager(url, acquire_timeout_s=5, retry_timeout_s=0.5, **options)
        assert "geheim" not in str(failed.value)
        return failed.type

    assert await opening(url, create=False) is StorageMissing
    async with SqlHistoryManager(url) as history:
        await history.add_history("m", None, "x", "ADD")
        assert await opening(url.set(database="nowhere")) is StorageMissing
        assert await opening(url.set(username="reader", password="geheim")) is StorageDenied  # noqa: S106
        gone = url.set(query={"unix_socket": "/nowhere"})
        assert await opening(gone) is StorageUnreachable
        reader = url.set(username="reader", password="right")  # noqa: S106
        async with SqlHistoryManager(reader, retry_timeout_s=2) as denied:
            assert await texts(denied) == ["x"]
            with pytest.raises(StorageDenied):
                await denied.add_history("m", None, "y", "UPDATE")
            run_sql(mariadb, "SET GLOBAL read_only = ON")
            try:
                run_sql(mariadb, f"GRANT ALL ON {url.database}.* TO reader")
                with pytest.raises((StorageReadOnly, StorageDenied)):
                    await denied.add_history("m", None, "y", "UPDATE")
            finally:
                run_sql(mariadb, "SET GLOBAL read_only = OFF")
        run_sql(url, "UPDATE async_history_state SET layout = 99")
        assert await opening(url) is MigrationError
        run_sql(url, "UPDATE async_history_state SET layout = 1", "DROP TABLE async_history_marks")
        with pytest.raises(StorageMissing, match="lost the history's tables"):
            await history.add_history("m", None, "x", "ADD", actor_id="ann")


async def test_a_server_that_crashes_or_stops_and_comes_back() -> None:
    server = MariaDBServer(**{"innodb-flush-log-at-trx-commit": "1"}).create().start()
    try:
        run_sql(server.url(), "CREATE DATABASE h")
        url = server.url("h")
        async with (
            SqlHistoryManager(url, retry_timeout_s=60) as history,
            SqlHistoryManager(url, retry_timeout_s=2) as impatient,
        ):
            await history.add_history("m", None, "0", "ADD")
            server.send(signal.SIGSTOP)
            with pytest.raises(StorageError):
                await impatient.get_history("m")
            waiting = asyncio.create_task(history.add_history("m", None, "1", "UPDATE"))
            await asyncio.wait([waiting], timeout=0.2)
            server.send(signal.SIGCONT)
            await waiting
            await history.add_history("m", None, "2", "UPDATE")
            server.stop(signal.SIGKILL)
            waiting = asyncio.create_task(history.add_history("m", None, "3", "UPDATE"))
            await asyncio.to_thread(server.start)
            await waiting
            assert await texts(history) == ["0", "1", "2", "3"]
    finally:
        server.remove()


async def test_writes_that_a_stopped_server_delays_too_long() -> None:
    """A failed call is stored whole or not at all, and nothing else is missing."""
    server = MariaDBServer(**{"innodb-flush-log-at-trx-commit": "1"}).create().start()
    try:
        run_sql(server.url(), "CREATE DATABASE h")
        url = server.url("h")
        acked: list[str] = []
        failed: list[str] = []
        kinds: set[type[Exception]] = set()
        is_busy = asyncio.Event()

        async def write(history: HistoryManager, task: str) -> None:
            for number in range(1_000):
                both = [f"{task} {number} {half}" for half in ("first", "last")]
                changes = [{"memory_id": task, "new_memory": t, "event": "UPDATE"} for t in both]
                try:
                    await history.batch_add_history(changes)
                except (CommitUnknown, StorageError) as error:
                    failed.extend(both)
                    kinds.add(type(error))
                    return
                acked.extend(both)
                if len(acked) > 30:
                    is_busy.set()

        async with SqlHistoryManager(url, retry_timeout_s=3 * PATIENCE) as history:
            writing = [asyncio.create_task(write(history, task)) for task in "abc"]
            await is_busy.wait()
            server.send(signal.SIGSTOP)
            await asyncio.gather(*writing)
            server.send(signal.SIGCONT)
            assert len(failed) == 6
            assert CommitUnknown in kinds, "of the batch that was sent"
        async with SqlHistoryManager(url) as history:
            await history.add_history("m", None, "again", "ADD")
            found = [str(text) for text in await texts(history)]
            assert len(set(found)) == len(found)
            assert {*acked, "again"} <= set(found) <= {*acked, "again", *failed}
            for first, last in zip(failed[::2], failed[1::2], strict=True):
                assert (first in found) == (last in found)
            for task in "abc":
                mine = [text for text in found if text.startswith(f"{task} ")]
                halves = [f"{task} {n} {h}" for n in range(1_000) for h in ("first", "last")]
                assert mine == halves[: len(mine)]
            assert (await history.check()).problems == ()
    finally:
        server.remove()


# Functions that take a URL


async def test_copies_both_ways_and_the_blocking_manager(new_database: NewDatabase) -> None:
    url = shown(new_database())
    async with open_history("memory://") as source, open_history(url) as target:
        for number in range(30):
            await source.add_history(
                *(f"m{number % 3}", None, str(number), "UPDATE"),
                owner={"user_id": "ann"},
                cause={"run_id": "r"},
                context={"n": number},
            )
        await source.save_messages([{"role": "user", "content": "hi"}], "user_id=ann")
        report = await copy_history(source, target)
        assert (report.records, report.scopes) == (30, 1)
        async with open_history("memory://") as back:
            again = await copy_history(target, back)
            assert again.digest == report.digest

    def use() -> list[Any]:
        history = BlockingHistoryManager(url)
        history.add_history("blocking", None, "x", "ADD")
        found = history.get_history("blocking")
        history.close()
        return found

    assert len(await asyncio.to_thread(use)) == 1


def test_the_command_takes_the_url(new_database: NewDatabase) -> None:
    from typer.testing import CliRunner

    url = shown(new_database())

    async def record() -> None:
        async with open_history(url) as history:
            await history.add_history("m", None, "likes tea", "ADD")

    in_thread(record)
    done = CliRunner().invoke(app, ["log", "m", "--db", url])
    assert done.exit_code == 0, done.output
    assert "likes tea" in done.output
    for command in (["stats"], ["check"], ["migrate"]):
        done = CliRunner().invoke(app, [*command, "--db", url])
        assert done.exit_code == 0, (command, done.output)
