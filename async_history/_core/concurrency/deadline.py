"""Deadlines of short operations that follow each other, with one timer of the event loop."""

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from types import TracebackType


class Deadline:
    """The deadline of one operation at a time.

    Setting a timer for each takes longer than the rest of a lone commit's work on the connection.
    So one timer stays: if it fires too early, it is set again for the deadline of then.

    Args:
        on_passed: called if the deadline passes before it is cleared.
    """

    def __init__(self, on_passed: Callable[[], None]) -> None:
        self._on_passed = on_passed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = math.inf
        self._at: float | None = None

    def set(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._at = at = monotonic() + seconds
        if at < self._fires_at:
            self.stop()
            self._start_timer(at, seconds)

    def _start_timer(self, at: float, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._fire)
        self._fires_at = at

    def clear(self) -> None:
        """Remove the deadline: the operation has ended."""
        self._at = None

    def _fire(self) -> None:
        self._timer = None
        self._fires_at = math.inf
        if self._at is None:
            return
        left = self._at - monotonic()
        if left > 0:
            self._start_timer(self._at, left)
        else:
            self._on_passed()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._fires_at = math.inf


class TimeLimit:
    """A context whose body raises TimeoutError if it takes too long, like `asyncio.timeout`.

    For one body at a time, as `with limit.within(seconds):`.
    """

    def __init__(self) -> None:
        self._deadline = Deadline(self._cancel)
        self._seconds = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._has_expired = False

    def within(self, seconds: float) -> "TimeLimit":
        """Return this context, for a body that may take so many seconds."""
        self._seconds = seconds
        return self

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._has_expired = False
        self._deadline.set(self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._deadline.clear()
        task, self._task = self._task, None
        if self._has_expired and task is not None:
            is_own = task.uncancel() <= self._cancelling
            if is_own and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _cancel(self) -> None:
        if self._task is not None:
            self._has_expired = True
            self._task.cancel()

    def stop(self) -> None:
        """Cancel the timer."""
        self._deadline.stop()
