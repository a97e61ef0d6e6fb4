"""Transactions and savepoints on PostgreSQL, with their settings sent in the same round trip.

They are begun by hand, because asyncpg would send each setting separately.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from async_history._postgres.errors import DriverError

NO_JIT: Final = "jit TO off"
"""For SET. The server compiles a statement whose plan it expects to be costly, each time it runs
(https://www.postgresql.org/docs/current/jit-decision.html). Before PostgreSQL 18 that is each plan
with what `BY_INDEX` turns off; and of a large table, a plan with an unknown LIMIT. Compiling took
0.1 to 2 s for statements that take a few ms."""
_BEGIN: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL {NO_JIT}"
"""Each statement must see what was committed while an earlier one waited for locks, whatever the
database's default is."""
_COMMIT: Final = "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL client_min_messages TO warning; COMMIT;"
"""Only a warning says that a commit did not wait for its synchronous standby. A role, a database, a
pooler or a trigger may have silenced warnings. So they are turned on last, after the triggers of
deferred constraints have run."""
WAIT_FOR_REPLICAS_TOO: Final = (
    "SELECT pg_catalog.pg_logical_emit_message(true, 'async_history', '')"
)
"""Writes a few bytes of log: a commit waits for a synchronous standby only if it wrote some.
Otherwise an earlier try that is committed only here would be acknowledged at once."""
_WITHOUT_INDEX: Final = ("seqscan", "bitmapscan", "sort")
BY_INDEX: Final = "; ".join(f"SET LOCAL enable_{plan} TO off" for plan in _WITHOUT_INDEX)
"""For statements whose rows an index gives in order. PostgreSQL caches plans. A plan made while the
table was small, or without statistics, would read or sort all of a large table for a few rows."""
ANY_PLAN: Final = "SELECT " + ", ".join(
    f"pg_catalog.set_config('enable_{plan}', 'on', true)" for plan in _WITHOUT_INDEX
)
"""For statements after `BY_INDEX` that read whole tables."""
_UNDO: Final = "ROLLBACK TO SAVEPOINT async_history; RELEASE SAVEPOINT async_history"


@contextlib.asynccontextmanager
async def transaction(connection: Any, *settings: str) -> AsyncIterator[None]:
    """Commit all that the body does, or nothing.

    After a cancellation the transaction is still open: close the connection.

    Args:
        settings: the first statements of the transaction, such as `SET LOCAL`.
    """
    try:
        await connection.execute("; ".join((_BEGIN, *settings)))
        yield
        await connection.execute(_COMMIT)
    except Exception:
        with contextlib.suppress(*DriverError):
            await connection.execute("ROLLBACK")
        raise


@contextlib.asynccontextmanager
async def savepoint(connection: Any, *, checks_constraints: bool) -> AsyncIterator[None]:
    """Roll back the body's changes if it fails or is cancelled; the transaction can continue.

    Args:
        checks_constraints: also check deferred constraints, which are immediate from then on.
    """
    await connection.execute("SAVEPOINT async_history")
    try:
        yield
        check = "SET CONSTRAINTS ALL IMMEDIATE; " if checks_constraints else ""
        await connection.execute(f"{check}RELEASE SAVEPOINT async_history")
    except (Exception, asyncio.CancelledError):
        with contextlib.suppress(*DriverError):
            await connection.execute(_UNDO)
        raise
