"""Erasures of an owner while others write, read and vacuum: they end in time, and no text comes
back from a transaction that began before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import asyncpg
import pytest

from async_history import (
    Erased,
    ErasureReport,
    HistoryManager,
    HistoryRecord,
    Owner,
    StorageLocked,
    open_history,
)
from async_history._core.removing.erase_transaction import note
from async_history._core.writing.new_submissions import UncheckedRecords
from async_history._postgres.grants import Grants, grant
from async_history.postgres import PostgresHistoryManager
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_batches import commit_on
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_schema,
    a_url,
    until_more_wait,
)
from tests.support.postgres_gate import shut
from tests.support.postgres_roles import ROLE_PASSWORD, as_role
from tests.support.postgres_schemas import until
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.versions,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs prepared transactions"),
]

ANN: Final[dict[str, Any]] = {"user_id": "ann"}
BOB: Final = {"user_id": "bob"}
ASKED: Final = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE query LIKE '%pg_locks AS held%' AND pid <> pg_backend_pid() AND query_start > $1
)
"""
"""Whether an erasure has looked for open transactions since an instant."""


@pytest.fixture(name="server", scope="module")
def a_server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", max_prepared_transactions="5").create()
    yield server.start()
    server.remove()


@pytest.fixture
async def connect(server: PostgresServer) -> AsyncIterator[Callable[[], Any]]:
    connections: list[Any] = []

    async def connected() -> Any:
        connections.append(await asyncpg.connect(server.url()))
        return connections[-1]

    yield connected
    for connection in connections:
        connection.terminate()


@contextlib.asynccontextmanager
async def erasing(
    history: HistoryManager, admin: Any, schema: str, **named: Any
) -> AsyncIterator["asyncio.Task[ErasureReport]"]:
    """Begin an erasure; yield it once its first names are noted."""
    asked = named or ANN
    begun = history.erase(**asked, reason="asked", vacuum=False)
    async with asyncio.timeout(LONG_S):
        task = asyncio.ensure_future(begun)
        try:
            await until(admin, f"SELECT EXISTS (SELECT FROM {schema}.erased)")
            yield task
            await task
        finally:
            task.cancel()


async def others_write(*managers: HistoryManager) -> None:
    """Write for another owner, and without one."""
    async with asyncio.timeout(LONG_S):
        for history in managers:
            await history.add_history("bob's", "x", "y", "UPDATE", owner=BOB)
            await history.add_history("nobody's", None, "z", "UPDATE")
            await history.save_messages([{"role": "user", "content": "z"}], "user_id=bob")


async def fill(history: HistoryManager) -> None:
    for name in ("m", "n"):
        await history.add_history(name, None, "secret", "ADD", owner=ANN)
    await history.add_history("bob's", None, "x", "ADD", owner=BOB)


async def require_erased(history: HistoryManager, *memories: str) -> None:
    """Check that nothing of the owner is left, and the memories' records are."""
    assert [r async for r in history.query_history(text="secret")] == []
    assert await history.count_history(**ANN) == 0
    for name in memories:
        assert await history.get_history(name)
    assert await history.get_last_messages("user_id=ann") == []
    assert (await history.check()).problems == ()


def late(memory_id: str) -> dict[str, Any]:
    return {"memory_id": memory_id, "event": "UPDATE", "new_memory": "secret", "owner": ANN}


async def add_late(
    history: PostgresHistoryManager, connection: Any, memory_id: str
) -> Sequence[HistoryRecord]:
    return await history.add_in_transaction(connection, [late(memory_id)])


@pytest.mark.parametrize(
    "held",
    [
        "LOCK TABLE {schema}.history, {schema}.messages IN SHARE UPDATE EXCLUSIVE MODE",
        "LOCK TABLE {schema}.history, {schema}.owners, {schema}.erased, {schema}.owners_state"
        " IN ACCESS SHARE MODE",
    ],
    ids=["vacuum, analyze, create index concurrently", "pg_dump, long readers"],
)
async def test_others_that_do_not_write(
    url: str, schema: str, admin: Any, connect: Any, held: str
) -> None:
    """Neither the erasure nor others' writes wait for them."""
    async with open_history(url) as history, open_history(url) as other:
        await fill(history)
        other_session = await connect()
        await other_session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await other_session.execute(held.format(schema=schema))
        async with erasing(history, admin, schema):
            await others_write(history, other)
        await require_erased(history, "m", "n")


async def test_a_vacuum_that_runs(url: str, schema: str, admin: Any, connect: Any) -> None:
    async with open_history(url) as history:
        await fill(history)
        added = {"memory_id": "bob's", "event": "UPDATE", "new_memory": "x" * 500}
        await history.batch_add_history([added] * 2_000)
        await admin.execute(f"UPDATE {schema}.history SET role = 'x'")
        vacuuming = await connect()
        await vacuuming.execute("SET vacuum_cost_delay TO 100; SET vacuum_cost_limit TO 1")
        task = asyncio.ensure_future(vacuuming.execute(f"VACUUM {schema}.history"))
        await until(admin, "SELECT EXISTS (SELECT FROM pg_stat_progress_vacuum)")
        await history.erase(**ANN, reason="asked", vacuum=False)
        assert not task.done()
        await require_erased(history, "m", "n")
        vacuuming.terminate()
        await asyncio.wait([task])


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("prepared", ["no", "before", "meanwhile"])
async def test_transactions_that_are_open(
    url: str, schema: str, admin: Any, connect: Any, *, isolation: str, outcome: str, prepared: str
) -> None:
    """The erasure waits for them, and erases what they commit. Other writes do not wait."""
    async with (
        PostgresHistoryManager(url, retry_timeout_s=10 * LONG_S) as history,
        open_history(url) as other,
    ):
        await fill(history)
        opened = await connect()
        await opened.execute(f"BEGIN ISOLATION LEVEL {isolation.replace('_', ' ')}")
        await add_late(history, opened, "m")
        await add_late(history, opened, "new")
        if prepared == "before":
            await opened.execute("PREPARE TRANSACTION 'late'")
        begun = asyncio.ensure_future(history.erase(**ANN, reason="asked", vacuum=False))
        if isolation == "read_committed":
            await until(admin, f"SELECT EXISTS (SELECT FROM {schema}.erased)")
        await others_write(history, other)
        if prepared == "meanwhile":
            await opened.execute("PREPARE TRANSACTION 'late'")
            if isolation == "read_committed":
                await until(admin, ASKED, await admin.fetchval("SELECT clock_timestamp()"))
            await others_write(history, other)
        assert not begun.done()
        await opened.execute(f"{outcome} PREPARED 'late'" if prepared != "no" else outcome)
        async with asyncio.timeout(LONG_S):
            await begun
        await require_erased(history, "m", "n")
        assert len(await history.get_history("new")) == (outcome == "COMMIT")


@pytest.mark.parametrize(
    "how", [pytest.param("pooler", marks=pytest.mark.pgbouncer), "least rights"]
)
async def test_the_open_transaction_of_another_role(
    server: PostgresServer, url: str, schema: str, admin: Any, connect: Any, how: str
) -> None:
    """It is seen through a pooler too, and by a role that may only operate."""
    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(PostgresHistoryManager(url))
        await fill(writer)
        if how == "pooler":
            erased_through = with_query(
                stack.enter_context(pgbouncer(server.url(), pool_size=2)), schema=schema
            )
        else:
            await admin.execute(f"CREATE ROLE operator LOGIN PASSWORD '{ROLE_PASSWORD}'")
            rights = Grants(role="operator", level="operator")
            await grant(server.url(), schema, rights, is_dry_run=False)
            erased_through = as_role(url, "operator")
        history = await stack.enter_async_context(open_history(erased_through, pool_size=2))
        opened = await connect()
        await opened.execute("BEGIN")
        await add_late(writer, opened, "new")
        async with erasing(history, admin, schema) as task:
            await others_write(history)
            assert not task.done()
            await opened.execute("COMMIT")
        await require_erased(history, "m", "n", "new")


async def test_a_snapshot_from_before_writes_nothing(url: str, schema: str, connect: Any) -> None:
    async with PostgresHistoryManager(url) as history:
        await fill(history)
        for isolation in ("REPEATABLE READ", "SERIALIZABLE"):
            opened = await connect()
            await opened.execute(f"BEGIN ISOLATION LEVEL {isolation}; SELECT 1")
            await opened.fetch(f"SELECT * FROM {schema}.owners_state")
            await history.erase(**ANN, reason="asked", vacuum=False)
            with pytest.raises(StorageLocked, match="serialize"):
                await add_late(history, opened, "m")
            await opened.execute("ROLLBACK")
        await require_erased(history, "m", "n")


@pytest.mark.parametrize("late_one", ["a new memory", "a text", "the first owner", "a message"])
async def test_statements_that_began_before(
    url: str, schema: str, admin: Any, late_one: str
) -> None:
    """They do not see the erased name, which is noted while they run."""
    async with open_history(url) as history, open_history(url) as other:
        await fill(history)
        await other.add_history("unowned", None, "x", "ADD")
        await other.add_history("m", None, None, "DELETE")  # it knows the owners now
        async with shut(admin, schema):
            if late_one == "a new memory":
                began = other.add_history("new", None, "secret", "ADD", owner=ANN, role="late")
            elif late_one == "a text":
                began = other.add_history("m", None, "secret", "UPDATE", role="late")
            elif late_one == "the first owner":
                began = other.add_history(
                    "unowned", None, "secret", "UPDATE", owner=ANN, role="late"
                )
            else:
                said = [{"role": "late", "content": "secret"}]
                began = other.save_messages(said, "user_id=ann")  # type: ignore[assignment]
            task = asyncio.ensure_future(began)
            await until_more_wait(admin)
            begun = asyncio.ensure_future(history.erase(**ANN, reason="asked", vacuum=False))
            if late_one == "the first owner":  # it has locked the row of the number
                await until_more_wait(admin, 1)
            else:
                await until(admin, f"SELECT EXISTS (SELECT FROM {schema}.erased)")
                await others_write(history)
            assert not begun.done()
        await task
        async with asyncio.timeout(LONG_S):
            await begun
        await require_erased(history, "m", "n")


@pytest.mark.parametrize("named", [{"memory_ids": ["m"]}, {"user_id": "ann"}])
async def test_a_text_of_an_erased_memory(
    url: str, schema: str, admin: Any, connect: Any, named: dict[str, Any]
) -> None:
    async with PostgresHistoryManager(url) as history:
        await fill(history)
        opened = await connect()
        await opened.execute("BEGIN")
        await history.add_in_transaction(
            opened, [{"memory_id": "m", "event": "UPDATE", "new_memory": "secret"}]
        )
        async with erasing(history, admin, schema, **named):
            await opened.execute("COMMIT")
        records = await history.get_history("m")
        assert [one.new_memory for one in records] == [None, None]


@pytest.mark.parametrize("named", [{"record_ids": ["first"]}, {"actor_id": "eve"}])
@pytest.mark.parametrize("name", ["restore", "update", "add"])
async def test_a_text_that_was_read_before_it_is_erased(
    url: str, schema: str, admin: Any, name: str, named: dict[str, Any]
) -> None:
    """The erasure waits for a transaction that has read the text and writes it again."""
    async with open_history(url) as history, open_history(url) as other:
        first = await other.add_history("m", None, "secret", "ADD", id="first", actor_id="eve")
        if name == "restore":
            await other.update_history("m", "b")
        async with shut(admin, schema):
            if name == "restore":
                began = other.restore("m", to=1, role="late")
            elif name == "update":
                began = other.update_history("m", "b", role="late")
            else:
                began = other.add_history(
                    "m", "secret", "b", "UPDATE", role="late", if_latest=first
                )
            task = asyncio.ensure_future(began)
            await until_more_wait(admin)
            begun = asyncio.ensure_future(history.erase(**named, reason="asked", vacuum=False))
            await until_more_wait(admin, 1)
            assert not begun.done()
        await task
        async with asyncio.timeout(LONG_S):
            await begun
        assert len(await history.get_history("m")) == (3 if name == "restore" else 2)
        assert [r async for r in history.query_history(text="secret")] == []


async def test_a_record_with_the_owner_while_it_is_removed(
    url: str, schema: str, admin: Any
) -> None:
    """A record without a text, which is accepted, keeps no owner that was erased meanwhile."""
    async with PostgresHistoryManager(url) as history, open_history(url) as other:
        await fill(history)
        eraser: Any = history.store.eraser
        in_transaction = eraser.in_transaction
        tasks: list[asyncio.Task[Any]] = []
        last = asyncio.Event()

        async def with_a_writer(work: Any) -> Any:
            if work.func.__name__ == "disown":
                await other.add_history("m", None, None, "DELETE")
                began = other.add_history("m", None, None, "DELETE", role="late")
                tasks.append(asyncio.ensure_future(began))
                await until_more_wait(admin)
                last.set()
            return await in_transaction(work)

        eraser.in_transaction = with_a_writer
        async with shut(admin, schema):
            erased = asyncio.ensure_future(history.erase(**ANN, reason="asked", vacuum=False))
            await last.wait()
            await until(
                admin, f"SELECT NOT EXISTS (SELECT FROM {schema}.owners WHERE user_id = 'ann')"
            )
            await others_write(history)
            assert not erased.done()
        async with asyncio.timeout(LONG_S):
            await erased
            await asyncio.gather(*tasks)
        await require_erased(history, "m", "n")
        assert len(await history.get_history("m")) == 3


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("is_prepared", [False, True])
async def test_a_transaction_that_stays_open(
    url: str, admin: Any, connect: Any, *, isolation: str, is_prepared: bool
) -> None:
    """The error names it. Called again after its end, the erasure erases what it has written."""
    async with (
        PostgresHistoryManager(url) as history,
        open_history(url, retry_timeout_s=3) as impatient,
    ):
        await fill(history)
        opened = await connect()
        await opened.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        await add_late(history, opened, "new")
        name = f"process {opened.get_server_pid()}"
        if is_prepared:
            await opened.execute("PREPARE TRANSACTION 'late''s'")
            name = 'prepared transaction "late\'s"'
        expected = name if isolation == "READ COMMITTED" else "end it, and erase again"
        with pytest.raises(StorageLocked, match=expected):
            await impatient.erase(**ANN, reason="asked", vacuum=False)
        await others_write(history)
        await opened.execute("COMMIT PREPARED 'late''s'" if is_prepared else "COMMIT")
        await history.erase(**ANN, reason="asked", vacuum=False)
        await require_erased(history, "m", "n", "new")


class BeforeTheNumber:
    """A connection that does something before a transaction changes the number of owners."""

    def __init__(self, connection: Any, do: Callable[[], Any]) -> None:
        self._connection = connection
        self._do = do

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        if "UPDATE" in sql and "owners_state" in sql:
            await self._do()
        return await self._connection.fetch(sql, *arguments)


async def test_an_owner_that_is_erased_while_it_is_given(
    url: str, schema: str, connect: Any
) -> None:
    """The transaction has looked up the names before, and locked the table."""
    async with PostgresHistoryManager(url) as history:
        await fill(history)
        await history.add_history("unowned", None, "secret", "ADD")

        async def erase() -> None:
            noted = partial(note, [("user_id", "ann")], datetime.now(UTC))
            work = asyncio.ensure_future(history.store.eraser.in_transaction(noted))
            await until(connection, f"SELECT EXISTS (SELECT FROM {schema}.erased)")
            begun.append(work)

        connection, begun = await connect(), list[Any]()
        batch = [await UncheckedRecords([late("unowned")], None).check()]
        giving = BeforeTheNumber(await connect(), erase)
        with pytest.raises(asyncpg.SerializationError, match="changed meanwhile"):
            await commit_on(giving, schema, batch)
        await asyncio.gather(*begun)
        assert (await history.get_history("unowned"))[-1].owner is None


@pytest.mark.parametrize(
    "held",
    [
        "LOCK TABLE {schema}.history IN SHARE UPDATE EXCLUSIVE MODE",
        "LOCK TABLE {schema}.history, {schema}.owners_state IN ACCESS SHARE MODE",
    ],
    ids=["vacuum", "pg_dump"],
)
async def test_owners_given_late(url: str, schema: str, connect: Any, held: str) -> None:
    """To a memory with records, and the first one of a store."""
    async with open_history(url) as history, open_history(url) as other:
        await history.add_history("m", None, "x", "ADD")
        await history.add_history("n", None, "x", "ADD")
        opened = await connect()
        await opened.execute("BEGIN")
        await opened.execute(held.format(schema=schema))
        async with asyncio.timeout(LONG_S):
            for name in ("m", "n"):
                given = await history.add_history(name, "x", "y", "UPDATE", owner=ANN)
                assert given.owner == Owner(user_id="ann")
            await others_write(other)
        assert await history.count_history(**ANN) == 4
        await history.erase(**ANN, reason="asked", vacuum=False)
        with pytest.raises(Erased):
            await other.add_history("m", "x", "y", "UPDATE")
