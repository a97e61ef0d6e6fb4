# mypy: disable-error-code=import-untyped
"""Connecting to PostgreSQL: host after host, with a timeout and typed errors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import asyncpg

from async_history._core.concurrency.until_free import until_free
from async_history._postgres.connecting.bounds import enable_client_check
from async_history._postgres.connecting.pool_limits import ACQUIRE_TIMEOUT_S
from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.errors import DriverError, is_full, storage_error
from async_history._postgres.transaction import NO_JIT
from async_history.errors import HistoryError, InvalidInput, StorageUnreachable


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no type information
    """A connection with the time at which it was made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made_at = monotonic()


async def connect_to_any(
    server: ServerUrl,
    _: object = None,
    *,
    timeout: float,  # noqa: ASYNC109 - asyncpg's name
    **options: Any,
) -> Any:
    """Connect to the first host that accepts, with an equal part of the timeout for each host.

    asyncpg gives the first host all of the time, so one that hangs would block the others.
    """
    *others, last = server.dsns
    if server.is_verified:
        options["ssl"] = True
    part = timeout / (len(others) + 1)
    for dsn in others:
        with contextlib.suppress(
            OSError, asyncpg.InternalClientError, asyncpg.CannotConnectNowError
        ):
            return await asyncpg.connect(dsn, timeout=part, **options)
    return await asyncpg.connect(last, timeout=part, **options)


async def connect_checked(server: ServerUrl, _: object = None, **options: Any) -> Any:
    """Connect as `connect_to_any`, and set up the session.

    This is not done in a pool's `init`: if the server hangs during `init`, asyncpg waits for it
    without a limit.
    """
    connection = await connect_to_any(server, **options)
    try:
        await set_up(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def set_up(connection: Any) -> None:
    """Set up a session: the server compiles none of its statements, and checks whether we are still
    connected."""
    await connection.execute(f"SET {NO_JIT}")
    await enable_client_check(connection)


async def connect_when_free(server: ServerUrl, timeout_s: float, **options: Any) -> Any:
    """Connect as `connect_to_any`, without a statement cache, as a pooler requires; if the server
    has no free connection, try again for `timeout_s`."""

    async def connect(left_s: float) -> Any:
        return await connect_to_any(server, timeout=left_s, statement_cache_size=0, **options)

    return await until_free(connect, is_full, timeout_s)


@contextlib.asynccontextmanager
async def connected(server: ServerUrl, timeout_s: float = ACQUIRE_TIMEOUT_S) -> AsyncIterator[Any]:
    """Open a connection for the body, as `connect_when_free`.

    Raises:
        InvalidInput: the driver can't use the URL.
        StorageError: the server can't be reached in time, or refuses; also for errors of the body.
    """
    with typed(server.where):
        connection = await connect_when_free(server, timeout_s)
        try:
            yield connection
        finally:
            connection.terminate()


@contextlib.contextmanager
def in_time(connection: Any, timeout_s: float) -> Iterator[None]:
    """Limit the time of a body that writes nothing, by closing the connection.

    Cancelling the body would not work: a transaction in it would wait for the server's rollback.

    Raises:
        TimeoutError: the server did not answer in time.
    """
    is_late = False

    def give_up() -> None:
        nonlocal is_late
        is_late = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(timeout_s, give_up)
    try:
        yield
    except (AttributeError, *DriverError) as error:  # AttributeError: statement not yet sent
        if is_late:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


@contextlib.contextmanager
def typed(where: str) -> Iterator[None]:
    """Turn driver and system errors of the body into typed ones."""
    try:
        yield
    except HistoryError:
        raise
    except TimeoutError as error:
        raise StorageUnreachable(f"{where} did not answer in time") from error
    except OSError as error:  # before ValueError: a wrong certificate's error is both
        raise storage_error(error, where) from error
    except ValueError as error:  # asyncpg can't read the URL
        raise InvalidInput(f"{where} is not a usable URL: {error}") from None
    except DriverError as error:
        raise storage_error(error, where) from error
