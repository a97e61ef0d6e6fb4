"""A timer that closes a resource that is not used for some time."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic


class IdleWatch:
    """A timer that calls a function when a resource has not been used for some time.

    The resource is in use in the body of `with watch:`.

    Args:
        idle_s: that time in seconds; None: never.
        close: the function; it is not called during use.
    """

    def __init__(self, idle_s: float | None, close: Callable[[], Awaitable[None]]) -> None:
        self._idle_s = idle_s
        self._close = close
        self._users = 0
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self._idle_s is not None:
            self._used_at = monotonic()
            if self._timer is None:  # one timer, however often it is used
                self._timer = self._loop.call_later(self._idle_s, self._look)

    def _look(self) -> None:
        assert self._idle_s is not None  # noqa: S101 - there is no timer otherwise
        left = self._used_at + self._idle_s - monotonic()
        self._timer = None
        if self._users or left > 0:
            self._timer = self._loop.call_later(max(left, self._idle_s / 10), self._look)
        else:
            self._closing = self._loop.create_task(self._call())

    async def _call(self) -> None:
        await self._close()

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle_s = None

    async def aclose(self) -> None:
        """Stop the timer, and wait if the function is running."""
        self.stop()
        if self._closing is not None:
            await asyncio.wait([self._closing])
