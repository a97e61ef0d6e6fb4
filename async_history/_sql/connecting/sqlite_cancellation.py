"""Cancellation of work on SQLite without cutting off a statement.

If a caller is cancelled between `execute` and `fetchall`, the cursor stays at its first row. Its
connection, even when closed, keeps the file locked as long as something refers to the exception,
as the cancelled task does. So no cancellation reaches the driver: the statement is interrupted.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from async_history._core.concurrency.cancellation import to_the_end

T = TypeVar("T")

_AGAIN_S: Final = 0.02
"""Seconds between interrupts: one that falls between two statements has no effect."""


async def run_interruptible(work: Awaitable[T], connection: AsyncConnection) -> T:
    """Run work on a connection. If the caller is cancelled, interrupt the work and await its end.

    The connection can be used again afterwards.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await to_the_end(_interrupt(running, connection))
        raise


async def _interrupt(running: "asyncio.Future[Any]", connection: AsyncConnection) -> None:
    while not running.done():
        if not (connection.closed or connection.invalidated):
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.interrupt()
        await asyncio.wait([running], timeout=_AGAIN_S)
    if not running.cancelled():
        running.exception()  # marks it as retrieved: the caller is cancelled instead


async def connect_interruptible(engine: AsyncEngine) -> AsyncConnection:
    """Return a connection of an engine. If the caller is cancelled, return it to the pool."""
    connecting = asyncio.ensure_future(engine.connect().start())
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await to_the_end(_give_back(connecting))
        raise


async def _give_back(connecting: "asyncio.Future[AsyncConnection]") -> None:
    await asyncio.wait([connecting])
    if not connecting.cancelled() and connecting.exception() is None:
        await connecting.result().close()
