# mypy: disable-error-code=import-untyped
"""Opening a pool of connections to PostgreSQL, or using the user's."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import asyncpg

from async_history._postgres.connecting.bounds import lift_limits, settings_of, without_limits
from async_history._postgres.connecting.codecs import require_own_codecs
from async_history._postgres.connecting.connect import (
    Connection,
    connect_checked,
    connect_to_any,
    connected,
    in_time,
    set_up,
    typed,
)
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.pool_callbacks import acquire_from, release_to
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.pooler import is_pooled, require_no_lost_statements
from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.connecting.user_pool import UserPool
from async_history._postgres.errors import is_pool_unusable
from async_history.errors import InvalidInput, StorageError

_CACHED_STATEMENTS: Final = 100
"""asyncpg's default. Behind a pooler none are cached: each transaction may use another server
connection, which does not have them."""

Prepare = Callable[[Any], Awaitable[None]]


async def open_pool(server: ServerUrl, prepare: Prepare, limits: PoolLimits) -> ConnectionPool:
    """Connect, call `prepare` with a first connection, and open a pool.

    Raises:
        InvalidInput: the URL can't be used.
        StorageError: the server can't be reached in time, or refuses the connection.
    """
    async with connected(server, limits.acquire_timeout_s) as connection:
        cached = server.options.get("statement_cache_size")
        keeps_none = 0 in (limits.statement_cache_size, cached)
        with in_time(connection, limits.acquire_timeout_s):
            is_behind_pooler = keeps_none or await is_pooled(connection)
            settings = await settings_of(connection)
            if not is_behind_pooler:
                await set_up(connection)
                await lift_limits(connection)
        await prepare(connection)
    with typed(server.where):
        pool = await asyncpg.create_pool(
            connect=partial(connect_to_any if is_behind_pooler else connect_checked, server),
            connection_class=Connection,
            min_size=0,
            max_size=limits.size,
            max_inactive_connection_lifetime=limits.idle_s or 0,
            statement_cache_size=0 if is_behind_pooler else _CACHED_STATEMENTS,
            timeout=limits.acquire_timeout_s,
            reset=_leave_as_it_is,
        )
    return ConnectionPool(
        pool,
        server.where,
        limits,
        owned=True,
        is_behind_pooler=is_behind_pooler,
        settings=settings,
    )


async def use_pool(
    pool: Any, where: str, prepare: Prepare, limits: PoolLimits, types: Sequence[str]
) -> ConnectionPool:
    """Use the user's own pool, which `ConnectionPool` never closes.

    Args:
        types: the types that must have asyncpg's own codecs.

    Raises:
        InvalidInput: the pool is not open, has codecs of its own, or caches statements that its
            pooler loses.
        StorageError: as `open_pool`.
    """
    users = UserPool(pool)
    try:
        with typed(where):
            connection = await acquire_from(users, where, limits.acquire_timeout_s)
            try:
                with in_time(connection, limits.acquire_timeout_s):
                    is_behind_pooler = await is_pooled(connection)
                    if is_behind_pooler:
                        await require_no_lost_statements(connection, pool)
                    await require_own_codecs(connection, types)
                    settings = await settings_of(connection)
                if is_behind_pooler:
                    await prepare(connection)
                else:
                    async with without_limits(connection, limits.acquire_timeout_s):
                        await prepare(connection)
            except BaseException:
                # It has an open transaction, or no limits.
                with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it already
                    connection.terminate()
                raise
            finally:
                await release_to(users, where, connection, None)
    except StorageError as error:
        if error.__cause__ is not None and is_pool_unusable(error.__cause__):
            raise InvalidInput(
                f"the {error.__cause__}: await it, or enter `async with pool`, before a "
                "history uses it, and close it after that"
            ) from error
        raise
    return ConnectionPool(
        users,
        where,
        limits,
        owned=False,
        is_behind_pooler=is_behind_pooler,
        settings=settings,
    )


async def _leave_as_it_is(connection: Any) -> None:
    """Reset a connection of the pool by doing nothing: we leave no state on it."""
