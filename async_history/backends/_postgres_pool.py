"""Connections to PostgreSQL: a pool of our own or the user's, bounded in time, errors typed.

Lives here: connecting, poolers, borrowing a connection, what a broken one means. Not here: SQL of
the history.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from async_history._postgres import (
    DriverError,
    is_connection_lost,
    may_work_later,
    storage_error,
)
from async_history.errors import (
    HistoryClosed,
    HistoryError,
    InvalidInput,
    StorageUnreachable,
)
from async_history.validation import LEAST_CONNECTIONS, shown
from async_history.writer import OutcomeUnknown, TryAgain

_CACHED_STATEMENTS: Final = 100
"""asyncpg's default. A pooler gets none: behind it, another connection knows other statements."""
_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"

Prepare = Callable[[Any], Awaitable[None]]


def check_pool(pool: Any) -> None:
    """Check that a user's pool can be used.

    Raises:
        InvalidInput: it is not a pool of asyncpg's, or has too few connections.
    """
    if not isinstance(pool, asyncpg.Pool):
        raise InvalidInput(
            f"pool must be a pool of asyncpg's, as `create_pool` makes one, not {shown(pool)}"
        )
    size = pool.get_max_size()
    if size < LEAST_CONNECTIONS:
        raise InvalidInput(
            f"a pool needs at least {LEAST_CONNECTIONS} connections, not {size}: one writes"
        )


class ConnectionPool:
    """Lends connections. Made by `connect` or `of_user`.

    `pools_behind` tells whether a pooler stands between us and the server: then a statement and
    its transaction must travel together.
    """

    def __init__(
        self, pool: Any, where: str, *, owned: bool, pools_behind: bool, acquire_timeout_s: float
    ) -> None:
        self._pool = pool
        self._where = where
        self._owned = owned
        self._acquire_timeout_s = acquire_timeout_s
        self._hung = False
        self._is_closing = False
        self.pools_behind = pools_behind

    @classmethod
    async def connect(
        cls,
        url: str,
        where: str,
        prepare: Prepare,
        *,
        size: int,
        statement_cache_size: int | None,
        acquire_timeout_s: float,
    ) -> "ConnectionPool":
        """Connect, let `prepare` do its work on a first connection, and open a pool.

        Raises:
            InvalidInput: the URL can't be understood.
            StorageError: the server can't be reached in time, or refuses us.
        """
        with _typed(where):
            connection = await _connect_in_turn(
                url, statement_cache_size=0, timeout=acquire_timeout_s
            )
            try:
                pools_behind = statement_cache_size == 0 or await _is_pooled(connection)
                await prepare(connection)
            finally:
                connection.terminate()
            pool = await asyncpg.create_pool(
                url,
                connect=_connect_in_turn,
                min_size=0,
                max_size=size,
                statement_cache_size=0 if pools_behind else _CACHED_STATEMENTS,
                timeout=acquire_timeout_s,
                reset=_leave_as_it_is,
            )
        return cls(
            pool, where, owned=True, pools_behind=pools_behind, acquire_timeout_s=acquire_timeout_s
        )

    @classmethod
    async def of_user(
        cls, pool: Any, where: str, prepare: Prepare, *, acquire_timeout_s: float
    ) -> "ConnectionPool":
        """Use the user's own pool, which is never closed here.

        Raises:
            StorageError: as `connect`.
        """
        with _typed(where):
            async with pool.acquire(timeout=acquire_timeout_s) as connection:
                pools_behind = await _is_pooled(connection)
                await prepare(connection)
        return cls(
            pool, where, owned=False, pools_behind=pools_behind, acquire_timeout_s=acquire_timeout_s
        )

    async def acquire(self) -> Any:
        """Return a connection, to be given back by `release`.

        Raises:
            StorageUnreachable: none was to be had within `acquire_timeout_s`.
            HistoryClosed: the pool was closed before one was.
            TryAgain: the server can't be reached now.
            StorageError: the server refuses us.
        """
        try:
            if self._hung and self._owned:
                self._hung = False
                await self._pool.expire_connections()  # the others go to the same server
            connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        except TimeoutError as error:
            raise StorageUnreachable(
                f"{self._where} gave no connection within {self._acquire_timeout_s} s: it "
                "does not answer, or all connections of the pool are in use"
            ) from error
        except DriverError as error:
            if is_connection_lost(error) or may_work_later(error):
                raise TryAgain(storage_error(error, self._where)) from error
            raise storage_error(error, self._where) from error
        if self._is_closing:
            # asyncpg closes a connection that is in use by a request to cancel, and does not wait
            # for that: PgBouncer, as of 1.18, can die of it (pgbouncer/pgbouncer#801).
            await self.release(connection)
            raise HistoryClosed("the manager was closed before its turn at the database came")
        return connection

    @staticmethod
    def is_broken(connection: Any) -> bool:
        """Tell whether a connection is of no more use. asyncpg's pool takes such a one back itself,
        and what we hold of it then answers no question."""
        try:
            return bool(connection.is_closed())
        except asyncpg.InterfaceError:
            return True

    async def release(self, connection: Any) -> None:
        """Take back a connection; one that is broken is replaced when the next is asked for."""
        with contextlib.suppress(*DriverError):
            await self._pool.release(connection, timeout=self._acquire_timeout_s)

    @contextlib.contextmanager
    def bounded(self, connection: Any, timeout_s: float) -> Iterator[None]:
        """Cut the connection off if the body takes longer, and type what goes wrong in it.

        Never by cancelling: a server asked to cancel while it waits for a synchronous standby
        commits, and acks, without it.

        Raises:
            OutcomeUnknown: the connection is gone, or the commit did not wait for its standby.
            TryAgain: nothing was written, and it may be later.
            StorageError: nothing was written.
        """

        def cut_off() -> None:
            self._hung = True
            _terminate(connection)

        timer = asyncio.get_running_loop().call_later(timeout_s, cut_off)
        try:
            with _doubting_a_lone_commit(connection):
                yield
        except DriverError as error:
            typed = storage_error(error, self._where)
            if is_connection_lost(error):
                _terminate(connection)
                raise OutcomeUnknown(str(typed)) from error
            if may_work_later(error):
                _terminate(connection)  # it may be to a server that is no primary any more
                raise TryAgain(typed) from error
            raise typed from error
        except asyncio.CancelledError:
            _terminate(connection)
            raise
        finally:
            timer.cancel()

    async def aclose(self, timeout_s: float) -> None:
        """Close a pool of our own, waiting so long for what is still being read."""
        self._is_closing = True
        if not self._owned:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except (TimeoutError, *DriverError):
            self._pool.terminate()

    def terminate(self) -> None:
        """Let go of a pool of our own at once, also when its loop has stopped."""
        if self._owned:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the sockets with it
                self._pool.terminate()


@contextlib.contextmanager
def _doubting_a_lone_commit(connection: Any) -> Iterator[None]:
    """Believe no commit whose wait for a synchronous standby somebody cancelled.

    The server acks it as any other, with a warning: "committed locally, but might not have been
    replicated". Its words depend on its language; the C function they come from does not.

    Raises:
        OutcomeUnknown: there was such a warning.
    """
    warnings: list[str] = []

    def hear(_: Any, message: Any) -> None:
        if message.server_source_function == _WAIT_FOR_STANDBY:
            warnings.append(str(message))

    connection.add_log_listener(hear)
    try:
        yield
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
            connection.remove_log_listener(hear)
    if warnings:
        raise OutcomeUnknown(warnings[0])


def _terminate(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
        connection.terminate()


async def _connect_in_turn(url: str, *, timeout: float, **options: Any) -> Any:  # noqa: ASYNC109 - asyncpg's name
    """Connect to the first host that will do, each given its part of the time.

    asyncpg gives the first all of it: one that hangs would keep us from those behind it.
    """
    *others, last = _a_url_a_host(url)
    part = timeout / (len(others) + 1)
    for host in others:
        with contextlib.suppress(
            OSError, asyncpg.InternalClientError, asyncpg.CannotConnectNowError
        ):
            return await asyncpg.connect(host, timeout=part, **options)
    return await asyncpg.connect(last, timeout=part, **options)


def _a_url_a_host(url: str) -> list[str]:
    """Return a URL for each host of a URL; the URL itself where asyncpg must choose among all."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if query.get("target_session_attrs") == "prefer-standby":
        return [url]
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        netlocs = [f"{user}{at}{host}" for host in hosts.split(",")]
        return [parts._replace(netloc=netloc).geturl() for netloc in netlocs]
    names, ports = (query.get(name, "").split(",") for name in ("host", "port"))
    if len(ports) == 1:
        ports *= len(names)
    if len(names) == 1 or len(ports) != len(names):
        return [url]
    queries = (
        urlencode(query | {"host": name, "port": port})
        for name, port in zip(names, ports, strict=True)
    )
    return [f"{parts.scheme}://{parts.netloc}{parts.path}?{one}" for one in queries]


async def _is_pooled(connection: Any) -> bool:
    """Tell whether a pooler answers in the server's stead: it makes up the process id it names."""
    async with connection.transaction():
        server_pid = await connection.fetchval("SELECT pg_backend_pid()")
    return bool(server_pid != connection.get_server_pid())


async def _leave_as_it_is(connection: Any) -> None:
    """A pool's reset that asks the server nothing: we leave no state on a connection."""


@contextlib.contextmanager
def _typed(where: str) -> Iterator[None]:
    try:
        yield
    except HistoryError:
        raise
    except TimeoutError as error:
        raise StorageUnreachable(f"{where} did not answer in time") from error
    except OSError as error:  # a certificate that does not fit is one, and a ValueError
        raise storage_error(error, where) from error
    except ValueError as error:  # asyncpg's, of a URL it can't read
        raise InvalidInput(f"{where} is no URL that can be used: {error}") from None
    except DriverError as error:
        raise storage_error(error, where) from error
