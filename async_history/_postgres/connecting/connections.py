"""The connections of one history in PostgreSQL: one for writing, and a pool for reading."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.writing_connection import WritingConnection
from async_history.errors import HistoryClosed, HistoryError, StorageUnreachable

T = TypeVar("T")

_TRIES: Final = 3
"""Tries that fit into `retry_timeout_s`, so that a server that hangs leaves time for a retry."""
_RETRY_PAUSE_S: Final = 0.1
"""Pause before each retry but the first: usually only a connection was lost, not the server."""


class Connections:
    """Writes on one connection, and reads on a pool, with retries.

    Args:
        pool: connections to the server for writes.
        read_pool: connections to the server for reads; often the same pool.
        idle_s: how long the writing connection may be unused before it is closed.
        retry_timeout_s: how long to retry after a connection was lost.

    Attributes:
        write: runs work on the writing connection: see `WritingConnection.do`.
    """

    def __init__(
        self,
        where: str,
        pool: ConnectionPool,
        read_pool: ConnectionPool,
        *,
        idle_s: float | None,
        retry_timeout_s: float,
    ) -> None:
        self._pool = pool
        self._read_pool = read_pool
        self._writing = WritingConnection(
            pool, where, try_s=retry_timeout_s / _TRIES, idle_s=idle_s
        )
        self.write = self._writing.do
        self._retry_timeout_s = retry_timeout_s
        self._is_closed = False

    @property
    def has_standbys(self) -> bool:
        """See `WritingConnection`."""
        return self._writing.has_standbys

    async def write_apart(
        self,
        work: Callable[[Any, Sequence[str]], Coroutine[Any, Any, T]],
        within_s: float | None = None,
    ) -> T:
        """Run repeatable work on a connection of the pool; retry if the connection is lost.

        Args:
            within_s: seconds that a try may take; None: as long as another write.
        """
        if within_s is None:
            within_s = self._retry_timeout_s / _TRIES
        return await self._until_done(partial(self._pool.write, work, within_s), "written")

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the server for reads; retry if the connection is lost."""
        return await self._fetch_from(self._read_pool, sql, arguments)

    async def fetch_where_written(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the server for writes; retry if the connection is lost."""
        return await self._fetch_from(self._pool, sql, arguments)

    async def _fetch_from(
        self, pool: ConnectionPool, sql: str, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        return await self._until_done(
            partial(pool.fetch, sql, arguments, self._retry_timeout_s), "read"
        )

    async def _until_done(self, try_once: Callable[[], Awaitable[T]], what: str) -> T:
        deadline = monotonic() + self._retry_timeout_s
        pause_s = 0.0
        while True:
            if self._is_closed:
                raise HistoryClosed(f"the manager was closed before this was {what}")
            try:
                return await try_once()
            except OutcomeUnknown as error:
                reason: HistoryError = StorageUnreachable(str(error))
            except TryAgain as error:
                reason = error.reason
            if monotonic() > deadline:
                raise reason
            await asyncio.sleep(pause_s)
            pause_s = _RETRY_PAUSE_S

    async def aclose(self, timeout_s: float) -> None:
        """Release the connections, and close our own pools."""
        if not self._is_closed:
            self._is_closed = True
            await self._writing.aclose()
            for pool in {self._pool, self._read_pool}:
                await pool.aclose(timeout_s)

    def abandon(self) -> None:
        """Terminate the connections without waiting for their work."""
        if not self._is_closed:
            self._is_closed = True
            self._writing.stop()
            for pool in {self._pool, self._read_pool}:
                pool.terminate()
