# mypy: disable-error-code=import-untyped
"""The server's settings that limit the time and lock waits of a statement, so that it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from math import ceil
from typing import Any, Final, NamedTuple

import asyncpg

from async_history._postgres.errors import DriverError

_LOCK_PART: Final = 0.8
_STATEMENT_PART: Final = 0.9
"""Parts of a try's time after which the server gives up by itself, before we close the
connection."""
_CHECK_MS: Final = 1000
_CHECKS_CLIENT: Final = 14
"""The first version that checks, while it works, whether its client is still connected
(https://www.postgresql.org/docs/14/release-14.html)."""
_SET: Final = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name = ANY (
    '{lock_timeout,statement_timeout,client_connection_check_interval,
        idle_in_transaction_session_timeout}'::pg_catalog.text[]
)
"""

_LIMITS: Final = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name = ANY (
    '{statement_timeout,lock_timeout,idle_in_transaction_session_timeout,transaction_timeout}'
    ::pg_catalog.text[]
)
"""
_HAS_STANDBYS: Final = (
    "SELECT pg_catalog.current_setting('synchronous_standby_names'::pg_catalog.text, true)"
    " IS DISTINCT FROM ''::pg_catalog.text"
)

_IDLE: Final = "idle_in_transaction_session_timeout"

Settings = Mapping[str, int]
"""A session's settings, in milliseconds; 0 means no limit."""


class Shares(NamedTuple):
    """How many lock waits, and how many long statements, share the time of a try; None: any."""

    lock_waits: int
    statements: int | None


READ_COMMITTED: Final = "SET default_transaction_isolation TO 'read committed'"
"""For statements without a transaction. After waiting for a lock they must see what its previous
holder has committed, such as a memory's owner."""
_AS_BEFORE: Final = "RESET default_transaction_isolation"


async def lift_limits(connection: Any) -> str:
    """Lift the server's time limits of a session whose statements may take long; return the
    statements that restore them.

    A role may have limits against forgotten queries, which would end each migration or VACUUM of a
    large history, however often it is tried again. (pg_dump lifts the same ones.)
    """
    before = await connection.fetch(_LIMITS)
    await connection.execute("; ".join(f"SET {name} TO 0" for name, _ in before))
    return "; ".join(f"SET {name} TO {milliseconds}" for name, milliseconds in before)


@contextlib.asynccontextmanager
async def without_limits(connection: Any, timeout_s: float) -> AsyncIterator[None]:
    """Lift the server's time limits for the body, on a session of a pool.

    If this raises, also for an error of the body, the session has no limits: close the connection.

    Args:
        timeout_s: seconds to wait for the server before and after the body. After it, the
            connection is terminated then.

    Raises:
        TimeoutError, the driver's errors: the limits were not lifted.
    """
    async with asyncio.timeout(timeout_s):
        restore = await lift_limits(connection)
    yield
    try:
        async with asyncio.timeout(timeout_s):
            await connection.execute(restore)
    except DriverError:
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
            connection.terminate()


async def settings_of(connection: Any) -> Settings:
    """Return a session's values of the settings that this module changes."""
    async with connection.transaction():  # behind a pooler a statement needs a transaction
        return {name: int(setting) for name, setting in await connection.fetch(_SET)}


async def has_standbys(connection: Any) -> bool:
    """Return whether the server's commits may wait for synchronous standbys."""
    return bool(await connection.fetchval(_HAS_STANDBYS))


def bounds(settings: Settings, try_s: float, *, is_local: bool) -> str:
    """Return the statements that limit a try to `try_s` at the server.

    A smaller limit that the session already has is kept: it is the user's choice. But a transaction
    may be idle for all of a try: Python encodes, encrypts and hashes a large call in it.

    Args:
        is_local: whether to set them for the transaction only.
    """
    local = "LOCAL " if is_local else ""
    limits = {
        "lock_timeout": _least(settings, "lock_timeout", try_s * _LOCK_PART),
        "statement_timeout": _least(settings, "statement_timeout", try_s * _STATEMENT_PART),
    }
    if idle := settings.get(_IDLE):
        limits[_IDLE] = max(idle, ceil(try_s * 1000))
    return "; ".join(f"SET {local}{name} TO {limit}" for name, limit in limits.items())


def short_limits(settings: Settings, try_s: float, shares: Shares) -> str:
    """Return the statements that make the server end long lock waits and statements, so that
    a try has time for as many of them as `shares` says. (The server does not limit a COMMIT.)"""
    lock = _least(settings, "lock_timeout", try_s / shares.lock_waits)
    limits = f"SET LOCAL lock_timeout TO {lock}"
    if shares.statements is None:
        return limits
    statement = _least(settings, "statement_timeout", try_s / shares.statements)
    return f"{limits}; SET LOCAL statement_timeout TO {statement}"


def set_statements(settings: Settings) -> str:
    """Return the statements that restore a session's settings."""
    limits = [f"SET {name} TO {milliseconds}" for name, milliseconds in settings.items()]
    return "; ".join([*limits, _AS_BEFORE])


def _least(settings: Settings, name: str, seconds: float) -> int:
    ours = max(1, int(seconds * 1000))
    return min(settings.get(name) or ours, ours)


async def enable_client_check(connection: Any) -> None:
    """Make the server check, while it works for us, whether we are still connected."""
    if connection.get_server_version().major < _CHECKS_CLIENT:
        return
    with contextlib.suppress(asyncpg.InvalidParameterValueError):  # its system can't
        await connection.execute(f"SET client_connection_check_interval TO {_CHECK_MS}")
