"""The exit of the interpreter although a manager was never closed.

A connection's thread keeps the interpreter alive before any `atexit` function runs. A daemon thread
does not. It waits for the main thread to end, then for each thread whose event loop has opened a
connection, and stops the connections' threads. A running loop is never cut off: a server in a
separate thread outlives the main thread, and `atexit` functions may open a history.
"""

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from async_history._core.concurrency.threads import start

_STOP_AGAIN_S: Final = 0.01
"""Seconds before a thread that still runs is stopped again: an interruption may be too early."""


class Stoppable(Protocol):
    """An open connection with its own thread."""

    @property
    def has_thread(self) -> bool: ...

    @property
    def stop(self) -> Callable[[], object]: ...


@dataclass(frozen=True, slots=True)
class _Owner:
    """The event loop that opened a connection, and the thread that it ran on."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def wait(self) -> None:
        """Wait until the thread has ended; not for the main one, which is alive during atexit."""
        if self.thread is not threading.main_thread():
            self.thread.join()

    @property
    def may_call(self) -> bool:
        return self.loop.is_running()


_open: "weakref.WeakKeyDictionary[Stoppable, _Owner]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def stop_at_exit(connection: Stoppable, loop: asyncio.AbstractEventLoop) -> None:
    """Stop this connection's thread when the program ends, if it still exists then.

    To be called on the thread that creates the connection, where its loop runs. A thread that was
    started by a daemon thread is not stopped: it is a daemon too, and does not keep the interpreter
    alive.
    """
    global _watcher
    if threading.current_thread().daemon:
        return
    with _lock:
        _open[connection] = _Owner(loop, threading.current_thread())
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="async_history exit", daemon=True)
            start(_watcher)


def _watch() -> None:
    global _watcher
    threading.main_thread().join()
    while True:
        with _lock:
            owners = [
                (connection, owner)
                for connection, owner in _open.items()
                if connection.has_thread or owner.may_call
            ]
            if not owners:
                _watcher = None
                return
        for _, owner in owners:
            owner.wait()
        for connection, owner in owners:
            if not owner.may_call:
                connection.stop()
        del owners
        time.sleep(_STOP_AGAIN_S)


def _enter_child() -> None:
    """Forget the parent's connections, its thread, and a lock that may never be released."""
    global _lock, _watcher
    _lock = threading.Lock()
    _watcher = None
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)
