"""Scheduling of the wake-ups of a committed batch's callers."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

B = TypeVar("B")
"""A committed batch."""

WAKEUP_BATCH_MIN: Final = 64
"""The number of woken callers that keep the GIL for milliseconds. Fewer do not matter."""
HEAD_START_S: Final = 0.01
"""Maximum time for which callers wait for the next commit to begin. Preparing a batch with details
takes half of it.
"""
SLICE: Final = 128
"""Callers woken in one iteration of the event loop; they keep it busy for about 2 ms."""
FIRST_SLICE: Final = 4
"""Callers of the first slice; each further one has twice as many, up to `SLICE`.

A socket's buffer may not take a large batch at once. The rest is sent in the next iterations of the
event loop, and the server waits for it.
"""

_END: Final = object()


class WakeupScheduler(Generic[B]):
    """Wakes the callers of each batch, at once or when the next commit has begun.

    The thread that commits the next batch needs the GIL to begin. Without a head start, it and the
    callers of the previous batch would alternate instead of overlapping, which is a fifth to a
    third slower with 1,000 tasks. So a large batch's callers are woken when a large next commit has
    begun, or after the head start. They are woken in slices, one per iteration of the loop, so that
    they do not block it. The next batch is not taken before all are woken: it would be smaller.

    Args:
        wake: returns an iterator that wakes one slice of a batch's callers at each step.
        head_start_s: the maximum wait for the next commit to begin.
        woken: called when all of a large batch are woken and have run.
    """

    def __init__(
        self,
        wake: Callable[[B], Iterator[None]],
        head_start_s: float = HEAD_START_S,
        *,
        woken: Callable[[], None] | None = None,
    ) -> None:
        self._wake = wake
        self._woken = woken
        self._head_start_s = head_start_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[B] = []
        self._timer: asyncio.TimerHandle | None = None
        self._slices: Iterator[None] | None = None
        self._tells_when_woken = False
        self._all_woken: asyncio.Future[None] | None = None

    def add(self, batch: B, *, callers: int, next_callers: int) -> None:
        """Wake a batch's callers, now or soon.

        Args:
            callers: the number of its callers.
            next_callers: the number of callers that wait for the next commit.
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
        """Wake the waiting callers: the commit no longer needs the GIL. Called on any thread."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tells_when_woken = True
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
        if self._woken is not None and self._tells_when_woken:
            self._tells_when_woken = False
            self._loop.call_soon(self._woken)  # after the callers
        if self._all_woken is not None and not self._all_woken.done():
            self._all_woken.set_result(None)

    @property
    def is_waking(self) -> bool:
        """Whether callers are being woken."""
        return self._slices is not None

    async def wait_until_woken(self) -> None:
        """Wait until no callers are being woken. Callers that wait for a commit to begin keep
        waiting.
        """
        while self._slices is not None:
            self._all_woken = self._loop.create_future()
            await self._all_woken
