# mypy: disable-error-code=import-untyped
"""What bounds our statements in the server, so that little is left there when we give up."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg

from async_history._core.submissions import Submission

_RECORD_S: Final = 0.001
_BYTES_A_S: Final = 1024 * 1024
"""What a healthy server may take for what it is given, beyond a try's time: ten times what a slow
one does, and a slow network."""
_UNNOTICED_S: Final = 2.0
"""What a batch of usual size may take: a transaction that tells the server of it takes two round
trips more than a statement alone."""
_LOCK_PART: Final = 0.8
_STATEMENT_PART: Final = 0.9
"""Of a try's time: the server gives up by itself before we cut it off."""
_CHECK_MS: Final = 1000
_CHECKS_CLIENT: Final = 14
"""The first version that looks, while it works, whether its client is still there
(https://www.postgresql.org/docs/14/release-14.html)."""
_SET: Final = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name = ANY ('{lock_timeout,statement_timeout,client_connection_check_interval}'
    ::pg_catalog.text[])
"""

Said = Mapping[str, int]
"""Settings that a session has, in milliseconds; 0 is none."""


def time_for(batch: Sequence[Submission]) -> float:
    """Return how long a healthy server may need for a batch, in seconds; 0 for a usual one."""
    needed_s = sum(one.record_count * _RECORD_S + one.size_bytes / _BYTES_A_S for one in batch)
    return needed_s if needed_s > _UNNOTICED_S else 0.0


async def settings_of(connection: Any) -> Said:
    """Return what a session has of the settings that are made here."""
    async with connection.transaction():  # behind a pooler a statement needs one
        return {name: int(setting) for name, setting in await connection.fetch(_SET)}


def bounds(said: Said, try_s: float, *, is_local: bool) -> str:
    """Return the statements that bound what a try of so long leaves behind.

    What the session has already counts where it is less: it is somebody's choice.

    Args:
        is_local: for the transaction alone.
    """
    local = "LOCAL " if is_local else ""
    lock, statement = try_s * _LOCK_PART, try_s * _STATEMENT_PART
    return (
        f"SET {local}lock_timeout TO {_least(said, 'lock_timeout', lock)}; "
        f"SET {local}statement_timeout TO {_least(said, 'statement_timeout', statement)}"
    )


def short_waits(said: Said, try_s: float, waits: int) -> str:
    """Return the statement after which so many waits for locks fit into a try."""
    return f"SET LOCAL lock_timeout TO {_least(said, 'lock_timeout', try_s / waits)}"


def as_it_was(said: Said) -> str:
    """Return the statements that give a session back what it had."""
    return "; ".join(f"SET {name} TO {milliseconds}" for name, milliseconds in said.items())


def _least(said: Said, name: str, seconds: float) -> int:
    ours = max(1, int(seconds * 1000))
    return min(said.get(name) or ours, ours)


async def end_without_client(connection: Any) -> None:
    """Have the server look, while it works for us, whether we are still there."""
    if connection.get_server_version().major < _CHECKS_CLIENT:
        return
    with contextlib.suppress(asyncpg.InvalidParameterValueError):  # its system can't
        await connection.execute(f"SET client_connection_check_interval TO {_CHECK_MS}")
