"""Forking: the connections that a child inherits are closed before SQLite is used there.

SQLite keeps a list of the files that its process has open and locked. A fork copies the list but
not the locks. A child that opens such a file takes no lock, and writes while another process
removes the log. A fork also copies SQLite's mutexes: one that another thread holds stays locked.
(https://www.sqlite.org/howtocorrupt.html, section 2.6)

So our threads pause between two uses of SQLite while a process forks. The child closes the
inherited connections of this library, and SQLite removes those files from its list. The parent's
locks and log are not affected, because the parent still has the file open. A file that can't be
closed (opened by other code in the parent, or in a transaction) is refused by name in the child.
A thread of the child, which may block for ever, first tests once that SQLite responds and then
closes what was inherited.
"""

import contextlib
import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Final

from async_history._core.concurrency.threads import start
from async_history._sqlite.connecting.descriptors import Identity, identity_of, open_files
from async_history._sqlite.connecting.fork_pauses import ForkPauses
from async_history.errors import StorageError, WrongLoop

RESPONSE_S = 10.0
"""Seconds that a forked child waits for SQLite's first response, which takes under 1 ms."""


class Connection(sqlite3.Connection):
    """A connection of this library, which this module closes in forked children.

    Attributes:
        is_lent: whether the user has it and may use it at any time, also during a fork.
    """

    is_lent = False


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_inherited: "_Inherited | None" = None
_pauses: Final = ForkPauses()
using_sqlite: Final = _pauses.using_sqlite
not_using_sqlite: Final = _pauses.not_using_sqlite
pause_at_fork: Final = _pauses.pause_at_fork


def register(connection: Connection) -> None:
    """Register a connection, to be closed in forked children."""
    _connections.add(connection)


def require_usable(path: Path | None) -> None:
    """Check that this process may use SQLite and this file. It may block for seconds.

    Raises:
        WrongLoop: this is a forked child, and it inherited something that can't be closed.
    """
    if _inherited is not None:
        _inherited.require_response()
        if path is not None:
            _inherited.require_closed(path)


class _Inherited:
    """The connections and open files that this forked child has inherited.

    Args:
        own: connections that were idle.
        lent: connections that the user may have been using.
    """

    def __init__(self, own: list[Connection], lent: list[Connection]) -> None:
        self._own = own
        self._lent = lent
        self._lock = threading.Lock()
        self._is_started = False
        self._responded = threading.Event()
        self._own_are_closed = threading.Event()
        self._lent_are_closed = threading.Event()
        if own:
            with contextlib.suppress(StorageError):  # no thread: tried again at first use
                self._test_once()
        self._open = open_files()

    def require_response(self) -> None:
        self._test_once()
        if not self._responded.is_set():
            raise WrongLoop(
                "this process was forked while another thread was using SQLite, which would block "
                "here for ever; fork before anything uses SQLite, or start processes with "
                "multiprocessing's 'spawn'"
            )

    def _test_once(self) -> None:
        """Start the thread that tests SQLite and closes what was inherited; wait the first time."""
        with self._lock:
            if not self._is_started:
                start(
                    threading.Thread(
                        target=self._test_and_close, name="async_history fork", daemon=True
                    )
                )
                self._is_started = True
                self._own_are_closed.wait(RESPONSE_S)

    def _test_and_close(self) -> None:
        """Use each of SQLite's global mutexes, then close the own and the lent connections."""
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.execute("SELECT randomblob(8)").fetchall()
            uri = f"{Path(__file__).as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                connection.execute("PRAGMA user_version").fetchall()
        self._responded.set()
        _close(self._own)
        self._own_are_closed.set()
        _close(self._lent)
        self._lent_are_closed.set()

    def require_closed(self, path: Path) -> None:
        try:
            file = identity_of(os.stat(path))
        except OSError:
            return  # the file does not exist
        if self._left(file):
            self._lent_are_closed.wait(RESPONSE_S)
        self._open[file] = self._left(file)
        if self._open[file]:
            raise WrongLoop(
                f"{path} was open when this process was forked, through a connection that is not "
                "async_history's (plain sqlite3, mem0) or that was busy: SQLite would not lock the "
                "file in this process. Close it before the fork, or start this process with "
                "multiprocessing's 'spawn'"
            )

    def _left(self, file: Identity) -> list[int]:
        """Return the inherited descriptors of a file that are still open."""
        return [each for each in self._open.get(file, ()) if _is_of(each, file)]


def _is_of(descriptor: int, file: Identity) -> bool:
    """Return whether a descriptor is open and refers to this file."""
    try:
        return identity_of(os.fstat(descriptor)) == file
    except OSError:
        return False


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):  # it was already closed
            _wait_until_idle(connection)
            # Closing would roll back the parent's transaction in memory shared with it.
            if not connection.in_transaction:
                connection.close()


def _wait_until_idle(connection: Connection) -> None:
    """Wait, without the GIL, until no statement runs: one of the parent's never ends here.

    In new versions of SQLite, `in_transaction` waits for it too, but with the GIL, so that the
    whole process would hang.

    Raises:
        sqlite3.ProgrammingError: the connection is closed.
    """
    connection.cursor().close()  # it must be open: pysqlite3 would crash
    name = "blobopen" if hasattr(connection, "blobopen") else "open_blob"  # pysqlite3's
    with contextlib.suppress(sqlite3.Error):
        getattr(connection, name)("no such table", "", 0)


def _after_fork_in_child() -> None:
    global _inherited
    is_quiet = _pauses.after_fork_in_child()
    connections = list(_connections)
    _connections.clear()
    own = [connection for connection in connections if is_quiet and not connection.is_lent]
    _inherited = _Inherited(own, [connection for connection in connections if connection.is_lent])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pauses.before_fork,
        after_in_parent=_pauses.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
