# mypy: disable-error-code=import-untyped
"""Transactions that lock whole tables, without keeping others from them for long."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

import asyncpg

from async_history._postgres.schema.indexes import ASK_AGAIN_S
from async_history._postgres.schema.migrations import limit_lock_wait
from async_history._postgres.transaction import transaction
from async_history.errors import StorageLocked

T = TypeVar("T")


async def retry_while_locked(
    connection: Any, work: Callable[[], Awaitable[T]], *, within_s: float, if_locked: str
) -> T:
    """Do work in a transaction that waits a tenth of a second for the lock of a table.

    Others wait for a session that waits for such a lock. If the transaction does not get it, it is
    rolled back, and tried again after them.

    Args:
        within_s: seconds to try; the last try waits longer.
        if_locked: the message if others keep a table locked.

    Raises:
        StorageLocked: they do; nothing was changed.
    """
    deadline = monotonic() + within_s
    while True:
        is_last = monotonic() > deadline
        try:
            async with transaction(connection):
                await connection.execute(limit_lock_wait(is_last=is_last))
                return await work()
        except asyncpg.LockNotAvailableError as error:
            if is_last:
                raise StorageLocked(if_locked) from error
        await asyncio.sleep(ASK_AGAIN_S)
