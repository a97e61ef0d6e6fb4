# mypy: disable-error-code=import-untyped
"""Connecting to PostgreSQL: host after host, bounded in time, errors typed."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import asyncpg

from async_history._postgres.errors import DriverError, storage_error
from async_history._postgres.pool_limits import ACQUIRE_TIMEOUT_S
from async_history._postgres.url import ServerUrl
from async_history.errors import HistoryError, InvalidInput, StorageUnreachable


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no type information
    """A connection that knows how old it is."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made_at = monotonic()


async def connect_in_turn(
    server: ServerUrl,
    _: object = None,
    *,
    timeout: float,  # noqa: ASYNC109 - asyncpg's name
    **options: Any,
) -> Any:
    """Connect to the first host that will do, each given its part of the time.

    asyncpg gives the first all of it: one that hangs would keep us from those behind it.
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


@contextlib.asynccontextmanager
async def connected(server: ServerUrl, timeout_s: float = ACQUIRE_TIMEOUT_S) -> AsyncIterator[Any]:
    """Connect for the body alone, which may do what a pooler allows.

    Raises:
        InvalidInput: the driver can't do what the URL asks for.
        StorageError: the server can't be reached in time, or refuses; also of the body.
    """
    with typed(server.where):
        connection = await connect_in_turn(server, statement_cache_size=0, timeout=timeout_s)
        try:
            yield connection
        finally:
            connection.terminate()


@contextlib.contextmanager
def typed(where: str) -> Iterator[None]:
    """Type what goes wrong in the body."""
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
