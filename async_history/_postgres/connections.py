"""The connections to one history in PostgreSQL: one that writes, and pools for those who read."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._core.writer import OutcomeUnknown, TryAgain
from async_history._postgres.pool import ConnectionPool
from async_history._postgres.writing_connection import Write, WritingConnection
from async_history.errors import HistoryClosed, HistoryError, StorageUnreachable

T = TypeVar("T")

_TRIES: Final = 3
"""One try may take this part of the time for all: a server that hangs leaves time for another."""
_ASK_AGAIN_S: Final = 0.1


class Connections:
    """Does work on the connection that writes, and reads where records are read.

    Args:
        pool: of the server that is written to.
        read_pool: of the server that is read from; often the same.
        idle_s: how long the connection that writes may be unused before it is closed.
        retry_timeout_s: how long what failed with its connection is tried again.
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
        self._retry_timeout_s = retry_timeout_s
        self._is_closed = False

    async def write(self, work: "Write[T]", size_s: float = 0.0, waits: int | None = None) -> T:
        """Do work on the connection that writes: see `WritingConnection.do`."""
        if self._is_closed:
            raise HistoryClosed("the manager was closed before this was written")
        return await self._writing.do(work, size_s, waits)

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Run one SELECT where records are read, again where its connection broke."""
        return await self._fetch_from(self._read_pool, sql, arguments)

    async def fetch_where_written(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the server that is written to."""
        return await self._fetch_from(self._pool, sql, arguments)

    async def _fetch_from(
        self, pool: ConnectionPool, sql: str, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        deadline = monotonic() + self._retry_timeout_s
        while True:
            if self._is_closed:
                raise HistoryClosed("the manager was closed before this was read")
            try:
                return await pool.fetch(sql, arguments, self._retry_timeout_s)
            except OutcomeUnknown as error:
                reason: HistoryError = StorageUnreachable(str(error))
            except TryAgain as error:
                reason = error.reason
            if monotonic() > deadline:
                raise reason
            await asyncio.sleep(_ASK_AGAIN_S)

    async def aclose(self, timeout_s: float) -> None:
        """Give the connections back, and close the pools that are ours."""
        if not self._is_closed:
            self._is_closed = True
            await self._writing.aclose()
            for pool in {self._pool, self._read_pool}:
                await pool.aclose(timeout_s)

    def abandon(self) -> None:
        """Let go of the connections, whatever they are doing."""
        if not self._is_closed:
            self._is_closed = True
            self._writing.stop()
            for pool in {self._pool, self._read_pool}:
                pool.terminate()
