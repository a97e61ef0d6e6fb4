"""When the callers of a committed batch are woken."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Generic, TypeVar

B = TypeVar("B")
"""What is known of a committed batch."""

WAKEUP_BATCH_MIN: Final = 64
"""Callers that, once woken, keep the GIL for milliseconds. Fewer are done too soon to matter."""
HEAD_START_S: Final = 0.003
"""The longest that callers wait for the next commit to begin."""


class WakeupScheduler(Generic[B]):
    """Wakes the callers of each batch, at once or when the next commit has begun.

    A thread that is to commit the next batch needs the GIL to begin. Without a head start it and
    the callers of the batch before take turns instead of overlapping: with 1,000 tasks that is a
    fifth to a third slower. So many callers are woken when the commit of many others has begun, or
    after the head start.

    Args:
        wake: wakes the callers of one batch.
        head_start_s: the longest that they wait for the next commit to begin.
    """

    def __init__(self, wake: Callable[[B], None], head_start_s: float = HEAD_START_S) -> None:
        self._wake = wake
        self._head_start_s = head_start_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[B] = []

    def add(self, batch: B, *, callers: int, next_callers: int) -> None:
        """Wake a batch's callers, now or soon.

        Args:
            callers: how many it has.
            next_callers: how many wait for the next commit.
        """
        self._waiting.append(batch)
        if min(callers, next_callers) >= WAKEUP_BATCH_MIN:
            self._loop.call_later(self._head_start_s, self._wake_all)
        else:
            self._wake_all()

    def commit_has_begun(self) -> None:
        """Wake those who wait: a commit needs the interpreter no more. Called on any thread."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            self._wake(batch)
