"""Calls from any thread to an event loop."""

import asyncio
from collections import deque
from collections.abc import Callable


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this thread is running this loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class LoopInbox:
    """Runs calls from any thread on the loop that created it, in order.

    Calls from the loop itself run at once. Calls from other threads wake the loop once for all
    that arrive before it runs: with hundreds of operations in worker threads, waking dominates.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_woken = False

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call, which raises nothing, on the loop, before later callbacks of this thread."""
        if is_running(self._loop):
            if self._calls:
                self._run_calls()
            call()
            return
        self._calls.append(call)
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._run_calls)

    def _run_calls(self) -> None:
        self._is_woken = False
        while self._calls:
            self._calls.popleft()()
