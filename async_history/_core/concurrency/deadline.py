"""Deadlines of short operations that follow each other, with one timer of the event loop."""

import asyncio
from collections.abc import Callable
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
        self._at: float | None = None

    def set(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._at = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._at:
            self.stop()
        if self._timer is None:
            self._timer = self._loop.call_at(self._at, self._fire)

    def clear(self) -> None:
        """Remove the deadline: the operation has ended."""
        self._at = None

    def _fire(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._fire)
        else:
            self._on_passed()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
