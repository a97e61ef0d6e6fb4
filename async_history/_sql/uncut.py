"""Ends work on SQLite without cutting off a statement.

A cursor whose caller was cancelled between `execute` and `fetchall` stays at its first row, and its
connection, though it is closed, keeps the file locked for as long as anybody holds the exception:
the cancelled task does. So no cancellation reaches the driver. The statement is interrupted.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from async_history._core.cancellation import to_the_end

T = TypeVar("T")

_AGAIN_S: Final = 0.02
"""An interrupt between two statements does nothing: how soon there is another."""


async def run_uncut(work: Awaitable[T], connection: AsyncConnection) -> T:
    """Run work on a connection; where the caller is cancelled, until the work has ended.

    The connection can be used again then, also where the work was interrupted.
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
        running.exception()  # its caller ends for another reason


async def connect_uncut(engine: AsyncEngine) -> AsyncConnection:
    """Return a connection of an engine; where the caller is cancelled, it is given back."""
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
