"""Yielding to the event loop: calls that need not wait sometimes let other tasks run."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import Final, TypeVar

T = TypeVar("T")
V = TypeVar("V")

CALLS_AT_ONCE: Final = 16
"""Calls of one manager that return at once within one iteration of the loop. With more, the first
task would run on while thousands of others wait for their first call."""
RECORDS_AT_ONCE: Final = 100
"""Number of records of a page yielded before other tasks may run."""


class OnceATurn:
    """Runs a check at most once per iteration of its loop, as long as it passes.

    For many calls that need the same check within an iteration.

    Args:
        check: raises if something is wrong.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._has_passed = False

    def __call__(self) -> None:
        """Check, or use the last check of this iteration. Another thread always checks.

        Raises what the check raises.
        """
        # Not asyncio.get_running_loop(): see LoopBound.
        is_in_loop = get_ident() == self._thread and self._loop.is_running()
        if self._has_passed and is_in_loop:
            return
        self._check()
        if is_in_loop:
            self._loop.call_soon(self._begin_turn)  # first: it may raise
            self._has_passed = True

    def _begin_turn(self) -> None:
        self._has_passed = False


class CooperativeCalls:
    """Counts the calls that need not wait, within one iteration of the loop."""

    def __init__(self) -> None:
        self._calls = 0
        self._waiting: list[asyncio.Future[None]] = []

    def done(self) -> "asyncio.Future[None]":
        """Return a future: done now, or after `CALLS_AT_ONCE` in the loop's next iteration."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._calls += 1
        if self._calls <= CALLS_AT_ONCE:
            future.set_result(None)
            return future
        if not self._waiting:
            loop.call_soon(self._begin_turn)
        self._waiting.append(future)
        return future

    def _begin_turn(self) -> None:
        self._calls = 0
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


async def after_record(index: int) -> None:
    """Let other tasks run after every `RECORDS_AT_ONCE` records of a page."""
    if index % RECORDS_AT_ONCE == RECORDS_AT_ONCE - 1:
        await asyncio.sleep(0)


async def in_slices(
    compute: Callable[[Sequence[T]], Iterable[V]], items: Sequence[T], size: int
) -> list[V]:
    """Compute a value for each item, on the event loop, which runs once between two slices.

    Args:
        compute: returns the values of a slice, in order.
        size: the number of items of a slice.
    """
    values: list[V] = []
    for begin in range(0, len(items), size):
        if begin:
            await asyncio.sleep(0)
        values += compute(items[begin : begin + size])
    return values
