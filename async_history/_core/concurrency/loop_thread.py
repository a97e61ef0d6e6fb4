"""An event loop on a separate thread, for code that does not await."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio

from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.concurrency.threads import start
from async_history.errors import CommitUnknown, HistoryClosed, WrongLoop

T = TypeVar("T")

_log = logging.getLogger("async_history")

_EXIT_S: Final = 1.0
"""Seconds for which the program's exit waits for calls of daemon threads, and for closing."""


class LoopThread:
    """An event loop on a separate thread, which runs calls of other threads until `stop`.

    It does not use `anyio.from_thread.start_blocking_portal`. Stopping a portal waits for its end,
    which garbage collection must not do, and at least up to anyio 4.4 the program's exit waits for
    it. The thread is a daemon, and so are the threads started on it, such as a connection's. They
    serve the program's other threads until these have ended, and do not keep the program alive.

    Args:
        finish: runs at the end, when no more calls can arrive.
    """

    longest_close_s = 2 * CLOSE_TIMEOUT_S
    """Seconds after which closing is cancelled; a manager's own closing has a shorter limit."""

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._finish = finish
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._entering: list[int] = []  # the threads of calls that are being submitted
        self.is_closed = False
        self._stopping, self._all_entered = asyncio.Event(), asyncio.Event()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="async_history blocking", daemon=True
        )
        start(self._thread)
        started.result()

    def _run(self, started: "concurrent.futures.Future[None]") -> None:
        _loop_threads.add(self)
        try:
            anyio.run(self._serve, started)
        except BaseException as error:
            if started.done():
                _log.exception("the history's loop thread died")
            else:
                started.set_exception(error)
        finally:
            _loop_threads.discard(self)

    async def _serve(self, started: "concurrent.futures.Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        started.set_result(None)
        await self._stopping.wait()
        with anyio.move_on_after(self.longest_close_s):
            await self._all_entered.wait()
            await self._finish()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine function on the loop and return its result."""
        if threading.current_thread() is self._thread:
            raise WrongLoop("this is the history's own loop thread, which can't wait for itself")
        try:
            return self.submit(function, *args).result()
        except concurrent.futures.CancelledError as error:
            raise CommitUnknown("the history was closed while the call was under way") from error

    def submit(
        self, function: Callable[..., Awaitable[T]], *args: Any
    ) -> "concurrent.futures.Future[T]":
        """Submit a call to the loop, which does not end before it has accepted the call.

        Calls begin there in the order in which they were submitted.
        """
        self.require_own_process()
        with self._lock:
            if self.is_closed:
                raise HistoryClosed("the history is closed; open another")
            self._entering.append(threading.get_ident())
        # Not a portal's start_task_soon, which waits until the loop has begun the call.
        call = _awaited(function, args)
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError as error:
            call.close()
            raise HistoryClosed("the history's loop thread has ended; open another") from error
        finally:
            with self._lock:
                with contextlib.suppress(ValueError):  # `stop` has removed it
                    self._entering.remove(threading.get_ident())
                self._set_if_all_entered()

    def stop(self) -> None:
        """Refuse new calls and let the thread end, without waiting for it."""
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._set(self._stopping)
            # A call that a signal handler has interrupted here goes on only after the handler.
            here = threading.get_ident()
            self._entering = [thread for thread in self._entering if thread != here]
            self._set_if_all_entered()

    def join(self, within_s: float | None = None) -> None:
        """Wait for the thread's end, unless this is that thread."""
        if threading.current_thread() is not self._thread:
            self._thread.join(within_s)

    def _set_if_all_entered(self) -> None:
        if self.is_closed and not self._entering:
            self._set(self._all_entered)

    def _set(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(event.set)

    @property
    def is_in_own_process(self) -> bool:
        return os.getpid() == self._process

    def require_own_process(self) -> None:
        if not self.is_in_own_process:
            raise WrongLoop(
                "this history was opened before the process forked; open one in the process that "
                "uses it"
            )


async def _awaited(function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    return await function(*args)


_loop_threads: set[LoopThread] = set()


@atexit.register
def _stop_all() -> None:
    """Close everything that the program left open, after its own threads have ended."""
    threads = [thread for thread in _loop_threads.copy() if thread.is_in_own_process]
    deadline = time.monotonic() + _EXIT_S
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
