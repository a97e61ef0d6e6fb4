"""Connections for long work, outside our own pool, so that no other call waits for them."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.bounds import lift_limits
from async_history._postgres.connecting.connect import connect_to_any, in_time, set_up, typed
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.errors import DriverError, is_full, storage_error
from async_history.errors import StorageUnreachable

T = TypeVar("T")

Work = Callable[[Any], Coroutine[Any, Any, T]]
"""A function that uses a connection."""


class SideConnections:
    """Separate connections for work that keeps them busy, such as VACUUM. The server has no time
    limit for it, whatever the role's settings are, except behind a pooler.

    With a user's pool, or behind a pooler, which may allow few connections, they come from the
    pool. So they do if the server has no free connection: the pool may have one.

    Args:
        server: the pool's server; None with a user's pool.
    """

    def __init__(self, pool: ConnectionPool, server: ServerUrl | None) -> None:
        self._pool = pool
        self._server = server

    @property
    def is_behind_pooler(self) -> bool:
        return self._pool.is_behind_pooler

    async def use(self, work: Work[T]) -> T:
        """Run work that commits nothing and has its own time limit.

        It is cancelled with its caller; behind a pooler it continues.

        Raises:
            StorageError, HistoryClosed: there is no connection, or it was lost; also for the
                driver's errors in the work.
        """
        if self.is_behind_pooler:
            return await self._use_pool(self._pool.use, work)
        if self._server is None:
            return await self._use_pool(self._pool.use_without_limits, work)
        with typed(self._server.where):
            connection = await self._connect(self._server)
        if connection is None:
            return await self._use_pool(self._pool.use_without_limits, work)
        try:
            return await work(connection)
        except DriverError as error:
            raise storage_error(error, self._server.where) from error
        finally:
            # Not at once: the server may just have been asked to cancel a statement.
            await to_the_end(self._pool.retire(connection))

    async def _connect(self, server: ServerUrl) -> Any:
        """Return a connection without time limits; None if the server has no free one."""
        timeout_s = self._pool.acquire_timeout_s
        try:
            connection = await connect_to_any(server, statement_cache_size=0, timeout=timeout_s)
        except DriverError as error:
            if is_full(error):
                return None
            raise
        try:
            with in_time(connection, timeout_s):
                await set_up(connection)
                await lift_limits(connection)
        except BaseException:
            await to_the_end(self._pool.retire(connection))
            raise
        return connection

    async def _use_pool(self, use: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        try:
            return await use(work)
        except TryAgain as error:
            raise error.reason from error
        except OutcomeUnknown as error:
            raise StorageUnreachable(str(error)) from error
