"""A role that may create in `public`, as all may up to PostgreSQL 14, can't run code as our role.

It plants overloads of everything that the package's SQL calls, for arguments without an exact match
in pg_catalog. Then the whole public API is called, and all other statements are prepared. The
server's log has each parsed statement, so an overload is found even if it is never executed.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any, Final

import asyncpg
import pytest

from async_history import (
    HistoryConflict,
    IdConflict,
    JsonLines,
    OwnerConflict,
    check_history,
    copy_history,
    dump_lines,
    open_history,
)
from async_history._postgres import schema as migrations
from async_history.ledger import LedgerKey
from async_history.postgres import ForeignTable, PostgresHistoryManager
from tests.support.keys import ring
from tests.support.planted_overloads import LOGGING, plant, prepare, taken, unqualified, untried
from tests.support.postgres_server import PostgresServer, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]

ROLES: Final = """
CREATE ROLE anon;
CREATE ROLE mallory LOGIN;
CREATE ROLE admin LOGIN SUPERUSER;
CREATE ROLE agent LOGIN;
ALTER ROLE admin SET debug_print_parse = on;
ALTER ROLE agent SET debug_print_parse = on;
GRANT CREATE ON SCHEMA public TO PUBLIC;
"""
RIGHTS: Final = """
GRANT USAGE ON SCHEMA async_history TO agent;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE
    ON ALL TABLES IN SCHEMA async_history TO agent;
CREATE POLICY agents ON async_history.history TO agent USING (true);
CREATE POLICY agents ON async_history.messages TO agent USING (true);
CREATE POLICY agents ON async_history.migrations TO agent USING (true);
CREATE POLICY agents ON async_history.operations TO agent USING (true);
CREATE POLICY agents ON async_history.owners TO agent USING (true);
CREATE POLICY agents ON async_history.owners_state TO agent USING (true);
CREATE POLICY agents ON async_history.erased TO agent USING (true);
"""
FOREIGN: Final = """
CREATE SCHEMA theirs;
CREATE TABLE theirs.memory_history (
    id uuid, memory_id varchar, previous_value varchar, new_value varchar, action varchar,
    created_at timestamptz, updated_at timestamptz, is_deleted integer
);
INSERT INTO theirs.memory_history VALUES
    ('00000000-0000-0000-0000-000000000001', 'm', NULL, 'x', 'ADD', '2025-01-01', NULL, 0);
CREATE TABLE theirs.history (
    id varchar, memory_id varchar, old_memory text, new_memory text, event varchar,
    created_at timestamp, updated_at timestamp, is_deleted integer, actor_id text, role text
);
INSERT INTO theirs.history VALUES
    ('1', 'm', NULL, 'x', 'ADD', '2025-01-01', NULL, 0, NULL, NULL);
"""


class Calls:
    """A manager that notes which of its methods are called."""

    def __init__(self, history: PostgresHistoryManager) -> None:
        self._history = history
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._history, name)


ONLY_ON_CITUS: Final = {"citus._DISTRIBUTE", "citus._COPY_TO_ALL", "schema._IS_DISTRIBUTED"}
"""Statements that call functions of the extension."""
NEVER_SQL: Final = {
    *("aclose", "close", "require_writable", "backend", "store", "backup", "encryption"),
    "ledger",
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off").create()
    server.write_settings(**LOGGING)
    yield server.start()
    server.remove()


@asynccontextmanager
async def connected(server: PostgresServer, user: str = "owner") -> Any:
    connection = await asyncpg.connect(server.url(user=user))
    try:
        yield connection
    finally:
        await connection.close()


async def test_every_name_is_qualified(server: PostgresServer) -> None:
    async with connected(server) as connection:
        rows = await connection.fetch(
            "SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"
        )
    assert unqualified({name for (name,) in rows}) == []


async def test_nothing_planted_is_taken(server: PostgresServer) -> None:
    async with connected(server) as owner:
        await owner.execute(ROLES)
        await owner.execute(FOREIGN)
        async with connected(server, "mallory") as mallory:
            await plant(mallory)
        await owner.execute("SET search_path = pg_catalog")
        try:
            await migrate_from_everything(server)
            await owner.execute(RIGHTS)
            await use_all(server, "agent")
            await use_all(server, "admin")
            await use_encrypted(server)
            await use_proven(server)
            await use_as_on_citus(server)
            await use_locks(server)
            await copy_all(server)
            others = untried(log_of(server))
            async with connected(server, "admin") as admin:
                await prepare(admin, (others[name] for name in others.keys() - ONLY_ON_CITUS))
        finally:
            log = log_of(server)
            assert await taken(owner, log) == []
        assert untried(log).keys() == ONLY_ON_CITUS


def log_of(server: PostgresServer) -> str:
    return (server.folder / "log").read_text(errors="replace")


async def migrate_from_everything(server: PostgresServer) -> None:
    """Migrate from every earlier version, and create a new schema."""
    url = server.url(user="admin")
    async with connected(server, "admin") as admin:
        for earlier in range(1, migrations.VERSION):
            schema = f"from_{earlier}"
            with pytest.MonkeyPatch.context() as patched:
                older = {n: text for n, text in migrations.SCRIPTS.items() if n <= earlier}
                patched.setattr(migrations, "SCRIPTS", older)
                patched.setattr(migrations, "VERSION", earlier)
                await migrations.migrate(admin, schema)
            async with open_history(with_query(url, schema=schema)) as history:
                await history.add_history("m", None, "x", "ADD")
    async with open_history(url):
        pass


async def use_all(server: PostgresServer, user: str) -> None:
    """Call every method of a manager."""
    url = server.url(user=user)
    async with PostgresHistoryManager(url) as manager:
        history: Any = Calls(manager)
        await write(history)
        async with connected(server, user) as connection, connection.transaction():
            records = [{"memory_id": "t", "new_memory": "x", "event": "ADD", "id": "t"}]
            await history.add_in_transaction(connection, records)
        await read(history)
        await follow(history)
        await take_back(history)
        await remove(history)
        await write_many_details(history)
        await history.reset()
        public = {name for name in dir(PostgresHistoryManager) if not name.startswith("_")}
        assert public - history.names == NEVER_SQL, "call the new method here too"
    async with PostgresHistoryManager(with_query(url, statement_cache_size="0")) as pooled:
        await write(Calls(pooled))
        await pooled.get_history("m")
        await pooled.reset()
    async with PostgresHistoryManager(url, migrate=False, read_url=url) as reading:
        await reading.stats()


async def use_encrypted(server: PostgresServer) -> None:
    """Write, read and erase an encrypted history and rotate its keys, as its owner."""
    async with PostgresHistoryManager(
        server.url(user="admin"), schema="encrypted", keys=ring("one")
    ) as history:
        await write(Calls(history))
        await read(history)
        await remove(history)
        await history.encryption.rotate_keys()
        await history.encryption.encrypt()
        await history.encryption.replace_data_keys(user_id="ann")
        await history.encryption.replace_data_keys()
        await history.encryption.decrypt()
        async with connected(server, "admin") as connection, connection.transaction():
            await history.add_in_transaction(connection, [{"memory_id": "t", "event": "ADD"}])


async def use_proven(server: PostgresServer) -> None:
    """Write, remove and prove records of a history with a ledger, as its owner."""
    key = LedgerKey.generate("example.org/history")
    async with PostgresHistoryManager(
        server.url(user="admin"), schema="proven", ledger=True
    ) as history:
        old = await history.ledger.checkpoint(key)
        await write(Calls(history))
        async with connected(server, "admin") as connection, connection.transaction():
            await history.add_in_transaction(connection, [{"memory_id": "t", "event": "ADD"}])
        new = await history.ledger.checkpoint(key)
        await history.ledger.prove("named", new)
        await history.ledger.prove_growth(old, new)
        async with connected(server, "admin") as connection:
            await connection.execute(
                "INSERT INTO proven.history (id, memory_id, event, is_deleted)"
                " VALUES ('x', 'x', 'ADD', false)"
            )
        assert (await history.ledger.verify(old, new)).unattested == ("x",)
        await remove(history)
        await history.reset()
        assert (await history.ledger.verify(old, new)).is_intact


async def use_as_on_citus(server: PostgresServer) -> None:
    """Run the statements of distributed tables, which any server accepts."""

    async def is_distributed(*_: object) -> bool:
        return True

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrations, "is_distributed", is_distributed)
        async with PostgresHistoryManager(server.url(user="agent")) as history:
            await write(Calls(history))
            await read(Calls(history))
            await remove(history)
            await history.reset()


async def use_locks(server: PostgresServer) -> None:
    """Take turns between processes, as mem0's memories do."""
    locks = open_history(server.url(user="agent")).backend.new_locks()
    assert locks is not None
    await asyncio.to_thread(locks.open)
    granted = threading.Event()
    locks.ask_for(1, granted.set)
    assert await asyncio.to_thread(granted.wait, 30)
    assert locks.take(1)
    locks.release(1)
    granted.clear()
    locks.ask_for(2, granted.set)
    assert await asyncio.to_thread(granted.wait, 30)
    locks.stop_asking(2)


DETAILS: Final[dict[str, Any]] = {
    "owner": {"user_id": "ann", "run_id": "r"},
    "context": {"tags": ["tea"]},
    "cause": {"request_id": "1", "why": "asked"},
}


async def write_details(history: Any) -> None:
    """Write owners of new memories, of one that has records, and of none."""
    await history.add_history("late", None, "tea", "ADD")
    await history.add_history("late", None, "tea", "UPDATE", **DETAILS)
    await history.add_history("new", None, "tea", "ADD", **DETAILS)
    await history.update_history("new", "mate", context={})
    with pytest.raises(OwnerConflict):
        await history.update_history("new", "milk", owner={"user_id": "bob"})
    batch = [{"memory_id": f"o{n % 3}", "new_memory": f"{n}", "event": "ADD"} for n in range(9)]
    await history.batch_add_history([{**one, **DETAILS} for one in batch])
    await history.batch_add_history(batch)
    await history.batch_add_history([{**one, "event": "UPDATE", "memory_id": "x"} for one in batch])
    await history.batch_add_history([{**one, **DETAILS, "memory_id": "x"} for one in batch])


async def write_many_details(history: Any) -> None:
    """Write so many records at once that they get a transaction with its own time limit."""
    many = [{"memory_id": f"large {n}", "event": "ADD", **DETAILS} for n in range(3_000)]
    await history.batch_add_history(many)


async def write(history: Any) -> None:
    first = await history.add_history("m", None, "tea", "ADD", actor_id="ann", role="user")
    await history.add_history("m", "tea", "mate", "UPDATE", id="named")
    await history.add_history("m", "tea", "mate", "UPDATE", id="named")
    with pytest.raises(IdConflict):
        await history.add_history("m", "tea", "milk", "UPDATE", id="named")
    with pytest.raises(HistoryConflict):
        await history.add_history("m", "x", "y", "UPDATE", if_latest=first)
    await history.update_history("m", "matcha", actor_id="bob")
    batch = [
        {"memory_id": f"m{n % 3}", "new_memory": f"text {n}", "event": "UPDATE"} for n in range(9)
    ]
    await history.batch_add_history(batch)
    await history.batch_add_history([{**one, "id": f"id {n}"} for n, one in enumerate(batch)])
    await asyncio.gather(*(history.batch_add_history([one]) for one in batch))
    undated = {"memory_id": "gone", "event": "DELETE", "created_at": None, "updated_at": None}
    await history.batch_add_history([undated])
    await history.restore("m", to=1)
    for number in range(12):
        await history.save_messages([{"role": "user", "content": str(number)}] * 2, "scope")
    await write_details(history)


async def read(history: Any) -> None:
    now = datetime.now(UTC)
    await history.get_history("m")
    await history.get_last_messages("scope")
    assert not (await history.check()).problems
    filters: list[dict[str, Any]] = [
        {},
        {"memory_id": "m"},
        {"memory_id": ["m", "m1"]},
        {"actor_id": "ann"},
        {"role": "user"},
        {"event": "ADD"},
        {"text": "tea"},
        {"since": now - timedelta(days=1)},
        {"until": now},
    ]
    filters += [first | second for first in filters for second in filters[-4:]]
    details: list[dict[str, Any]] = [
        {"user_id": "ann"},
        {"agent_id": "ann", "run_id": "r"},
        {"cause": {"request_id": "1"}},
        {"cause": {"why": "asked"}},
    ]
    more: tuple[dict[str, Any], ...] = (
        {},
        {"memory_id": "m"},
        {"event": "ADD", "text": "tea"},
        {"since": now},
    )
    filters += [first | second for first in details for second in more]
    for wanted in filters:
        await history.count_history(**wanted)
        for order in ("oldest", "newest"):
            query = history.query_history(**wanted, order=order, page_size=2)
            async with aclosing(query.pages()) as pages:
                for _ in ("at the start", "after a cursor"):
                    await anext(pages, None)
    async with aclosing(history.query_history(page_size=3).pages()) as pages:
        cursor = (await anext(pages)).cursor
    async for _ in history.query_history(after=cursor, page_size=3):
        pass
    for when in (now, now - timedelta(days=1)):
        async for _ in history.memories_at(when):
            pass
        await history.memory_at("m", when)
        async for _ in history.memories_at(when, user_id="ann"):
            pass
    async for _ in history.memories(user_id="ann"):
        pass
    await history.diff("m", 1, 2)
    await history.stats()
    history = getattr(history, "_history", history)
    assert [line async for line in dump_lines(history)]


async def follow(history: Any) -> None:
    for memory_id in (None, "m"):
        following = history.follow(memory_id=memory_id, poll_interval_s=0.01)
        await anext(following)
        cursor = following.cursor
        await history.add_history("m", "x", "y", "UPDATE")
        async for record in history.follow(after=cursor, memory_id=memory_id):
            if record.new_memory == "y":
                break
    end = await history.end_cursor()
    task = asyncio.ensure_future(anext(history.follow(after=end)))
    await history.add_history("m", "x", "z", "UPDATE")
    await task


async def take_back(history: Any) -> None:
    now = datetime.now(UTC)
    for is_dry in (True, False):
        await history.undo(cause={"request_id": "1"}, dry_run=is_dry)
        await history.undo(run_id="r", dry_run=is_dry)
        await history.rollback(to=now - timedelta(days=1), user_id="ann", dry_run=is_dry)
        await history.rollback(to=now - timedelta(days=1), memory_ids=["m", "m1"], dry_run=is_dry)


async def remove(history: Any) -> None:
    once = token_hex(8)  # an owner that was erased is refused afterwards
    await history.add_history(once, None, "tea", "ADD", owner={"user_id": once})
    for is_dry in (True, False):
        await history.erase(memory_ids=["m1"], reason="asked", dry_run=is_dry)
        await history.erase(memory_ids=["m", "m2"], reason="asked", dry_run=is_dry)
        await history.erase(actor_id="ann", reason="asked", dry_run=is_dry)
        await history.erase(session_scopes=["scope"], reason="asked", dry_run=is_dry)
        await history.erase(record_ids=["id 1"], reason="asked", dry_run=is_dry)
        await history.erase(user_id=once, reason="asked", dry_run=is_dry)
        for keep_last in (1, 2, 0):
            older_than = datetime.now(UTC) + timedelta(days=1)
            await history.prune(older_than=older_than, keep_last=keep_last, dry_run=is_dry)
    await history.erasures()
    done = await history.operations()
    await history.operations(before=done[-1].id, limit=1)


async def copy_all(server: PostgresServer) -> None:
    """Copy from and to everything, and check."""
    url = server.url(user="admin")
    target = with_query(url, schema="target")
    async with open_history(target) as history:
        await copy_history(ForeignTable(url, schema="theirs"), history)
        lines = [line async for line in dump_lines(history)]
        await copy_history(JsonLines(lines), history)
        async with open_history("memory://") as other:
            await copy_history(history, other)
            await copy_history(ForeignTable(url, schema="theirs", table="history"), other)
            await write_messages(other)
            await copy_history(other, history)
    for each in (target, url):
        assert not (await check_history(each)).problems


async def write_messages(history: Any) -> None:
    await history.save_messages([{"role": "user", "content": "x"}], "scope")
