"""Lets the interpreter exit although a manager was never closed.

A connection's thread keeps the interpreter alive before any `atexit` function runs. So a daemon
thread, which does not, waits for the main thread to end and then stops those threads.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from async_history._core.threads import start

_STOP_AGAIN_S: Final = 0.01
"""Seconds before a thread that still runs is stopped again: an interruption may be too early."""


class Stoppable(Protocol):
    """An open connection with a thread of its own."""

    @property
    def has_thread(self) -> bool: ...

    @property
    def stop(self) -> Callable[[], object]: ...


_open: "weakref.WeakSet[Stoppable]" = weakref.WeakSet()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def stop_at_exit(connection: Stoppable) -> None:
    """Stop this connection's thread when the program ends, if it still exists then.

    To be called on the thread that makes the connection. A thread that a daemon thread starts is a
    daemon too, which does not keep the interpreter alive, so it is left alone.
    """
    global _watcher
    if threading.current_thread().daemon:
        return
    with _lock:
        _open.add(connection)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="async_history exit", daemon=True)
            start(_watcher)


def _watch() -> None:
    threading.main_thread().join()
    with _lock:
        left = list(_open)
    while left:
        for connection in left:
            connection.stop()
        time.sleep(_STOP_AGAIN_S)
        left = [connection for connection in left if connection.has_thread]


def _enter_child() -> None:
    """Forget the parent's connections, its thread, and a lock that may stay locked for ever."""
    global _lock, _watcher
    _lock = threading.Lock()
    _watcher = None
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)
