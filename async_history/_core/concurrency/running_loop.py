"""The event loop that this library runs on: asyncio's."""

import asyncio

from async_history.errors import WrongLoop


def running_loop() -> asyncio.AbstractEventLoop:
    """Return asyncio's running event loop.

    Raises:
        WrongLoop: there is none, for example under trio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise WrongLoop(
            "no asyncio event loop is running here, and async_history runs on asyncio only: not "
            "on trio; under anyio use its asyncio backend"
        ) from error
