"""Locks between processes on a server: one database session's locks, for all threads."""

import contextvars
import threading
from hashlib import blake2b
from typing import Final

from async_history._core.concurrency.loop_thread import LoopThread
from async_history._core.locking.lock_connection import SessionOptions
from async_history._core.locking.lock_session import LockSession, Notify
from async_history.errors import HistoryClosed


class SessionLocks:
    """A process's locks in one schema. See `ProcessLocks`.

    Args:
        options: how it connects. It uses one connection outside the pool.
        schema: the history's schema; each schema has its own locks.
    """

    longest_wait_s: Final = 0.05
    most_locks = 1_000
    """Most locks of one process at a time. All sessions share one lock table of PostgreSQL, by
    default for 6,400 locks (`max_locks_per_transaction` times `max_connections`).
    """

    def __init__(self, options: SessionOptions, schema: str) -> None:
        self._options = options
        salt = blake2b(f"async_history turns {schema}".encode(), digest_size=8).digest()
        self._salt = int.from_bytes(salt, "little") >> 2
        self._lock = threading.Lock()
        self._session: LockSession | None = None
        self._thread: LoopThread | None = None

    def open(self) -> None:
        """Start the session's thread, which connects at the first request for a lock."""
        with self._lock:
            if self._thread is None:
                session = LockSession(self._options, self.most_locks)
                self._thread = LoopThread(session.end)
                # In an empty context: the thread would keep the caller's alive.
                contextvars.Context().run(self._thread.submit, session.serve)
                self._session = session

    def take(self, number: int) -> bool:
        """Take a lock that was granted."""
        return self._session is not None and self._session.take(self._of(number))

    def ask_for(self, number: int, notify: Notify) -> None:
        """Request a lock; `notify` is called when it is granted or has failed."""
        self._require_session().post(LockSession.ask, self._of(number), notify)

    def stop_asking(self, number: int) -> None:
        """Withdraw a request for a lock, and release the lock if it was granted but not taken."""
        if self._session is not None:
            self._session.post(LockSession.stop_asking, self._of(number))

    def is_asked_for(self, number: int) -> bool:
        """Return whether a lock has been held for `LONGEST_RUN_S`. Other processes may then be
        waiting for it; whether they are is not known.
        """
        return self._session is not None and self._session.is_held_long(self._of(number))

    def release(self, number: int) -> None:
        """Release a lock."""
        if self._session is not None:
            self._session.post(LockSession.release, self._of(number))

    def look(self) -> None:
        """Do nothing: the session itself detects that its connection is lost."""

    def is_lost(self, number: int) -> bool:
        """Return whether a lock was lost with its connection and has not been taken again."""
        return self._session is not None and self._session.is_lost(self._of(number))

    def _of(self, number: int) -> int:
        return number ^ self._salt

    def _require_session(self) -> "LockSession":
        if self._session is None:
            raise HistoryClosed("the locks of this history are not open")
        return self._session

    def reset_in_child(self) -> None:
        """Start over in a forked child."""
        self._lock = threading.Lock()
        if self._session is not None:
            _inherited.append((self._thread, self._session))  # garbage collection would close them
            self._session.close_inherited()
        self._session = self._thread = None

    def __del__(self) -> None:
        # It runs on any thread, so nothing here may wait.
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and thread.is_in_own_process:
            thread.stop()


_inherited: Final[list[object]] = []
