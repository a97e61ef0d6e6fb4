"""Limits of MariaDB: connections, locks, disk space, records that a crash removes."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Engine, ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from async_history import CommitUnknown, CursorGone, HistoryManager, StorageFull, StorageUnreachable
from async_history._sql.warnings import warnings_of
from async_history.sql import SqlHistoryManager
from tests.support.mariadb_server import MariaDBServer, run_sql
from tests.support.patience import LONG_S, SOON_S

pytestmark = [pytest.mark.mariadb, pytest.mark.faults, pytest.mark.once]

NewDatabase = Callable[[], URL]


async def add(history: HistoryManager, *texts: str, event: str = "ADD") -> None:
    for one in texts:
        await history.add_history("m", None, one, event)


async def stored(history: HistoryManager) -> list[str | None]:
    return [record.new_memory async for record in history.query_history()]


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


# Connections


async def test_a_server_without_a_connection_left(
    own_server: MariaDBServer, new_own_database: NewDatabase
) -> None:
    """Open connections go on; others get the reason, and a writer that lost its own waits."""
    url = new_own_database()
    run_sql(
        own_server.url(),
        "CREATE USER IF NOT EXISTS agent",
        "GRANT ALL ON *.* TO agent",
        "REVOKE SUPER, CONNECTION ADMIN ON *.* FROM agent",  # they have one extra connection
        "SET GLOBAL max_connections = 10",
    )
    url = own_server.url(str(url.database), user="agent")
    engine = create_async_engine(url, pool_size=20)
    taken: list[AsyncConnection] = []

    async def as_root(statement: str) -> list[Any]:
        """Run a statement on the extra connection.

        A connection that the server refused counts until its thread has ended.
        """
        async with asyncio.timeout(LONG_S):
            while True:
                try:
                    return run_sql(own_server.url(), statement)
                except OperationalError as refused:
                    if "1040" not in str(refused):
                        raise
                await asyncio.sleep(0.05)

    async def take_all() -> None:
        """Connect until agents have every connection: a refusal may be of root's last one."""
        idle = (
            "SELECT count(*) FROM information_schema.processlist"
            " WHERE user = 'agent' AND command = 'Sleep'"
        )
        async with asyncio.timeout(LONG_S):
            while (await as_root(idle))[0][0] < 10:
                with suppress(OperationalError):
                    taken.append(await engine.connect())

    refused = asyncio.Event()

    def note_refusal(_: ExceptionContext) -> None:
        refused.set()

    async def open_another() -> None:
        async with SqlHistoryManager(url, acquire_timeout_s=LONG_S):
            pass

    try:
        async with SqlHistoryManager(url) as history:
            await add(history, "0", "1")
            await take_all()
            await add(history, "2")
            with pytest.raises(StorageUnreachable, match="no connection left"):
                await SqlHistoryManager(url, acquire_timeout_s=2, retry_timeout_s=0.2)
            event.listen(Engine, "handle_error", note_refusal)
            async with asyncio.TaskGroup() as group:
                group.create_task(open_another())
                await refused.wait()
                (writer,) = await as_root(
                    "SELECT id FROM information_schema.processlist"
                    f" WHERE db = '{url.database}' ORDER BY id LIMIT 1"
                )
                await as_root(f"KILL CONNECTION {writer[0]}")
                await take_all()
                waiting = group.create_task(add(history, "3"))
                await asyncio.wait([waiting], timeout=0.2)
                for one in taken:
                    await one.close()
                await engine.dispose()
            assert await stored(history) == ["0", "1", "2", "3"]
    finally:
        if event.contains(Engine, "handle_error", note_refusal):
            event.remove(Engine, "handle_error", note_refusal)
        await engine.dispose()
        await as_root("SET GLOBAL max_connections = 60")


# Locks


async def until(connection: AsyncConnection, query: str, wanted: int) -> None:
    """Ask the server until a number is large enough.

    InnoDB repeats its last answer about locks for a tenth of a second.
    """
    async with asyncio.timeout(LONG_S):
        while int((await connection.execute(text(query))).all()[0][-1]) < wanted:  # noqa: ASYNC110 - a server has no event for it
            await asyncio.sleep(0.2)


async def test_the_victim_of_a_deadlock_retries(new_database: NewDatabase) -> None:
    """InnoDB rolls back the transaction with fewer changes: the history's."""
    url = new_database()
    async with (
        SqlHistoryManager(url) as history,
        connected(url) as other,
        connected(url) as watcher,
    ):
        await add(history, "0", "1", "2")
        await other.execute(text("CREATE TABLE large (n INT PRIMARY KEY) ENGINE=InnoDB"))
        await other.execute(text("INSERT INTO large SELECT seq FROM seq_1_to_500"))
        await other.execute(text("SELECT * FROM async_history_spans FOR UPDATE"))
        waiting = asyncio.create_task(add(history, "3", event="UPDATE"))  # with a new event
        await until(watcher, "SELECT COUNT(*) FROM information_schema.innodb_lock_waits", 1)
        await other.execute(text("UPDATE async_history_state SET layout = 1"))
        await other.rollback()
        await waiting
        assert await stored(history) == ["0", "1", "2", "3"]
        found = [record async for record in history.query_history(event="UPDATE")]
        assert len(found) == 1
        assert (await history.check()).problems == ()


async def test_a_lock_wait_timeout_is_retried(
    new_database: NewDatabase,
) -> None:
    url = new_database()
    run_sql(url, "SET GLOBAL innodb_lock_wait_timeout = 1")
    waits = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_waits'"
    try:
        async with (
            SqlHistoryManager(url) as history,
            connected(url) as other,
            connected(url) as watcher,
        ):
            await add(history, "0", "1", "2")
            await other.execute(text("SELECT * FROM async_history_state FOR UPDATE"))
            before = int((await watcher.execute(text(waits))).all()[0][-1])
            waiting = asyncio.create_task(add(history, "3"))
            await until(watcher, waits, before + 2)
            await other.rollback()
            await waiting
            assert await stored(history) == ["0", "1", "2", "3"]
    finally:
        run_sql(url, "SET GLOBAL innodb_lock_wait_timeout = 50")


async def test_a_commit_without_an_answer_has_an_unknown_outcome(new_database: NewDatabase) -> None:
    url = new_database()
    async with SqlHistoryManager(url, retry_timeout_s=3) as history, connected(url) as other:
        await add(history, "0", "1")
        await other.execute(text("SELECT * FROM async_history_state FOR UPDATE"))
        with pytest.raises(CommitUnknown):
            await add(history, "2")
        await other.rollback()


# A disk without space


@pytest.fixture
def small_server() -> Iterator[MariaDBServer]:
    """A server on a small file system of its own."""
    server = MariaDBServer()
    folder = str(server.folder)
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=160m", "none", folder]
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        server.remove()
        pytest.skip("mounting a file system needs root")
    try:
        yield server.create().start()
    finally:
        server.stop()
        subprocess.run(["umount", folder], check=True)
        server.remove()


async def test_a_disk_without_space(small_server: MariaDBServer) -> None:
    """A server waits for space, refuses, or dies; then every acknowledged record is there."""
    run_sql(small_server.url(), "CREATE DATABASE h")
    ballast = small_server.folder / "ballast"
    async with SqlHistoryManager(small_server.url("h"), retry_timeout_s=2) as history:
        await add(history, "0", "1", "2")
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(160 << 20))
        acked = 0
        with pytest.raises((StorageFull, StorageUnreachable, CommitUnknown)):  # noqa: PT012
            while acked < 1_000:
                await add(history, f"{acked} {'x' * 300_000}")
                acked += 1
        ballast.unlink()
    if not small_server.is_running:
        small_server.start()
    async with SqlHistoryManager(small_server.url("h")) as history:
        await add(history, "again")
        found = [str(one).split()[0] for one in await stored(history)]
        wanted = ["0", "1", "2", *map(str, range(acked))]
        assert found in ([*wanted, "again"], [*wanted, str(acked), "again"])
        assert (await history.check()).problems == ()


# A crash removes records that were read


async def test_a_follower_whose_cursor_names_another_record_gets_cursor_gone(
    new_database: NewDatabase,
) -> None:
    """As after a crash that lost a visible transaction that was not on disk."""
    url = new_database()
    async with SqlHistoryManager(url) as history:
        await add(history, "0", "1", "lost")
        following = history.follow(after=None, poll_interval_s=0.02)
        seen = [(await anext(following)).new_memory for _ in range(3)]
        assert seen == ["0", "1", "lost"]
        run_sql(
            url,
            "DELETE FROM async_history_records WHERE seq = 3",
            "UPDATE async_history_state SET last = 2",
        )
        await add(history, "2", "3")
        async with asyncio.timeout(SOON_S):
            with pytest.raises(CursorGone):
                await anext(following)


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ((1, 0, 0, 1), []),
        ((1, 1, 1, "ON"), []),
        ((1, 1, 1, "DETECT_AND_RECOVER"), []),
        ((0, 0, 0, 1), ["asynchronous-commit"]),
        ((2, 1, 100, "OFF"), ["asynchronous-commit", "binary-log-not-synced", "doublewrite-off"]),
        ((1, 1, 1, 0), ["doublewrite-off"]),
    ],
)
def test_settings_that_lose_acknowledged_records_are_recognized(
    settings: tuple[Any, ...], codes: list[str]
) -> None:
    assert [warning.code for warning in warnings_of(*settings)] == codes


async def test_stats_warn_of_a_servers_settings(
    own_server: MariaDBServer, new_own_database: NewDatabase
) -> None:
    async with SqlHistoryManager(new_own_database()) as history:
        await add(history, "x")
        assert [one.code for one in (await history.stats()).warnings] == ["doublewrite-off"]
        run_sql(own_server.url(), "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        run_sql(own_server.url(), "SET GLOBAL sync_binlog = 0")
        try:
            codes = {one.code for one in (await history.stats()).warnings}
        finally:
            run_sql(own_server.url(), "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
            run_sql(own_server.url(), "SET GLOBAL sync_binlog = 1")
        assert codes == {"asynchronous-commit", "binary-log-not-synced", "doublewrite-off"}
