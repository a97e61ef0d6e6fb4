"""The event loop's turns: calls that have nothing to wait for let the others have theirs."""

import asyncio
from typing import Final

CALLS_AT_ONCE: Final = 16
"""Calls of one manager within a turn of the loop that need not wait for the next one. More would
let who comes first run on while thousands of others wait for their first."""
RECORDS_AT_ONCE: Final = 100
"""Records of a page that an iteration hands out before the loop gets its turn."""


class CooperativeCalls:
    """Counts the calls of a turn of the loop that had nothing to wait for."""

    def __init__(self) -> None:
        self._calls = 0

    def done(self) -> "asyncio.Future[None]":
        """Return a future that is done: now, or after `CALLS_AT_ONCE` in the loop's next turn."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._calls += 1
        if self._calls <= CALLS_AT_ONCE:
            future.set_result(None)
            return future
        if self._calls == CALLS_AT_ONCE + 1:
            loop.call_soon(self._begin_turn)
        loop.call_soon(_finish, future)
        return future

    def _begin_turn(self) -> None:
        self._calls = 0


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def after_record(index: int) -> None:
    """Give the loop its turn after every `RECORDS_AT_ONCE` records of a page."""
    if index % RECORDS_AT_ONCE == RECORDS_AT_ONCE - 1:
        await asyncio.sleep(0)
