"""Connections for long work, outside our own pool, so that no other call waits for them."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._postgres.connecting.bounds import (
    enable_client_check,
    lift_limits,
    without_limits,
)
from async_history._postgres.connecting.connect import connected, in_time
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.server_url import ServerUrl

T = TypeVar("T")


class SideConnections:
    """Separate connections for work that keeps them busy, such as VACUUM. The server has no time
    limit for it, whatever the role's settings are, except behind a pooler.

    With a user's pool, or behind a pooler, which may allow few connections, they come from the
    pool.

    Args:
        server: the pool's server; None with a user's pool.
    """

    def __init__(self, pool: ConnectionPool, server: ServerUrl | None) -> None:
        self._pool = pool
        self._server = server

    @property
    def is_behind_pooler(self) -> bool:
        return self._pool.is_behind_pooler

    async def use(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run work that commits nothing and has its own time limit.

        It is cancelled with its caller; behind a pooler it continues.

        Raises:
            As `ConnectionPool.use`.
        """
        if self.is_behind_pooler:
            return await self._pool.use(work)
        if self._server is None:
            return await self._pool.use(partial(self._without_limits, work))
        async with connected(self._server, self._pool.acquire_timeout_s) as connection:
            with in_time(connection, self._pool.acquire_timeout_s):
                await enable_client_check(connection)
                await lift_limits(connection)
            try:
                return await work(connection)
            finally:
                # Not at once: the server may just have been asked to cancel a statement.
                await to_the_end(self._pool.retire(connection))

    async def _without_limits(
        self, work: Callable[[Any], Coroutine[Any, Any, T]], connection: Any
    ) -> T:
        async with without_limits(connection, self._pool.acquire_timeout_s):
            return await work(connection)
