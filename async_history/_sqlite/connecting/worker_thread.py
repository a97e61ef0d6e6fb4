"""Blocking work on a new thread, which is stopped when its caller is cancelled.

The threads of anyio and of the loop's executor can't be used. A program's calls may occupy all of
them while they wait for acks, and the writer would then wait for one of them.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.running_loop import running_loop
from async_history._core.concurrency.threads import start
from async_history._sqlite.connecting.fork import using_sqlite

T = TypeVar("T")

INTERRUPT_PAUSE_S: Final = 0.01
"""Seconds between two interruptions of cancelled work: SQLite ignores one that comes between two
statements."""

_this_thread = threading.local()


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run a function on a new thread and return its result.

    If the caller is cancelled, `is_stopping` becomes true on the thread, the connections that the
    function has opened are interrupted, and this raises once the function has ended.

    Raises:
        StorageError: no thread could be started.
    """
    work = _Work(function)
    return await to_the_end(work.begin(), work.stop)


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Set the event loop for which this thread works."""
    _this_thread.loop = loop


def is_stopping() -> bool:
    """Return whether the caller of this thread's function was cancelled, or the program ends.

    The program ends when the main thread has ended and this thread's loop does not run: a loop on a
    separate thread outlives the main one.
    """
    work: _Work[object] | None = getattr(_this_thread, "work", None)
    if work is not None and work.is_stopped:
        return True
    loop: asyncio.AbstractEventLoop | None = getattr(_this_thread, "loop", None)
    return loop is not None and not loop.is_running() and not threading.main_thread().is_alive()


def interrupt_when_stopping(connection: sqlite3.Connection) -> None:
    """Interrupt this connection's statement when the caller of this thread's function is
    cancelled."""
    work: _Work[object] | None = getattr(_this_thread, "work", None)
    if work is not None:
        work.connections.append(connection)


class _Work(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._loop = running_loop()
        self._done: asyncio.Future[T] = self._loop.create_future()
        self.connections: list[sqlite3.Connection] = []
        self.is_stopped = False

    def begin(self) -> "asyncio.Future[T]":
        start(threading.Thread(target=self._run, name="async_history worker"))
        return self._done

    def stop(self) -> None:
        self.is_stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        if not self._done.done():
            for connection in self.connections:
                with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                    connection.interrupt()
            self._loop.call_later(INTERRUPT_PAUSE_S, self._interrupt)

    def _run(self) -> None:
        _this_thread.work = self
        serve(self._loop)
        try:
            with using_sqlite():
                result = self._function()
        except BaseException as error:
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, function: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, outcome)

    def _succeed(self, result: T) -> None:
        if not self._done.done():
            self._done.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)
