"""Scheduling of the wake-ups of a committed batch's callers."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
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
"""Callers of the first slice while a commit begins; each further one has twice as many, up to
`SLICE`.

A socket's buffer may not take a large batch at once. The rest is sent in the next iterations of the
event loop, and the server waits for it.
"""

_LOST_S: Final = 0.1
"""Seconds without a slice after which callers are woken again: an exception, such as one that a
signal handler raises, came before it.
"""


class WakeupScheduler(Generic[B]):
    """Wakes the callers of each batch, at once or when the next commit has begun.

    The thread that commits the next batch needs the GIL to begin. Without a head start, it and the
    callers of the previous batch would alternate instead of overlapping, which is a fifth to a
    third slower with 1,000 tasks. So a large batch's callers are woken when a large next commit has
    begun, or after the head start. They are woken in slices, one per iteration of the loop, so that
    they do not block it. The next batch is not taken before all are woken: it would be smaller.
    Slices are small only while a commit begins: what callers do next together costs less.

    Args:
        wake: wakes at most so many of a batch's callers, and returns whether others are left. If it
            raises, it is called again, so it must not raise for the same caller for ever.
        head_start_s: the maximum wait for the next commit to begin.
        woken: called when all of a large batch are woken and have run.
    """

    def __init__(
        self,
        wake: Callable[[B, int], bool],
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
        self._waking: deque[B] = deque()
        self._slice = SLICE
        self._slices = 0
        self._next_slice: asyncio.Handle | None = None
        self._tells_when_woken = False
        self._all_woken: asyncio.Future[None] | None = None

    def add(self, batch: B, *, callers: int, next_callers: int) -> None:
        """Wake a batch's callers, now or soon.

        Args:
            callers: the number of its callers.
            next_callers: the number of callers that wait for the next commit.
        """
        if callers >= WAKEUP_BATCH_MIN <= next_callers:
            self._waiting.append(batch)
            if self._timer is None:
                self._timer = self._loop.call_later(self._head_start_s, self._wake_all)
        elif self._waiting or self._waking:
            self._waiting.append(batch)
            self._wake_all()
        else:
            self._waking.append(batch)
            if callers <= SLICE:
                self._wake_slice()
            else:  # The loop would resume callers that are woken here together with the next slice.
                self._schedule_slice()

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
        is_waking = self.is_waking
        self._waking += self._waiting
        self._waiting.clear()
        if not is_waking:
            self._slice = FIRST_SLICE
            self._wake_slice()

    def _wake_slice(self) -> None:
        """Wake a slice of callers, and the others in the next iterations of the loop."""
        self._schedule_slice()  # first: a caller may raise, or run the loop as nest_asyncio lets it
        self._slices += 1
        while self._waking:
            batch = self._waking[0]
            if self._wake(batch, self._slice):
                self._slice = min(2 * self._slice, SLICE)
                self._schedule_slice()  # again: after callers that the loop resumes
                return
            if self._waking and self._waking[0] is batch:  # a caller may run the loop
                self._waking.popleft()
            self._slice = FIRST_SLICE
        self._slice = SLICE
        if self._woken is not None and self._tells_when_woken:
            self._tells_when_woken = False
            self._loop.call_soon(self._woken)  # after the callers
        if self._all_woken is not None and not self._all_woken.done():
            self._all_woken.set_result(None)
        if self._next_slice is not None:
            self._next_slice.cancel()

    def _schedule_slice(self) -> None:
        """Wake a slice in the next iteration of the loop, once."""
        earlier, self._next_slice = self._next_slice, self._loop.call_soon(self._wake_slice)
        if earlier is not None:
            earlier.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether no callers are left to be woken."""
        return not self._waiting and not self._waking

    @property
    def is_waking(self) -> bool:
        """Whether callers are being woken."""
        return bool(self._waking)

    async def wait_until_woken(self) -> None:
        """Wait until no callers are being woken. Callers that wait for a commit to begin keep
        waiting.
        """
        while self._waking:
            self._all_woken = self._loop.create_future()
            slices = self._slices
            await asyncio.wait([self._all_woken], timeout=_LOST_S)
            # However long an iteration of the loop takes, a slice runs in it.
            if self._waking and self._slices == slices:
                self._schedule_slice()
