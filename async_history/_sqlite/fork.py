"""What a forked child inherits of SQLite, dropped before SQLite is used there.

SQLite notes for its process which files are open and locked. A fork copies the notes but not the
locks: a child that opens such a file takes none, and writes while the parent, or anybody, takes the
log away. A fork also copies SQLite's mutexes as they are: one that another thread holds stays held.
(https://www.sqlite.org/howtocorrupt.html, section 2.6)

So our threads pause between two uses of SQLite while a process forks. The child closes what it has
inherited of ours, whereupon SQLite forgets those files; the parent's locks are not touched by that,
and its log stays, because the parent holds the file. What can't be closed is refused, by name:
files that others have opened in the parent, or that are in a transaction. Whether SQLite answers at
all is asked once, and what was inherited is closed after that, on a thread that may wait for ever.
"""

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from async_history._core.threads import start
from async_history._sqlite.descriptors import Identity, identity_of, open_files
from async_history.errors import StorageError, WrongLoop

_PAUSE_S: Final = 5.0
"""How long a fork waits for our threads. Past it the child may not use what they were using."""
ANSWER_S = 10.0
"""How long a forked child waits for SQLite's first answer, which takes less than a millisecond."""


class Connection(sqlite3.Connection):
    """A connection of ours, known to this module.

    Attributes:
        is_lent: used by others than us, at any time: also while the process forks.
    """

    is_lent = False


class _Gate:
    """Who is using SQLite on a thread that is not a connection's own, and who is forking."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.users = 0
        self.forks = 0

    def enter(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.forks)
            self.users += 1

    def leave(self) -> None:
        with self.changed:
            self.users -= 1
            self.changed.notify_all()


class _ThisThread(threading.local):
    """What this thread is doing."""

    def __init__(self) -> None:
        self.depth = 0
        self.pauses: list[_Pause] = []
        self.is_quiet = False


_gate = _Gate()
_this_thread = _ThisThread()
_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_own_threads: "dict[threading.Thread, Callable[[Callable[[], None]], None]]" = {}
_inherited: "_Inherited | None" = None


@contextlib.contextmanager
def using_sqlite() -> Iterator[None]:
    """Use SQLite on a thread that is not a connection's own; a fork waits for the end."""
    if _this_thread.depth:
        yield
        return
    gate = _gate
    gate.enter()
    _this_thread.depth = 1
    try:
        yield
    finally:
        _this_thread.depth = 0
        gate.leave()


@contextlib.contextmanager
def not_using_sqlite() -> Iterator[None]:
    """Let a process fork meanwhile, within `using_sqlite` or outside."""
    if not _this_thread.depth:
        yield
        return
    gate = _gate
    _this_thread.depth = 0
    gate.leave()
    try:
        yield
    finally:
        gate.enter()
        _this_thread.depth = 1


def pause_at_fork(put: Callable[[Callable[[], None]], None]) -> None:
    """Let this thread, a connection's own, pause while the process forks.

    `put` hands it a function, which it calls after what it was handed before.
    """
    for thread in list(_own_threads):
        if not thread.is_alive():
            _own_threads.pop(thread, None)
    _own_threads[threading.current_thread()] = put


def note(connection: Connection) -> None:
    """Note a connection, to be closed in forked children."""
    _connections.add(connection)


def require_usable(path: Path | None) -> None:
    """Check that SQLite, and this file, may be used in this process. It may block for a while.

    Raises:
        WrongLoop: it is a forked child, which has inherited what can't be dropped.
    """
    if _inherited is not None:
        _inherited.require_answer()
        if path is not None:
            _inherited.require_dropped(path)


class _Pause:
    """A thread's pause while the process forks."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._over = threading.Event()

    def __call__(self) -> None:
        self._begun.set()
        self._over.wait()

    def has_begun(self, thread: threading.Thread, deadline: float) -> bool:
        """Wait until the thread has nothing under way, or has ended."""
        while not self._begun.wait(0.01):
            if not thread.is_alive():
                return True
            if monotonic() > deadline:
                return False
        return True

    def end(self) -> None:
        self._over.set()


class _Inherited:
    """What this forked child has inherited, to be dropped.

    Args:
        own: connections that are in the middle of nothing.
        lent: connections that others may be using.
    """

    def __init__(self, own: list[Connection], lent: list[Connection]) -> None:
        self._own = own
        self._lent = lent
        self._asking = threading.Lock()
        self._is_asked = False
        self._answered = threading.Event()
        self._own_is_closed = threading.Event()
        self._dropped = threading.Event()
        if own:
            with contextlib.suppress(StorageError):  # no thread: then as it is first used
                self._ask_once()
        self._open = open_files()

    def require_answer(self) -> None:
        self._ask_once()
        if not self._answered.is_set():
            raise WrongLoop(
                "this process was forked while another thread was using SQLite, which would wait "
                "here for ever; fork before anything uses SQLite, or start processes with "
                "multiprocessing's 'spawn'"
            )

    def _ask_once(self) -> None:
        """Ask whether SQLite answers, and close what was inherited; wait for it the first time."""
        with self._asking:
            if not self._is_asked:
                start(threading.Thread(target=self._ask, name="async_history fork", daemon=True))
                self._is_asked = True
                self._own_is_closed.wait(ANSWER_S)

    def _ask(self) -> None:
        """Use every mutex of SQLite's that is not a file's own, then those of what was lent."""
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.execute("SELECT randomblob(8)").fetchall()
            uri = f"{Path(__file__).as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                connection.execute("PRAGMA user_version").fetchall()
        self._answered.set()
        _close(self._own)
        self._own_is_closed.set()
        _close(self._lent)
        self._dropped.set()

    def require_dropped(self, path: Path) -> None:
        try:
            file = identity_of(os.stat(path))
        except OSError:
            return  # there is no such file
        if self._left(file):
            self._dropped.wait(ANSWER_S)
        self._open[file] = self._left(file)
        if self._open[file]:
            raise WrongLoop(
                f"{path} was open when this process was forked, through a connection that is not "
                "async_history's (plain sqlite3, mem0) or in the middle of something: SQLite would "
                "take none of its locks here. Close it before the fork, or start this process with "
                "multiprocessing's 'spawn'"
            )

    def _left(self, file: Identity) -> list[int]:
        """Return the inherited descriptors of a file that are still open."""
        return [each for each in self._open.get(file, ()) if _is_of(each, file)]


def _is_of(descriptor: int, file: Identity) -> bool:
    """Return whether a descriptor is open, and of a file."""
    try:
        return identity_of(os.fstat(descriptor)) == file
    except OSError:
        return False


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):  # closed it was already
            # Closing undoes a transaction, the parent's, in memory that it shares with us.
            if not connection.in_transaction:
                connection.close()


def _before_fork() -> None:
    gate = _gate
    deadline = monotonic() + _PAUSE_S
    with gate.changed:
        gate.forks += 1
        others = _this_thread.depth  # ourselves, forking from within
        is_quiet = gate.changed.wait_for(lambda: gate.users <= others, _PAUSE_S) and not others
    pauses: list[_Pause] = []
    begun = []
    for thread, put in list(_own_threads.items()):
        pause = _Pause()
        put(pause)
        pauses.append(pause)
        begun.append((pause, thread))
    _this_thread.is_quiet = (
        all(pause.has_begun(thread, deadline) for pause, thread in begun) and is_quiet
    )
    _this_thread.pauses = pauses


def _after_fork_in_parent() -> None:
    gate = _gate
    for pause in _this_thread.pauses:
        pause.end()
    _this_thread.pauses = []
    with gate.changed:
        gate.forks -= 1
        gate.changed.notify_all()


def _after_fork_in_child() -> None:
    global _gate, _inherited
    is_quiet, _this_thread.is_quiet = _this_thread.is_quiet, False
    _this_thread.pauses = []
    _this_thread.depth = 0
    connections = list(_connections)
    _gate = _Gate()
    _connections.clear()
    _own_threads.clear()
    own = [connection for connection in connections if is_quiet and not connection.is_lent]
    _inherited = _Inherited(own, [connection for connection in connections if connection.is_lent])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
