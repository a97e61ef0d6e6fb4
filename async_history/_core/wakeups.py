"""When the callers of a committed batch are woken."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

B = TypeVar("B")
"""What is known of a committed batch."""

WAKEUP_BATCH_MIN: Final = 64
"""Callers that, once woken, keep the GIL for milliseconds. Fewer are done too soon to matter."""
HEAD_START_S: Final = 0.01
"""The longest that callers wait for the next commit to begin: a batch with details takes half of
it to prepare."""
SLICE: Final = 128
"""Callers woken in one turn of the event loop: they keep it for about 2 ms."""

_END: Final = object()


class WakeupScheduler(Generic[B]):
    """Wakes the callers of each batch, at once or when the next commit has begun.

    A thread that is to commit the next batch needs the GIL to begin. Without a head start it and
    the callers of the batch before take turns instead of overlapping: with 1,000 tasks that is a
    fifth to a third slower. So many callers are woken when the commit of many others has begun, or
    after the head start. They are woken in slices, each in a turn of the loop, so that they do not
    hold the loop together. The next batch is not taken before all are woken: it would be smaller.

    Args:
        wake: wakes the callers of one batch, a slice at each step of what it returns.
        head_start_s: the longest that they wait for the next commit to begin.
    """

    def __init__(
        self, wake: Callable[[B], Iterator[None]], head_start_s: float = HEAD_START_S
    ) -> None:
        self._wake = wake
        self._head_start_s = head_start_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[B] = []
        self._timer: asyncio.TimerHandle | None = None
        self._slices: Iterator[None] | None = None
        self._all_woken: asyncio.Future[None] | None = None

    def add(self, batch: B, *, callers: int, next_callers: int) -> None:
        """Wake a batch's callers, now or soon.

        Args:
            callers: how many it has.
            next_callers: how many wait for the next commit.
        """
        if min(callers, next_callers) >= WAKEUP_BATCH_MIN:
            self._waiting.append(batch)
            if self._timer is None:
                self._timer = self._loop.call_later(self._head_start_s, self._wake_all)
        elif self._waiting or self._slices is not None:
            self._waiting.append(batch)
            self._wake_all()
        else:
            self._slices = self._wake(batch)
            self._wake_slice()

    def commit_has_begun(self) -> None:
        """Wake those who wait: a commit needs the interpreter no more. Called on any thread."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        slices = chain.from_iterable(map(self._wake, waiting))
        if self._slices is None:
            self._slices = slices
            self._wake_slice()
        else:
            self._slices = chain(self._slices, slices)

    def _wake_slice(self) -> None:
        if self._slices is not None and next(self._slices, _END) is not _END:
            self._loop.call_soon(self._wake_slice)
            return
        self._slices = None
        if self._all_woken is not None and not self._all_woken.done():
            self._all_woken.set_result(None)

    async def wait_until_woken(self) -> None:
        """Return when none is being woken. Those who wait for a commit to begin wait on."""
        while self._slices is not None:
            self._all_woken = self._loop.create_future()
            await self._all_woken
