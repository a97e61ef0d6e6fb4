"""A role that may create in `public`, as all may up to PostgreSQL 14, can't run code as our role.

It plants overloads of everything that the package's SQL calls, for arguments without an exact match
in pg_catalog. Then the whole public API is called, and all other statements are prepared. The
server's log has each parsed statement, so an overload is found even if it is never executed.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest

from async_history import JsonLines, check_history, copy_history, dump_lines, open_history
from async_history._postgres.schema import migrations
from async_history.ledger import LedgerKey
from async_history.postgres import ForeignTable, PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write, write_many_details
from tests.support.keys import ring
from tests.support.patience import LONG_S
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


ONLY_ON_CITUS: Final = {
    "citus._COPY_TO_ALL",
    "citus._DISTRIBUTE",
    "removing.vacuum._FILES_OF_SHARDS",
    "schema.migrations._IS_DISTRIBUTED",
}
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
    assert await asyncio.to_thread(granted.wait, LONG_S)
    assert locks.take(1)
    locks.release(1)
    granted.clear()
    locks.ask_for(2, granted.set)
    assert await asyncio.to_thread(granted.wait, LONG_S)
    locks.stop_asking(2)


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
