"""A connection to a history's file for programs that read mem0's `db.connection`."""

import sqlite3
import threading
from pathlib import Path

from async_history._sqlite.connecting.errors import connect, typed_errors
from async_history.mem0._threads.forks import forget_in_child, keep_inherited


class ReadConnection:
    """A read-only connection, opened on first use.

    Args:
        name: the store's name; see `Backend.store_name`.
    """

    def __init__(self, name: tuple[str, ...] | None) -> None:
        self._path = Path(name[1]) if name is not None and name[0] == "file" else None
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        forget_in_child(self)

    def get(self) -> sqlite3.Connection | None:
        """Return the connection; None if the store is not an existing file, or is closed."""
        with self._lock:
            path = self._path
            if path is None or self._is_closed:
                return None
            if self._connection is None and path.exists():
                with typed_errors(str(path)):
                    self._connection = connect(path, "ro")
            return self._connection

    def forget(self) -> None:
        """Drop the connection in a forked child, which opens its own."""
        self._lock = threading.Lock()
        if self._connection is not None:
            keep_inherited(self._connection)
            self._connection = None

    def close(self) -> None:
        """Close the connection; `get` returns None from now on. Idempotent."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    __del__ = close
