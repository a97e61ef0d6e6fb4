"""Measures how long commits wait for the lock of a file.

SQLite waits inside a statement and does not report it. So a batch is first written without waiting.
If the lock is held, that fails at once, and the batch is written again, with waiting. A batch that
finds the lock free costs no more.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeVar

from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.connecting.errors import LOCK_SLICE_S, is_locked

T = TypeVar("T")

_AT_ONCE: Final = "PRAGMA busy_timeout = 0"
_WAIT: Final = f"PRAGMA busy_timeout = {round(LOCK_SLICE_S * 1000)}"


class LockWaits:
    """The lock waits of batches on one connection. To be used on its thread.

    Args:
        measures: whether to measure. Not with a rollback journal: there a commit also waits for
            readers, and new readers must be kept out while it waits.

    Attributes:
        total_s: seconds from finding the lock held until the batch was written, of all batches.
    """

    def __init__(self, connection: ThreadConnection, *, measures: bool) -> None:
        self._connection = connection
        self._measures = measures
        self.total_s = 0.0

    def run(self, write: Callable[[], T], connection: sqlite3.Connection) -> T:
        """Call a function that writes in one transaction; call it again if the lock is held.

        Raises:
            sqlite3.OperationalError: it is still held. Nothing was written.
        """
        if not self._measures:
            return write()
        if self._connection.waits_for_lock:
            connection.execute(_AT_ONCE)
            self._connection.waits_for_lock = False
        try:
            return write()
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
        begun = monotonic()
        _wait(connection, self._connection)
        try:
            return write()
        finally:
            self.total_s += monotonic() - begun


async def run_waiting(
    work: Callable[[ThreadConnection], Awaitable[T]], connection: ThreadConnection
) -> T:
    """Run work on a connection whose statements wait for the lock."""
    if not connection.waits_for_lock:
        await connection.run(lambda own: _wait(own, connection))
    return await work(connection)


def _wait(connection: sqlite3.Connection, of: ThreadConnection) -> None:
    connection.execute(_WAIT)
    of.waits_for_lock = True
