# mypy: disable-error-code=import-untyped
"""Detection of a pooler, and of whether it loses prepared statements."""

import contextlib
from typing import Any, Final
from uuid import uuid4

import asyncpg

from async_history.errors import InvalidInput

_PROCESS: Final = "SELECT pg_catalog.pg_backend_pid()"
_OTHER_PROCESS: Final = "SELECT 1 WHERE pg_catalog.pg_backend_pid() <> ({named})::pg_catalog.int4"
_KEEPS_STATEMENTS: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_prepared_statements
    WHERE pg_catalog.starts_with(name, '__asyncpg_'::pg_catalog.text)
        AND pg_catalog.strpos(statement, '{mark}'::pg_catalog.text) > 0
)
"""
"""Whether this statement itself is prepared: other clients may have left theirs there."""
_OTHER_CONNECTION_S: Final = 1.0


async def require_no_lost_statements(connection: Any, pool: Any) -> None:
    """Check that a user's pool can use its prepared statements through the pooler.

    A pooler that gives a client another server process for each transaction loses them, unless it
    tracks them itself, under its own names.

    Raises:
        InvalidInput: the pooler loses them.
    """
    try:
        async with connection.transaction():
            kept = await connection.fetchval(_KEEPS_STATEMENTS.format(mark=uuid4().hex))
            process = await connection.fetchval(_PROCESS)
        if not kept or not await _changes_process(connection, process, pool):
            return
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
        pass  # lost already
    raise InvalidInput(
        "the pool keeps prepared statements, which the pooler in front of the server loses: make "
        "it with create_pool(…, statement_cache_size=0)"
    )


async def _changes_process(connection: Any, process: int, pool: Any) -> bool:
    """Return whether a pooler assigns a server process per transaction.

    If so, another client's transaction often gets the process that this one had before.
    """
    with contextlib.suppress(TimeoutError):  # no other connection is free, so it is not known
        async with pool.acquire(timeout=_OTHER_CONNECTION_S) as other, other.transaction():
            if await other.fetchval(_PROCESS) == process:
                return True
            async with connection.transaction():
                return bool(await connection.fetchval(_PROCESS) != process)
    return False


async def is_pooled(connection: Any) -> bool:
    """Return whether a pooler is between us and the server: it reports a process id of its own."""
    named = int(connection.get_server_pid())
    async with connection.transaction():  # rows, not values, which a user's codec may change
        return bool(await connection.fetch(_OTHER_PROCESS.format(named=named)))
