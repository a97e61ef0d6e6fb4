"""Connections for long work, outside of our own pool, whose connections others wait for."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from async_history._core.cancellation import to_the_end
from async_history._postgres.bounds import end_without_client
from async_history._postgres.connect import connected
from async_history._postgres.pool import ConnectionPool
from async_history._postgres.url import ServerUrl

T = TypeVar("T")


class SideConnections:
    """Lends a connection of its own for a piece of work that keeps it busy, such as VACUUM.

    From a user's pool, and behind a pooler, which may have few places itself, it is one of the
    pool's.

    Args:
        server: that of the pool; None of a user's pool.
    """

    def __init__(self, pool: ConnectionPool, server: ServerUrl | None) -> None:
        self._pool = pool
        self._server = server

    @property
    def is_behind_pooler(self) -> bool:
        return self._pool.is_behind_pooler

    async def use(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Do work that commits nothing, and that knows by itself when to give up.

        It is cancelled with its caller, but behind a pooler it goes on.

        Raises:
            As `ConnectionPool.use`.
        """
        if self._server is None or self.is_behind_pooler:
            return await self._pool.use(work)
        async with connected(self._server, self._pool.acquire_timeout_s) as connection:
            await end_without_client(connection)
            try:
                return await work(connection)
            finally:
                # Not at once: the server may just have been asked to cancel something.
                await to_the_end(self._pool.retire(connection))
