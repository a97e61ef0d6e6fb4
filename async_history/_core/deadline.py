"""Timeouts of short operations that follow each other, with one timer of the event loop."""

import asyncio
from types import TracebackType


class Deadline:
    """A context whose body raises TimeoutError if it takes too long, like `asyncio.timeout`.

    For one operation at a time. Setting a timer for each takes longer than the rest of a lone
    commit's work on the connection. So one timer stays: when it fires too early, it is set again
    for the operation that is under way then.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._end = 0.0
        self._cancelling = 0
        self._has_expired = False

    def within(self, seconds: float) -> "Deadline":
        """Return this context, for a body that may take so many seconds."""
        self._end = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._end:
            self.stop()
        if self._timer is None:
            self._timer = self._loop.call_at(self._end, self._fire)
        return self

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._has_expired = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._has_expired and task is not None:
            is_own = task.uncancel() <= self._cancelling
            if is_own and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _fire(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._fire)
        else:
            self._has_expired = True
            self._task.cancel()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
