"""The writing connection of a manager: it reconnects, and limits what it leaves on the server.

The server limits lock waits and statements to the time of a try, so an abandoned try ends by
itself. But a commit that waits for a synchronous standby continues to wait. So after a few such
commits, no other begins while they wait.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.bounds import (
    READ_COMMITTED,
    Settings,
    Shares,
    bounds,
    enable_client_check,
    has_standbys,
    set_statements,
    settings_of,
    short_limits,
)
from async_history._postgres.connecting.idle_watch import IdleWatch
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.work_limit import WorkLimit
from async_history._postgres.errors import DriverError
from async_history.errors import HistoryClosed, StorageUnreachable

T = TypeVar("T")

_MOST_GIVEN_UP: Final = 3
"""Most commits that may wait for a standby; then no other begins."""
_WAITING_FOR_STANDBY: Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE usename = SESSION_USER AND wait_event = 'SyncRep'::pg_catalog.text
    AND query_start < pg_catalog.clock_timestamp() - $1::pg_catalog.text::pg_catalog.interval
"""

Write = Callable[[Any, Sequence[str]], Awaitable[T]]
"""A function that uses a connection. Its transactions must begin with the given settings."""


class WritingConnection:
    """Writes on one connection, one at a time.

    Args:
        try_s: seconds that a try may take.
        idle_s: seconds before the unused connection is closed; None: never.

    Attributes:
        has_standbys: whether the server waited for synchronous standbys when it was connected;
            True behind a pooler, where it is not asked.
    """

    def __init__(
        self, pool: ConnectionPool, where: str, *, try_s: float, idle_s: float | None
    ) -> None:
        self._pool = pool
        self._where = where
        self._try_s = try_s
        self._connection: Any = None
        self._limit: WorkLimit | None = None
        self._settings_before: Settings = {}
        self._given_up = 0
        self._is_closed = False
        self.has_standbys = True
        self._idle = IdleWatch(idle_s, self._close_idle)

    async def do(self, work: "Write[T]", size_s: float = 0.0, shares: Shares | None = None) -> T:
        """Run work on the connection.

        Args:
            size_s: extra seconds that the server may take because of the batch's size.
            shares: how many lock waits and statements share the time of a try; None: one.

        Raises:
            HistoryClosed: it was closed.
            OutcomeUnknown, TryAgain, StorageError: see `WorkLimit`.
        """
        if self._is_closed:
            raise HistoryClosed("the manager was closed before this was written")
        limit = self._limit
        if limit is None or self._given_up or self._pool.is_unusable(self._connection):
            limit = await self._ready()
        settings: Sequence[str] = ()
        if size_s or shares is not None or self._pool.is_behind_pooler:
            settings = self._settings(size_s, shares)
        try:
            with self._idle, limit.within(self._try_s + size_s):
                done = await work(self._connection, settings)
        except OutcomeUnknown:
            self._given_up += 1
            raise
        self._given_up = 0
        return done

    def _settings(self, size_s: float, shares: Shares | None) -> Sequence[str]:
        settings: list[str] = []
        if size_s or self._pool.is_behind_pooler:
            settings.append(bounds(self._pool.settings, self._try_s + size_s, is_local=True))
        if shares is not None:
            settings.append(short_limits(self._pool.settings, self._try_s + size_s, shares))
        return settings

    async def _ready(self) -> WorkLimit:
        """Return the connection's time limit; replace both if it is unusable.

        Raises:
            TryAgain, StorageError: nothing was sent.
        """
        try:
            if self._limit is None or self._pool.is_unusable(self._connection):
                await self.release()
                self._connection = await self._pool.acquire()
                self._limit = await self._limited(self._connection)
            if self._given_up >= _MOST_GIVEN_UP:
                await self._require_standby(self._connection, self._limit)
        except StorageUnreachable as error:
            raise TryAgain(error) from error
        except OutcomeUnknown as error:
            raise TryAgain(StorageUnreachable(str(error))) from error
        return self._limit

    async def _limited(self, connection: Any) -> WorkLimit:
        """Set the session's limits, and return the time limit of work on the connection."""
        limit = self._pool.limit(connection)
        try:
            if not self._pool.is_behind_pooler:
                await self._make_settings(connection, limit)
        except BaseException:
            limit.end()
            raise
        return limit

    async def _make_settings(self, connection: Any, limit: WorkLimit) -> None:
        with limit.within(self._pool.acquire_timeout_s):
            self._settings_before = await settings_of(connection)
            limits = bounds(self._settings_before, self._try_s, is_local=False)
            await connection.execute(f"{limits}; {READ_COMMITTED}")
            await enable_client_check(connection)
            self.has_standbys = await has_standbys(connection)

    async def _require_standby(self, connection: Any, limit: WorkLimit) -> None:
        with limit.within(self._pool.acquire_timeout_s):
            waiting = await connection.fetchval(_WAITING_FOR_STANDBY, f"{self._try_s} seconds")
        if int(waiting):
            raise StorageUnreachable(
                f"{self._where} has {waiting} commits that wait for a synchronous standby; check "
                "that one runs, or change synchronous_standby_names"
            )
        self._given_up = 0

    async def release(self) -> None:
        """Release the connection, with its settings restored."""
        connection = self._take_connection()
        if connection is None:
            return
        if self._pool.owned:
            await self._pool.retire(connection)
            return
        if not self._pool.is_behind_pooler and not self._pool.is_broken(connection):
            try:
                await connection.execute(
                    set_statements(self._settings_before), timeout=self._pool.acquire_timeout_s
                )
            except DriverError:
                connection.terminate()
        await self._pool.release(connection)

    async def _close_idle(self) -> None:
        """Close the connection; the next write gets a new one."""
        connection = self._take_connection()
        if connection is not None:
            await self._pool.retire(connection)

    def _take_connection(self) -> Any:
        if self._limit is not None:
            self._limit.end()
            self._limit = None
        connection, self._connection = self._connection, None
        return connection

    def stop(self) -> None:
        """Stop the idle timer, and accept no more work."""
        self._is_closed = True
        self._idle.stop()

    async def aclose(self) -> None:
        """Release the connection for good."""
        self._is_closed = True
        await self._idle.aclose()
        await self.release()
