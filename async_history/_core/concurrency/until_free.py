"""Connecting to a server that has no free connection now."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


async def until_free(
    connect: Callable[[float], Awaitable[T]],
    is_full: Callable[[BaseException], bool],
    timeout_s: float,
) -> T:
    """Connect; if the server has no free connection, try again after a pause.

    The pauses grow, and are random, so that clients that were refused together do not come back
    together.

    Args:
        connect: connects within the given seconds.
        is_full: whether an error says that the server has no free connection.
        timeout_s: seconds for all tries together.

    Raises:
        The error of the last try; the refusal before it, if that try had no time left.
    """
    deadline = monotonic() + timeout_s
    longest_s = _FIRST_PAUSE_S
    refusal: Exception | None = None
    while True:
        try:
            return await connect(deadline - monotonic())
        except Exception as error:
            if refusal is not None and isinstance(error, TimeoutError):
                raise refusal from error
            pause_s = longest_s * random.uniform(0.5, 1)  # noqa: S311 - not a secret
            if not is_full(error) or monotonic() + pause_s > deadline:
                raise
            refusal = error
        await asyncio.sleep(pause_s)
        longest_s = min(2 * longest_s, _LONGEST_PAUSE_S)
