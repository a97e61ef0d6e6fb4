"""A server without a free connection: a call waits for one, as long as `acquire_timeout_s` says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from async_history import StorageMissing, StorageUnreachable, open_history
from async_history._postgres.connecting.lock_connection import LockConnection
from async_history._postgres.connecting.opening import open_pool
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.side_connections import SideConnections
from async_history._postgres.connecting.url import server_url
from async_history.postgres import PostgresHistoryManager
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_roles import ROLE_PASSWORD, as_role
from tests.support.postgres_schemas import schema_of

pytestmark = [pytest.mark.postgres, pytest.mark.faults, pytest.mark.once]


class Role:
    """A role with a limit of connections, and the refusals that programs in its name have got."""

    def __init__(self, owner: Any, url: str, refused: asyncio.Event) -> None:
        self._owner = owner
        self.name = f"limited_{uuid4().hex[:8]}"
        self.url = as_role(url, self.name)
        self.refused = refused

    async def create(self, schema: str) -> None:
        await self._owner.execute(
            f"CREATE ROLE {self.name} LOGIN PASSWORD '{ROLE_PASSWORD}'; "
            f'CREATE SCHEMA "{schema}" AUTHORIZATION {self.name}'
        )

    async def allow(self, connections: int) -> None:
        await self._owner.execute(f"ALTER ROLE {self.name} CONNECTION LIMIT {connections}")

    async def drop(self) -> None:
        await self._owner.execute(f"DROP OWNED BY {self.name} CASCADE; DROP ROLE {self.name}")


@pytest.fixture
async def role(
    url: str, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Role]:
    refused = asyncio.Event()
    plain = asyncpg.connect

    async def connect_noting_refusals(*arguments: Any, **options: Any) -> Any:
        try:
            return await plain(*arguments, **options)
        except asyncpg.PostgresError:
            refused.set()
            raise

    one = Role(await connect(), url, refused)
    await one.create(schema_of(url))
    monkeypatch.setattr(asyncpg, "connect", connect_noting_refusals)
    yield one
    await one.drop()


async def open_and_close(url: str) -> None:
    async with open_history(url, acquire_timeout_s=LONG_S):
        pass


async def open_with_pool(url: str) -> None:
    def connect(*arguments: Any, **options: Any) -> Any:
        return asyncpg.connect(*arguments, **options)

    schema = schema_of(url)
    async with (
        asyncpg.create_pool(server_url(url).dsns[0], min_size=0, connect=connect) as pool,
        PostgresHistoryManager(pool=pool, schema=schema, acquire_timeout_s=LONG_S),
    ):
        pass


async def lock(url: str) -> None:
    limits = PoolLimits(2, None, LONG_S, None, None)
    locks = await LockConnection.connect(server_url(url), limits)
    assert locks is not None
    locks.terminate()


OPENINGS: Final[list[Callable[[str], Awaitable[None]]]] = [open_and_close, open_with_pool, lock]


@pytest.mark.parametrize("opening", OPENINGS)
async def test_an_opening_waits_for_a_connection(
    role: Role, opening: Callable[[str], Awaitable[None]]
) -> None:
    await role.allow(0)
    async with asyncio.TaskGroup() as group:
        group.create_task(opening(role.url))  # type: ignore[arg-type]
        await role.refused.wait()
        await role.allow(-1)


async def test_a_check_waits_for_a_connection(role: Role) -> None:
    async with open_history(role.url, acquire_timeout_s=LONG_S) as history:
        await history.add_history("m", None, "tea", "ADD")
        await role.allow(0)
        async with asyncio.TaskGroup() as group:
            checking = group.create_task(history.check())
            await role.refused.wait()
            await role.allow(-1)
        assert checking.result().records == 1


async def test_long_work_uses_a_connection_of_the_pool(role: Role) -> None:
    async with open_history(role.url) as history:
        await history.add_history("m", None, "tea", "ADD")
        await history.get_history("m")
        await role.allow(0)
        assert (await history.check()).problems == ()
        report = await history.erase(memory_ids=["m"], reason="asked")
    assert role.refused.is_set()
    assert not [left for left in report.remains if "was not vacuumed" in left]


async def test_an_error_of_long_work_is_not_one_of_its_connection(url: str) -> None:
    async def nothing(_: Any) -> None:
        pass

    async def fail(_: Any) -> None:
        raise ValueError("not a number")

    server, limits = server_url(url), PoolLimits(2, None, LONG_S, None, None)
    pool = await open_pool(server, nothing, limits)
    side = SideConnections(pool, server)
    with pytest.raises(ValueError, match=r"^not a number$"):
        await side.use(fail)
    with pytest.raises(StorageMissing, match="lost the history's tables"):
        await side.use(lambda connection: connection.execute("SELECT * FROM nowhere"))
    await pool.aclose(LONG_S)


async def test_a_check_gives_up(role: Role) -> None:
    async with open_history(role.url, acquire_timeout_s=2) as history:
        await history.add_history("m", None, "tea", "ADD")
        await role.allow(0)
        with pytest.raises(StorageUnreachable, match="raise its limits or connect less"):
            await history.check()


async def test_an_opening_gives_up(role: Role) -> None:
    await role.allow(0)
    with pytest.raises(StorageUnreachable, match="raise its limits or connect less"):
        await open_history(role.url, acquire_timeout_s=2)
    assert role.refused.is_set()


@pytest.mark.pgbouncer
async def test_an_opening_waits_for_a_connection_to_a_pooler(postgres: str, role: Role) -> None:
    with pgbouncer(postgres, most_clients=2) as pooled:
        held = [await asyncpg.connect(pooled) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            group.create_task(open_and_close(f"{pooled}?schema={role.name}"))
            await role.refused.wait()
            for connection in held:
                await connection.close()
