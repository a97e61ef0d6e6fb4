# mypy: disable-error-code=import-untyped
"""A pool of connections to PostgreSQL, our own or the user's, with timeouts and typed errors."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, TypeVar

import asyncpg

from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.bounds import Settings, bounds, without_limits
from async_history._postgres.connecting.pool_callbacks import acquire_from, release_to
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.work_limit import WorkLimit, meaning_of
from async_history._postgres.errors import (
    DriverError,
    is_pool_unusable,
    may_connect_later,
    storage_error,
)
from async_history._postgres.transaction import transaction
from async_history.errors import HistoryClosed, StorageUnreachable

T = TypeVar("T")


class ConnectionPool:
    """A pool of connections. Open one with `open_pool`, or use the user's with `use_pool`.

    A connection returns to the pool when the server has finished its statement, not when the caller
    is cancelled: otherwise a few impatient callers would occupy every process of the server. So the
    server is asked to cancel an abandoned statement. Behind a pooler it is not, because the pooler
    may have given the server process to another client; the statement is waited for instead.

    Attributes:
        is_behind_pooler: whether a pooler is between us and the server. Then settings apply to one
            transaction only, so each statement runs in a transaction together with its settings.
        settings: the sessions' values of the settings that limit a statement's time.
        owned: whether the pool is our own, not the user's.
    """

    def __init__(
        self,
        pool: Any,
        where: str,
        limits: PoolLimits,
        *,
        owned: bool,
        is_behind_pooler: bool,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._where = where
        self.owned = owned
        self.acquire_timeout_s = limits.acquire_timeout_s
        self._lifetime_s = limits.lifetime_s if owned else None
        self._hung = False
        self._is_closing = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self.is_behind_pooler = is_behind_pooler
        self.settings = settings
        self.size: int = pool.get_max_size()

    async def acquire(self) -> Any:
        """Return a connection, which `release` gives back.

        Raises:
            StorageUnreachable: none was available within `acquire_timeout_s`.
            HistoryClosed: the pool was closed meanwhile.
            TryAgain: the server can't be reached now.
            StorageError: the server refuses the connection.
        """
        try:
            if self._hung and self.owned:
                self._hung = False
                await self._pool.expire_connections()  # the others are to the same server
            begun = monotonic()
            connection = await acquire_from(self._pool, self._where, self.acquire_timeout_s)
            while self._is_too_old(connection) and connection.made_at < begun:
                await self.retire(connection)
                connection = await acquire_from(self._pool, self._where, self.acquire_timeout_s)
        except TimeoutError as error:
            raise StorageUnreachable(
                f"{self._where} gave no connection within {self.acquire_timeout_s} s: it "
                "does not answer, or all connections of the pool are in use"
            ) from error
        except DriverError as error:
            if is_pool_unusable(error):
                raise HistoryClosed(
                    f"the {error}: nothing was written or read. Close a pool only after the "
                    "history that uses it"
                ) from error
            if may_connect_later(error):
                raise TryAgain(storage_error(error, self._where)) from error
            raise storage_error(error, self._where) from error
        if self._is_closing:
            # asyncpg closes a busy connection with a cancel request, and does not wait for it:
            # PgBouncer, as of 1.18, can crash on that (pgbouncer/pgbouncer#801).
            await self.release(connection)
            raise HistoryClosed("the manager was closed while this waited for a connection")
        return connection

    @staticmethod
    def is_broken(connection: Any) -> bool:
        """Return whether a connection is closed.

        asyncpg's pool takes a closed connection back by itself; its proxy then raises.
        """
        try:
            return bool(connection.is_closed())
        except asyncpg.InterfaceError:
            return True

    def is_unusable(self, connection: Any) -> bool:
        """Return whether a connection is closed, or older than `connection_lifetime_s`."""
        return self.is_broken(connection) or self._is_too_old(connection)

    def _is_too_old(self, connection: Any) -> bool:
        if self._lifetime_s is None:
            return False
        return bool(monotonic() - connection.made_at > self._lifetime_s)

    async def retire(self, connection: Any) -> None:
        """Close a connection, which frees its slot in the pool."""
        with contextlib.suppress(*DriverError):
            # asyncpg 0.31 waits without its `timeout` until a cancel request is sent.
            async with asyncio.timeout(self.acquire_timeout_s):
                await connection.close()

    async def release(self, connection: Any) -> None:
        """Return a connection to the pool; the pool replaces a closed one at the next `acquire`.

        If the server was asked to cancel a statement, this waits for its answer.
        """
        if not self.is_broken(connection) and self._is_too_old(connection):
            await self.retire(connection)
            return
        try:
            await release_to(self._pool, self._where, connection, self.acquire_timeout_s)
        except TimeoutError:
            self._hung = True
        except DriverError:
            pass  # asyncpg has closed it

    async def fetch(
        self, sql: str, arguments: Sequence[Any], timeout_s: float
    ) -> Sequence[Sequence[Any]]:
        """Run one SELECT.

        Raises:
            As `acquire`, and as `WorkLimit`.
        """
        connection = await self.acquire()
        if not self.is_behind_pooler:
            return list(
                await self._answer(
                    connection, connection.fetch(sql, *arguments, timeout=timeout_s), timeout_s
                )
            )
        limits = bounds(self.settings, timeout_s, is_local=True)

        async def fetch() -> Sequence[Sequence[Any]]:
            async with transaction(connection, "SET TRANSACTION READ ONLY", limits):
                return list(await connection.fetch(sql, *arguments))

        return await self._uncancelled(connection, fetch(), timeout_s)

    async def use(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run work that commits nothing and has its own time limit.

        It is cancelled with its caller; behind a pooler it continues.

        Raises:
            As `acquire`, and as `WorkLimit`.
        """
        connection = await self.acquire()
        if self.is_behind_pooler:
            return await self._uncancelled(connection, work(connection), None)
        return await self._answer(connection, work(connection), None)

    async def use_without_limits(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run work as `use`, not behind a pooler, without the server's time limits.

        After an error the connection is closed, because its session has no limits.

        Raises:
            As `acquire`, and as `WorkLimit`.
        """
        connection = await self.acquire()

        async def run() -> T:
            async with without_limits(connection, self.acquire_timeout_s):
                return await work(connection)

        return await self._answer(connection, run(), None, self.retire)

    async def write(
        self, work: Callable[[Any, Sequence[str]], Coroutine[Any, Any, T]], timeout_s: float
    ) -> T:
        """Run work that commits. It gets the settings with which its transactions must begin.

        It continues if its caller is cancelled.

        Raises:
            As `acquire`, and as `WorkLimit`.
        """
        connection = await self.acquire()
        limits = bounds(self.settings, timeout_s, is_local=True)
        return await self._uncancelled(connection, work(connection, (limits,)), timeout_s)

    async def _answer(
        self,
        connection: Any,
        call: Awaitable[T],
        timeout_s: float | None,
        give_up: Callable[[Any], Coroutine[Any, Any, None]] | None = None,
    ) -> T:
        """Wait for the server's answer; if the caller is cancelled, asyncpg asks the server to
        cancel the statement.

        Args:
            give_up: what to do with the connection after an error; None: `release`.
        """
        give_up = give_up or self.release
        try:
            answer = await call
        except TimeoutError as error:
            self._start(give_up(connection))
            within = "in time" if timeout_s is None else f"within {timeout_s} s"
            raise OutcomeUnknown(f"{self._where} did not answer {within}") from error
        except DriverError as error:
            meaning = meaning_of(error, self._where, connection)
            await give_up(connection)
            raise meaning from error
        except BaseException:
            self._start(give_up(connection))
            raise
        await self.release(connection)
        return answer

    async def _uncancelled(
        self, connection: Any, call: Coroutine[Any, Any, T], timeout_s: float | None
    ) -> T:
        """Wait for the server's answer; the connection is released after it, even if the caller is
        cancelled."""

        async def run() -> T:
            try:
                limit = self.limit(connection)
                try:
                    with limit.within(timeout_s):
                        return await call
                finally:
                    limit.end()
            finally:
                await self.release(connection)

        return await asyncio.shield(self._start(run()))

    def _start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def limit(self, connection: Any) -> WorkLimit:
        """Return a time limit for work on a connection."""
        return WorkLimit(connection, self._where, self._on_hang)

    def _on_hang(self) -> None:
        self._hung = True

    async def aclose(self, timeout_s: float) -> None:
        """Close our own pool, waiting at most `timeout_s` for statements that still run."""
        self._is_closing = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._under_way:
                    await asyncio.wait(self._under_way)
                if self.owned:
                    await self._pool.close()
        except (TimeoutError, *DriverError):
            self.terminate()

    def terminate(self) -> None:
        """Terminate our own pool at once, also after its loop has stopped."""
        if self.owned:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the sockets with it
                self._pool.terminate()
