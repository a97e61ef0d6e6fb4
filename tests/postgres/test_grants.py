"""The least rights of a role: what it can do with them, that it needs each, and whose records it
sees."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from itertools import takewhile
from typing import Any, Final

import asyncpg
import pytest
from typer.testing import CliRunner

from async_history import (
    HistoryManager,
    InvalidInput,
    StorageDenied,
    StorageError,
    StorageLocked,
    StorageMissing,
    open_history,
)
from async_history._postgres.grants import LEVELS, Grants, Level, checked_level, grant
from async_history.cli.app import app
from async_history.encryption import KeyRing
from tests.support.keys import ring
from tests.support.parts import Places, in_parts
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_roles import (
    BOB,
    ROLE_PASSWORD,
    NewSchema,
    as_role,
    make_records,
    remove,
    server_of,
    take_back,
)
from tests.support.postgres_schemas import schema_of, until

pytestmark = [pytest.mark.postgres, pytest.mark.once]

ANN = {"user_id": "ann"}
ROLES: Final = ("agent", "other")

Call = Callable[[HistoryManager], Awaitable[Any]]


async def read(history: HistoryManager) -> None:
    (first, *_) = await history.get_history("m")
    assert [record async for record in history.query_history(user_id="ann")]
    await history.count_history(text="tea")
    await history.count_history(cause={"request_id": "r"})
    await history.get_last_messages("s")
    await history.operations()
    assert [record async for record in history.memories(user_id="ann")]
    async for record in history.follow():
        if record == first:
            break
    assert (await history.check()).problems == ()
    await history.stats()


async def rekey(history: HistoryManager) -> None:
    await history.encryption.rotate_keys()
    await history.encryption.encrypt()


CALLS: Final[Mapping[Level, tuple[Call, ...]]] = {
    "reader": (read,),
    "writer": (read, make_records, take_back),
    "operator": (read, make_records, take_back, remove),
}


@pytest.fixture
def url(new_schema: NewSchema) -> str:
    return new_schema()


@pytest.fixture
async def owner(connect: Any) -> AsyncIterator[Any]:
    """The owner's connection, with two roles that may log in."""
    connection = await connect()
    for role in ROLES:
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{ROLE_PASSWORD}'")
    yield connection
    for role in ROLES:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


_WAITS = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%POLICY%'
)
"""
"""Whether a policy waits for a table's lock."""


async def filled(url: str, keys: KeyRing | None = None) -> None:
    async with open_history(url, keys=keys) as history:
        await history.add_history("m", None, "tea", "ADD", owner=ANN, actor_id="carl")
        await history.add_history("n", None, "tea", "ADD", owner=BOB)


async def granted(url: str, level: Level, role: str = "agent", only: str | None = None) -> None:
    wanted = Grants(role=role, level=level, only=only)
    await grant(server_of(url), schema_of(url), wanted, is_dry_run=False)


@pytest.mark.versions
@pytest.mark.parametrize("level", LEVELS)
async def test_a_role_can_do_what_its_level_allows_and_no_more(
    url: str, owner: Any, level: Level
) -> None:
    await filled(url)
    await granted(url, "operator")
    await granted(url, level)  # removes the earlier rights
    async with open_history(as_role(url, "agent")) as history:
        for call in CALLS[level]:
            await call(history)
        if level == "reader":
            with pytest.raises(StorageDenied):
                await history.update_history("m", "water")
        elif level == "writer":
            with pytest.raises(StorageDenied):
                await history.reset()


async def test_rights_granted_during_a_vacuum(url: str, owner: Any, connect: Any) -> None:
    """Reads and writes go on while the lock that a policy needs is waited for."""
    await filled(url)
    vacuuming = await connect()
    begin = f"BEGIN; LOCK TABLE {schema_of(url)}.history IN SHARE UPDATE EXCLUSIVE MODE"
    wanted = Grants(role="agent", level="reader")
    async with asyncio.timeout(LONG_S), open_history(url) as history:
        await vacuuming.execute(begin)
        with pytest.raises(StorageLocked, match="grant again"):
            await grant(server_of(url), schema_of(url), wanted, is_dry_run=False, switch_within_s=0)
        granting = asyncio.ensure_future(granted(url, "reader"))
        await until(owner, _WAITS)
        for _ in range(5):
            await history.add_history("m", None, "x", "UPDATE")
            await history.get_history("m")
        assert not granting.done()
        await vacuuming.execute("COMMIT")
        await granting
    async with open_history(as_role(url, "agent")) as history:
        assert len(await history.get_history("m")) == 6


@in_parts(4, nightly=1)
@pytest.mark.parametrize("level", LEVELS)
async def test_each_right_is_needed(url: str, owner: Any, level: Level, places: Places) -> None:
    """Each right that the level below lacks, on an encrypted history, which needs the most."""
    await filled(url, ring("old"))
    below: list[str] = []
    for one in LEVELS[: LEVELS.index(level) + 1]:
        wanted = Grants(role="agent", level=one)
        statements = await grant(server_of(url), schema_of(url), wanted, is_dry_run=True)
        added, below = [sql for sql in statements if sql not in below], statements
    given = [re.fullmatch(r"GRANT (.+) ON (\S+) TO agent;", sql.replace('"', "")) for sql in added]
    rights = [
        f"{privilege} ON {one[2]}"
        for one in given
        if one
        for privilege in re.split(r", (?![^(]*\))", one[1])
    ]
    emptied = ("erased", "encryption", "wrapping_keys", "data_keys")
    tables = ", ".join(f"{schema_of(url)}.{table}" for table in emptied)
    needless: list[str] = []
    for right in takewhile(lambda place: place < len(rights), places):
        await granted(url, level)
        await owner.execute(f'REVOKE {rights[right]} FROM "agent"')
        try:
            async with open_history(
                as_role(url, "agent"), keys=ring("new", "old"), retry_timeout_s=5
            ) as history:
                for call in (*CALLS[level], *([rekey] if level == "operator" else [])):
                    await call(history)
        except StorageError:
            pass
        else:
            needless.append(rights[right])
        async with open_history(url, keys=ring("new", "old")) as history:
            await history.reset()
        await owner.execute(f"TRUNCATE {tables}")
        await filled(url, ring("old"))
    assert len(rights) >= places.stride
    assert needless == []


async def test_bad_arguments_are_refused(url: str, owner: Any) -> None:
    with pytest.raises(InvalidInput, match="one of reader, writer, operator"):
        checked_level("admin")
    with pytest.raises(InvalidInput, match="user_id, agent_id"):
        Grants(role="agent", level="reader", only="tenant")
    with pytest.raises(InvalidInput, match="only a reader"):
        Grants(role="agent", level="writer", only="user_id")
    with pytest.raises(StorageMissing, match="migrate it first"):
        await granted(url, "reader")
    await filled(url)
    with pytest.raises(InvalidInput, match='CREATE ROLE "x""y" LOGIN'):
        await granted(url, "reader", 'x"y')
    await owner.execute(f"GRANT SELECT ON {schema_of(url)}.history TO other")
    with pytest.raises(InvalidInput, match="hide all records from other"):
        await granted(url, "reader", only="user_id")
    await granted(url, "writer", "other")
    await granted(url, "reader", only="user_id")


def test_the_command(url: str, owner: Any) -> None:
    asyncio.run(filled(url))
    arguments = ["grants", "agent", "writer", "--db", url]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.stderr
    with pytest.raises(StorageDenied):
        asyncio.run(recorded(url))
    assert CliRunner().invoke(app, [*arguments, "--yes"]).stdout == printed.stdout
    asyncio.run(recorded(url))
    for wrong, message in (
        (["grants", "agent", "admin", "--db", url], "one of reader, writer, operator"),
        (["grants", "agent", "reader", "--db", "memory://"], "only a history in PostgreSQL"),
    ):
        result = CliRunner().invoke(app, wrong)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


async def recorded(url: str) -> None:
    async with open_history(as_role(url, "agent")) as history:
        await make_records(history)


@pytest.mark.versions
async def test_a_reader_of_one_owner_sees_no_other(url: str, owner: Any) -> None:
    await filled(url)
    await granted(url, "writer", "other")
    await granted(url, "reader", only="user_id")
    await owner.execute("ALTER ROLE agent SET async_history.user_id = 'ann'")
    async with open_history(as_role(url, "agent")) as history:
        assert [record.memory_id async for record in history.query_history()] == ["m"]
        assert await history.get_history("n") == []
        assert [record.memory_id async for record in history.memories(user_id="ann")] == ["m"]
        assert [record async for record in history.memories(user_id="bob")] == []
        assert await history.count_history(user_id="bob") == 0
        with pytest.raises(StorageDenied):
            await history.get_last_messages("s")
        with pytest.raises(StorageDenied):
            await history.operations()
    async with open_history(as_role(url, "other")) as history:
        await make_records(history)
        assert await history.get_history("n") != []


@pytest.mark.pgbouncer
async def test_a_setting_of_one_transaction_through_a_pooler(url: str, owner: Any) -> None:
    """Two clients share the pooler's one connection to the server."""
    await filled(url)
    await granted(url, "reader", only="user_id")
    history = f"{schema_of(url)}.history"
    with pgbouncer(as_role(server_of(url), "agent"), pool_size=1) as pooled:
        one = await asyncpg.connect(pooled, statement_cache_size=0)
        two = await asyncpg.connect(pooled, statement_cache_size=0)
        try:
            for client, name, seen in ((one, "ann", ["m"]), (two, "bob", ["n"])):
                async with client.transaction():
                    await client.execute(f"SET LOCAL async_history.user_id = '{name}'")
                    rows = await client.fetch(f"SELECT memory_id FROM {history}")
                    assert [row[0] for row in rows] == seen
                assert await client.fetch(f"SELECT memory_id FROM {history}") == []
        finally:
            await one.close()
            await two.close()
