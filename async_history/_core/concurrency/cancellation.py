"""Work that must complete even if its caller is cancelled.

asyncio cancels a task once. When anyio cancels a scope, it cancels every await in it until the task
has left the scope, also during clean-up (https://anyio.readthedocs.io/en/stable/cancellation.html).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope

T = TypeVar("T")


async def to_the_end(work: Awaitable[T], on_cancel: Callable[[], object] = lambda: None) -> T:
    """Wait until work has ended, even if the caller is cancelled.

    Args:
        on_cancel: called when the caller is cancelled, to make the work end soon.
    """
    running = asyncio.ensure_future(work)
    try:
        await asyncio.wait([running])
    except asyncio.CancelledError:
        on_cancel()
        with CancelScope(shield=True):
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # the caller ends for another reason
        raise
    return running.result()
