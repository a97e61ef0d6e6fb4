"""Work that must come to its end though its caller is cancelled.

asyncio cancels a task once. anyio, where a scope is cancelled, cancels every await of it until the
task has left the scope: an await in a clean-up too (https://anyio.readthedocs.io/en/stable/cancellation.html).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope

T = TypeVar("T")


async def to_the_end(work: Awaitable[T], on_cancel: Callable[[], object] = lambda: None) -> T:
    """Wait for work until it has ended, also where the caller is cancelled meanwhile.

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
