"""If a trigger or a policy silently keeps a statement from changing rows, the call is not acked.

For calls that change rows other than by adding records (see `test_neighbours`): erasing, messages,
owners given later.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from secrets import token_hex
from typing import Any, Final

import asyncpg
import pytest

from async_history import StorageError, StorageRefused, open_history
from tests.support.postgres_server import PostgresServer, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

SCOPE: Final = "user_id=ann"
TRIGGER: Final = """
CREATE FUNCTION {schema}.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing BEFORE {verb} ON {schema}.{table}
FOR EACH ROW EXECUTE FUNCTION {schema}.nothing()
"""
POLICY: Final = """
ALTER TABLE {schema}.{table} ENABLE ROW LEVEL SECURITY;
CREATE POLICY seen ON {schema}.{table} FOR SELECT TO agent USING (true);
CREATE POLICY added ON {schema}.{table} FOR INSERT TO agent WITH CHECK (true)
"""
FOREIGN_KEY: Final = """
CREATE TABLE {schema}.cited (id text COLLATE "C" REFERENCES {schema}.history (id));
INSERT INTO {schema}.cited SELECT id FROM {schema}.history LIMIT 1
"""
RAISING: Final = """
CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
CREATE TRIGGER no BEFORE UPDATE OR DELETE ON {schema}.history
FOR EACH ROW EXECUTE FUNCTION {schema}.no()
"""
RIGHTS: Final = """
GRANT USAGE ON SCHEMA {schema} TO agent;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO agent
"""


async def erase_memory(history: Any) -> None:
    await history.erase(memory_ids=["m"], reason="asked")


async def erase_user(history: Any) -> None:
    await history.erase(user_id="ann", reason="asked")


async def erase_scope(history: Any) -> None:
    await history.erase(session_scopes=[SCOPE], reason="asked")


async def save_messages(history: Any) -> None:
    await history.save_messages([{"role": "user", "content": "mate"}], SCOPE)


async def give_owner(history: Any) -> None:
    await history.add_history("plain", "tea", "mate", "UPDATE", owner={"user_id": "bob"})


async def prune(history: Any) -> None:
    await history.prune(older_than=timedelta(0), keep_last=0)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off").create()
    yield server.start()
    server.remove()


@pytest.fixture
async def owner(server: PostgresServer) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(server.url())
    yield connection
    await connection.close()


@pytest.mark.parametrize("obstacle", [TRIGGER, POLICY], ids=["trigger", "policy"])
@pytest.mark.parametrize(
    ("table", "verb", "call"),
    [
        ("history", "UPDATE", erase_memory),
        ("history", "UPDATE", erase_user),
        ("history", "UPDATE", give_owner),
        ("owners", "UPDATE", erase_user),
        ("erased", "INSERT", erase_memory),
        ("owners_state", "UPDATE", erase_memory),
        ("messages", "DELETE", erase_scope),
        ("messages", "INSERT", save_messages),
    ],
)
async def test_a_statement_that_changes_nothing_is_refused(
    server: PostgresServer,
    owner: Any,
    obstacle: str,
    table: str,
    verb: str,
    call: Callable[[Any], Awaitable[None]],
) -> None:
    if obstacle is POLICY and verb == "INSERT":
        pytest.skip("a policy refuses an INSERT with an error")
    schema = f"s_{token_hex(6)}"
    url = with_query(server.url(), schema=schema)
    async with open_history(url) as history:
        await history.add_history("m", None, "tea", "ADD", owner={"user_id": "ann"})
        await history.add_history("plain", None, "tea", "ADD")
        await save_messages(history)
    if not await owner.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'agent')"):
        await owner.execute("CREATE ROLE agent LOGIN")
    await owner.execute(RIGHTS.format(schema=schema))
    await owner.execute(obstacle.format(schema=schema, table=table, verb=verb))
    rows = f"SELECT * FROM {schema}.{table} ORDER BY 1"
    before = await owner.fetch(rows)
    expected = StorageError if table == "owners_state" else StorageRefused
    async with open_history(with_query(server.url(user="agent"), schema=schema)) as history:
        with pytest.raises(expected):
            await call(history)
    assert await owner.fetch(rows) == before
    assert await owner.fetchval(f"SELECT count(*) FROM {schema}.history") == 2


@pytest.mark.parametrize(
    ("obstacle", "call"), [(FOREIGN_KEY, prune), (RAISING, prune), (RAISING, erase_memory)]
)
async def test_a_change_that_ends_with_an_error_is_refused(
    server: PostgresServer, owner: Any, obstacle: str, call: Callable[[Any], Awaitable[None]]
) -> None:
    schema = f"s_{token_hex(6)}"
    async with open_history(with_query(server.url(), schema=schema)) as history:
        await history.add_history("m", None, "tea", "ADD")
        await owner.execute(obstacle.format(schema=schema))
        with pytest.raises(StorageRefused, match="refuses this"):
            await call(history)
        (record,) = await history.get_history("m")
        assert record.new_memory == "tea"
