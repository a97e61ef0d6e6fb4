# mypy: disable-error-code=import-untyped
"""The limits of a pool of connections to PostgreSQL, and the check of a user's pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from async_history._core.validation import (
    LEAST_CONNECTIONS,
    MOST_CONNECTIONS,
    check_count,
    check_seconds,
    shown,
)
from async_history.errors import InvalidInput

POOL_SIZE = 10
"""The default of `pool_size`: one connection writes, the others read."""
ACQUIRE_TIMEOUT_S = 10.0
"""Default of `acquire_timeout_s`: seconds to wait for a connection."""
CONNECTION_IDLE_S = 300.0
"""Default of `connection_idle_s`, which is asyncpg's: seconds before an unused connection is
closed."""


def check_pool(pool: Any) -> None:
    """Check that a user's pool can be used.

    Raises:
        InvalidInput: it is not an asyncpg pool, or has too few connections.
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


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """A pool's size, and the limits of acquiring, idle time and age of its connections."""

    size: int
    statement_cache_size: int | None
    acquire_timeout_s: float
    idle_s: float | None
    lifetime_s: float | None

    @classmethod
    def checked(
        cls,
        url_options: Mapping[str, Any],
        *,
        pool_size: int | None,
        statement_cache_size: int | None,
        acquire_timeout_s: float | None,
        connection_idle_s: float | None,
        connection_lifetime_s: float | None,
    ) -> "PoolLimits":
        """Return the limits: an argument if given, else the URL's value, else the default.

        Raises:
            InvalidInput: an option can't be used; the message names it.
        """
        size, name = pool_size, "pool_size"
        if size is None and "pool_size" in url_options:
            size, name = (
                url_options["pool_size"],
                "the URL's connection_limit (or pool_size)",
            )
        cached, wait = statement_cache_size, acquire_timeout_s
        if cached is None:
            cached = url_options.get("statement_cache_size")
        if wait is None:
            wait = url_options.get("acquire_timeout_s", ACQUIRE_TIMEOUT_S)
        least, most = LEAST_CONNECTIONS, MOST_CONNECTIONS
        return cls(
            POOL_SIZE if size is None else check_count(name, size, least=least, most=most),
            None if cached is None else check_count("statement_cache_size", cached, most=0),
            check_seconds("acquire_timeout_s", wait, may_be_zero=False),
            _bound("connection_idle_s", connection_idle_s),
            _bound("connection_lifetime_s", connection_lifetime_s),
        )


def _bound(name: str, seconds: float | None) -> float | None:
    return None if seconds is None else check_seconds(name, seconds, may_be_zero=False)
