"""Closing what has not been used for some time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator


class IdleWatch:
    """Calls a function once something has not been used for some time.

    Args:
        idle_s: how long; None never calls it.
        close: what is called, never while it is used.
    """

    def __init__(self, idle_s: float | None, close: Callable[[], Awaitable[None]]) -> None:
        self._idle_s = idle_s
        self._close = close
        self._users = 0
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Use it in the body."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._idle_s is not None:
                loop = asyncio.get_running_loop()
                self._used_at = loop.time()
                if self._timer is None:  # one timer, however often it is used
                    self._timer = loop.call_later(self._idle_s, self._look)

    def _look(self) -> None:
        assert self._idle_s is not None  # noqa: S101 - there is no timer otherwise
        loop = asyncio.get_running_loop()
        left = self._used_at + self._idle_s - loop.time()
        self._timer = None
        if self._users or left > 0:
            self._timer = loop.call_later(max(left, self._idle_s / 10), self._look)
        else:
            self._closing = loop.create_task(self._call())

    async def _call(self) -> None:
        await self._close()

    def stop(self) -> None:
        """Call it no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle_s = None

    async def aclose(self) -> None:
        """Call it no more, and wait where it is being called."""
        self.stop()
        if self._closing is not None:
            await asyncio.wait([self._closing])
