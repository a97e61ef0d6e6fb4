"""Following in PostgreSQL: commits out of order, cuts, crashes, standbys and dumps."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

import asyncpg
import pytest

from async_history import CursorGone, open_history
from async_history._postgres.reading.cursors import position_from_cursor
from async_history.postgres import PostgresHistoryManager
from async_history.testing.followers import NEVER_S, SOON_S, Reading, add_many, first, up_to_now
from tests.subprocesses.postgres_load import Load
from tests.support.followed_pages import texts_by_pages
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_schema,
    a_server,
    a_url,
    connected,
    until,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

own_servers = pytest.mark.skipif(not are_installed(), reason="stops and kills servers of its own")

_TERMINATE_ALL: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_TAKE_NUMBER: Final = "SELECT pg_current_xact_id()::text::bigint"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresHistoryManager]:
    async with open_history(url, **options) as history:
        assert isinstance(history, PostgresHistoryManager)
        yield history


@pytest.fixture
async def others(postgres: str) -> AsyncIterator[list[Any]]:
    """Other connections, of users."""
    connections = [await asyncpg.connect(postgres) for _ in range(4)]
    yield connections
    for connection in connections:
        connection.terminate()


async def add_in(history: PostgresHistoryManager, connection: Any, *texts: str) -> None:
    await history.add_in_transaction(connection, add_many(texts))


async def has_texts(connection: Any, *texts: str) -> bool:
    """Return whether a standby has records of these texts."""
    if not await connection.fetchval("SELECT to_regclass('async_history.history') IS NOT NULL"):
        return False
    rows = "SELECT count(*) FROM async_history.history WHERE new_memory = ANY($1::text[])"
    return bool(await connection.fetchval(rows, texts) == len(texts))


async def paused_replay(standby: Any) -> None:
    """Stop a standby's replication."""
    await standby.execute("SELECT pg_wal_replay_pause()")

    asked = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
    if standby.get_server_version().major < 14:  # it can't report whether its pause has begun
        asked = "SELECT pg_is_wal_replay_paused()"

    async def is_paused() -> bool:
        return bool(await standby.fetchval(asked))

    await until(is_paused)


class TestTransactions:
    async def test_an_open_transaction_does_not_delay_later_records(
        self, new_schema: Callable[[], str], others: list[Any]
    ) -> None:
        """It has the lowest `seq` and number of all, and commits last, after two further pages."""
        async with opened(new_schema()) as history:
            async with Reading(history.follow(poll_interval_s=SOON_S)) as reading:
                async with others[0].transaction():
                    await add_in(history, others[0], "held 1")
                    await history.batch_add_history(add_many([str(n) for n in range(4_100)]))
                    await history.add_history("m", None, "last", "ADD")
                    cursors, begun = [reading.following.cursor], len(reading.records)
                    texts = await reading.until(4_101)
                    assert texts == [*(str(n) for n in range(4_100)), "last"]
                    cursors.append(reading.following.cursor)
                    await add_in(history, others[0], "held 2")
                assert (await reading.until(4_103))[4_101:] == ["held 1", "held 2"]
            assert await first(history.follow(after=cursors[1]), 2) == ["held 1", "held 2"]
            rest = await first(history.follow(after=cursors[0]), 4_103 - begun)
            assert sorted(rest, key=str) == sorted([*texts[begun:], "held 1", "held 2"], key=str)

    async def test_rolled_back_records_are_never_yielded(
        self, new_schema: Callable[[], str], others: list[Any]
    ) -> None:
        async with opened(new_schema()) as history:
            following = history.follow()
            ending, savepoint = others[0].transaction(), others[0].transaction()
            await ending.start()
            await add_in(history, others[0], "gone")
            assert await up_to_now(history, following) == []
            await ending.rollback()
            async with others[0].transaction():
                await savepoint.start()
                await add_in(history, others[0], "gone with its savepoint")
                await savepoint.rollback()
                async with others[0].transaction():
                    await add_in(history, others[0], "in a subtransaction")
                assert await up_to_now(history, following) == []
            found = await up_to_now(history, following)
            assert [record.new_memory for record in found] == ["in a subtransaction"]

    async def test_records_come_in_the_order_of_acks_and_calls(
        self, new_schema: Callable[[], str], others: list[Any]
    ) -> None:
        """A transaction with an earlier number that wrote after another's ack comes after it."""
        async with opened(new_schema()) as history:
            following = history.follow(after=await history.end_cursor())
            async with others[0].transaction():
                await others[0].fetchval(_TAKE_NUMBER)
                first_ = await history.add_history("m", None, "first", "ADD")
                await history.add_in_transaction(others[0], add_many(["second"]), if_latest=first_)
            assert await first(following, 2) == ["first", "second"]

    @pytest.mark.parametrize(
        "seed", [0, 1, *(pytest.param(more, marks=pytest.mark.nightly) for more in range(2, 8))]
    )
    async def test_random_transactions(
        self, new_schema: Callable[[], str], others: list[Any], seed: int
    ) -> None:
        """Transactions begin, take numbers, write, commit and roll back in any order."""
        chance = random.Random(seed)  # noqa: S311 - a test's random choices
        async with opened(new_schema()) as history:
            account = Account(history)
            open_: dict[Any, tuple[Any, dict[str, int]]] = {}
            for now in range(120):
                connection = chance.choice(others)
                match chance.choice(["us", "user", "user", "user", "end", "look"]):
                    case "us":
                        await history.batch_add_history(add_many([f"us {now}"]))
                        account.committed({f"us {now}": now}, now)
                    case "user" if connection not in open_:
                        transaction = connection.transaction()
                        await transaction.start()
                        open_[connection] = (transaction, {})
                        if chance.random() < 0.5:
                            await connection.fetchval(_TAKE_NUMBER)
                    case "user":
                        texts = [f"{now} {n}" for n in range(chance.choice([1, 1, 2, 1_100]))]
                        await add_in(history, connection, *texts)
                        open_[connection][1].update(dict.fromkeys(texts, now))
                    case "end" if connection in open_:
                        transaction, written = open_.pop(connection)
                        if chance.random() < 0.3:
                            await transaction.rollback()
                        else:
                            await transaction.commit()
                            account.committed(written, now)
                    case "look" if chance.random() < 0.5:
                        await account.read_some(chance.randint(1, 2_500))
                    case "look":
                        await account.read_all()
            for transaction, _ in open_.values():
                await transaction.rollback()
            await account.read_all()


class Account:
    """Notes when texts were committed, and what a follower, often resumed by its cursor, yields."""

    def __init__(self, history: PostgresHistoryManager) -> None:
        self._history = history
        self._cursor: str | None = None
        self._times: dict[str, tuple[int, int]] = {}
        self._seen: list[str] = []

    def committed(self, written: dict[str, int], acked: int) -> None:
        """Note texts, when each was written, and when their commit was acked."""
        self._times |= {text: (at, acked) for text, at in written.items()}

    async def read_all(self) -> None:
        """Read everything that is committed: once, nothing else, and in the order of acks."""
        following = self._history.follow(after=self._cursor)
        self._see([record.new_memory for record in await up_to_now(self._history, following)])
        self._cursor = following.cursor
        assert set(self._seen) == set(self._times)

    async def read_some(self, count: int) -> None:
        following = self._history.follow(after=self._cursor, memory_id="m")
        left = len(self._times) - len(self._seen)
        self._see(await first(following, min(count, left)))
        self._cursor = following.cursor

    def _see(self, texts: list[str | None]) -> None:
        self._seen += [text for text in texts if text is not None]
        assert len(set(self._seen)) == len(self._seen), "twice"
        first_ack = len(self._times) + 1_000
        for text in reversed(self._seen):
            written, acked = self._times[text]
            assert written <= first_ack, f"{text} was written after the ack of a later one"
            first_ack = min(first_ack, acked)


@own_servers
class TestServers:
    async def test_connections_are_killed_and_the_server_crashes(
        self, server: PostgresServer, url: str
    ) -> None:
        """While many write: every record once."""
        async with opened(url) as history, Reading(history.follow()) as reading:
            async with Load(history) as load:
                for mode in ("fast", "immediate", "immediate"):
                    for _ in range(10):
                        await load.more_acks(20)
                        async with connected(server) as admin:
                            await admin.execute(_TERMINATE_ALL)
                    await asyncio.to_thread(server.restart, mode)
                await load.more_acks(50)
            stored = [record async for record in history.query_history()]
            await reading.until(len(stored))
            await history.add_history("m", None, "the last", "ADD")
            assert (await reading.until(len(stored) + 1))[-1] == "the last"
        assert {record.id for record in reading.records[:-1]} == {record.id for record in stored}
        assert len({record.id for record in reading.records}) == len(stored) + 1

    async def test_transaction_numbers_that_are_used_again_after_a_crash(self) -> None:
        """Transactions that left nothing on disk have ended in one snapshot, not in later ones."""
        server = PostgresServer(fsync="off", wal_writer_delay="10s").create().start()
        try:
            async with opened(server.url()) as history:
                await history.add_history("m", None, "before", "ADD")
                following = history.follow()
                assert await first(following, 1) == ["before"]
                async with connected(server) as connection:
                    for _ in range(30):
                        transaction = connection.transaction()
                        await transaction.start()
                        given = await connection.fetchval(_TAKE_NUMBER)
                        await transaction.rollback()
                assert following.cursor is not None
                cursors = [await history.end_cursor()]
                for memory_id in (None, "none"):  # there is nothing new, and the cursor may advance
                    position = position_from_cursor(following.cursor)
                    cursors.append(
                        str((await history.store.follower.page(position, memory_id, 9)).end)
                    )
                await asyncio.to_thread(server.restart, "immediate")
                texts = [str(number) for number in range(20)]
                for text in texts:
                    await history.add_history("m", None, text, "UPDATE")
                async with connected(server) as connection:
                    assert await connection.fetchval(_TAKE_NUMBER) < given, (
                        "no number was used again"
                    )
                for cursor in cursors:
                    assert await first(history.follow(after=cursor), 20) == texts
                    assert await texts_by_pages(history, cursor, 3) == texts
        finally:
            server.remove()

    async def test_a_standby_is_read(self) -> None:
        """It does not know the running transactions. A late commit is yielded, but late."""
        primary = PostgresServer(fsync="off").create().start()
        standby = primary.standby()
        try:
            async with opened(primary.url()) as history:
                await history.add_history("m", None, "first", "ADD")
            standby.start()
            async with AsyncExitStack() as stack:
                admin = await stack.enter_async_context(connected(standby))
                await until(partial(has_texts, admin, "first"))
                history = await stack.enter_async_context(
                    opened(primary.url(), read_url=standby.url())
                )
                held = await stack.enter_async_context(connected(primary))
                reading = await stack.enter_async_context(
                    Reading(
                        history.follow(after=await history.end_cursor(), poll_interval_s=SOON_S)
                    )
                )
                await history.add_history("m", None, "before", "ADD")
                await reading.until(1)
                async with held.transaction():
                    await add_in(history, held, "held")
                    await history.add_history("m", None, "after", "ADD")
                    await until(partial(has_texts, admin, "after"))
                    end = await history.end_cursor()
                    assert end is not None
                    witness = position_from_cursor(end).witness
                    assert witness is not None
                    assert witness.next_xact is None, "it does not know which numbers were used"
                    looked = history.follow(after=end, poll_interval_s=SOON_S)
                assert sorted(map(str, await reading.until(3))) == ["after", "before", "held"]
                rest = await first(looked, 2)
                assert sorted(map(str, rest)) == ["after", "held"]
                await history.add_history("m", None, "last", "ADD")
                assert (await reading.until(4))[3] == "last"
        finally:
            standby.remove()
            primary.remove()

    async def test_a_standby_that_is_behind(self) -> None:
        """The cursor's window was seen on the primary, and has not fully arrived here.

        One transaction is known here and still running; others have not begun yet.
        """
        primary = PostgresServer(fsync="off").create().start()
        standby = primary.standby()
        try:
            async with opened(primary.url()) as history, connected(primary) as held:
                standby.start()
                async with connected(standby) as admin:

                    async def check(*texts: str) -> None:
                        """Read one text on the primary, continue here, and let the rest arrive."""
                        following = history.follow(after=end)
                        assert await first(following, 1) == [texts[0]]
                        url = standby.url()
                        async with opened(primary.url(), read_url=url) as behind:
                            position = position_from_cursor(str(following.cursor))
                            assert position.window is not None
                            read = await behind.store.follower.page(position, None, 9)
                            assert (read.records, read.end, read.is_last) == ([], position, True)
                            there = behind.follow(after=str(position), poll_interval_s=SOON_S)
                            async with Reading(there) as reading:
                                await admin.execute("SELECT pg_wal_replay_resume()")
                                assert await reading.until(len(texts) - 1) == [*texts[1:]]

                    await history.add_history("m", None, "before", "ADD")
                    end = await history.end_cursor()
                    async with held.transaction():
                        await held.fetchval(_TAKE_NUMBER)
                        await history.batch_add_history(add_many(["0", "1"]))
                        await add_in(history, held, "held")
                        await until(partial(has_texts, admin, "before", "0", "1"))
                        await paused_replay(admin)
                    await check("0", "1", "held")
                    await until(partial(has_texts, admin, "held"))
                    await paused_replay(admin)
                    end = await history.end_cursor()
                    await history.batch_add_history(add_many(["2", "3", "4"]))
                    await check("2", "3", "4")
        finally:
            standby.remove()
            primary.remove()

    async def test_a_dump_restored_elsewhere(self, server: PostgresServer, schema: str) -> None:
        """Restored records come once and in order, and so do later ones, whatever their numbers.

        The other cluster has had fewer transactions, and passes the restored records' numbers.
        """
        other = PostgresServer(fsync="off").create(is_copied=False).start()
        url = with_query(server.url(), schema=schema)
        try:
            async with opened(url) as history, connected(other) as counting:
                async with connected(server) as here:
                    ahead = await counting.fetchval(_TAKE_NUMBER) + 60
                    while await here.fetchval(_TAKE_NUMBER) < ahead:
                        pass
                texts = [str(number) for number in range(40)]
                for text in texts:
                    await history.add_history("m", None, text, "UPDATE")
                cursor = await history.end_cursor()
            dump = server.folder / "dump.sql"
            arguments = (f"--file={dump}", f"--schema={schema}", server.url())
            await asyncio.to_thread(server.run, "pg_dump", *arguments)
            dump.chmod(0o644)
            await asyncio.to_thread(other.run, "psql", "--quiet", "--file", str(dump), other.url())
            async with opened(with_query(other.url(), schema=schema)) as history:
                with pytest.raises(CursorGone, match="another database cluster"):
                    await first(history.follow(after=cursor), 1)
                following, end = history.follow(), await history.end_cursor()
                middle = history.follow()
                assert await first(middle, 20) == texts[:20]
                assert await first(following, 40) == texts
                async with Reading(history.follow(after=end, poll_interval_s=NEVER_S)) as reading:
                    for number in range(150):
                        await history.add_history("m", None, f"new {number}", "UPDATE")
                    new = [f"new {number}" for number in range(150)]
                    assert await reading.until(150) == new
                assert await first(following, 150) == new
                for memory_id in (None, "m"):
                    assert await texts_by_pages(history, end, 20, memory_id) == new
                assert await first(history.follow(after=middle.cursor), 170) == [*texts[20:], *new]
                assert await first(history.follow(), 190) == [*texts, *new]
        finally:
            other.remove()

    async def test_a_schema_that_is_made_again(
        self, server: PostgresServer, url: str, schema: str
    ) -> None:
        async with opened(url) as history:
            await history.add_history("m", None, "x", "ADD")
            cursor = await history.end_cursor()
        async with connected(server) as connection:
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
        async with opened(url) as history:
            await history.add_history("m", None, "y", "ADD")
            with pytest.raises(CursorGone):
                await first(history.follow(after=cursor), 1)
