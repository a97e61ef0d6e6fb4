"""Pauses of the threads that use SQLite, while their process forks."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

WAIT_S: Final = 5.0
"""Seconds that a fork waits for our threads. After that the child may not use their files."""
LONGEST_PAUSE_S: Final = 30.0
"""Seconds after which a thread continues although the end of a fork was not reported: otherwise the
history, and the program's exit, would wait for ever."""


class ForkPauses:
    """Makes threads pause between two uses of SQLite while the process forks.

    A fork is reported by `before_fork`, and on the same thread by `after_fork_in_parent` or
    `after_fork_in_child`.

    Args:
        wait_s: seconds that `before_fork` waits for the threads.
        longest_pause_s: seconds after which a thread continues in any case.
    """

    def __init__(self, *, wait_s: float = WAIT_S, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        self._wait_s = wait_s
        self._longest_pause_s = longest_pause_s
        self._gate = _Gate(longest_pause_s)
        self._this_thread = _ThisThread()
        self._own_threads: dict[threading.Thread, Callable[[Callable[[], None]], None]] = {}

    @contextlib.contextmanager
    def using_sqlite(self) -> Iterator[None]:
        """Use SQLite on a thread that is not a connection's own; a fork waits for the body."""
        this_thread = self._this_thread
        if this_thread.depth:
            yield
            return
        gate = self._gate
        gate.enter()
        this_thread.depth = 1
        try:
            yield
        finally:
            this_thread.depth = 0
            gate.leave()

    @contextlib.contextmanager
    def not_using_sqlite(self) -> Iterator[None]:
        """Allow forks during the body, also within `using_sqlite`."""
        this_thread = self._this_thread
        if not this_thread.depth:
            yield
            return
        gate = self._gate
        this_thread.depth = 0
        gate.leave()
        try:
            yield
        finally:
            gate.enter()
            this_thread.depth = 1

    def pause_at_fork(self, put: Callable[[Callable[[], None]], None]) -> None:
        """Make this thread, a connection's own, pause while the process forks.

        `put` queues a function on the thread.
        """
        for thread in list(self._own_threads):
            if not thread.is_alive():
                self._own_threads.pop(thread, None)
        self._own_threads[threading.current_thread()] = put

    def before_fork(self) -> None:
        """Make all threads pause, and wait for that."""
        gate, this_thread = self._gate, self._this_thread
        deadline = monotonic() + self._wait_s
        with gate.changed:
            gate.forks += 1
            this_thread.forks = 1
            others = this_thread.depth  # this thread itself, which forks while it uses SQLite
            is_quiet = (
                gate.changed.wait_for(lambda: gate.users <= others, self._wait_s) and not others
            )
        # Set before the waits: an exception may end these (KeyboardInterrupt, or a guard against
        # blocking calls), and `after_fork_in_parent` must end the pauses all the same.
        pauses = this_thread.pauses = []
        begun = []
        for thread, put in list(self._own_threads.items()):
            pause = _Pause(self._longest_pause_s)
            pauses.append(pause)
            put(pause)
            begun.append((pause, thread))
        this_thread.is_quiet = (
            all(pause.has_begun(thread, deadline) for pause, thread in begun) and is_quiet
        )

    def after_fork_in_parent(self) -> None:
        """End the pauses."""
        gate, this_thread = self._gate, self._this_thread
        for pause in this_thread.pauses:
            pause.end()
        this_thread.pauses = []
        with gate.changed:
            gate.forks -= this_thread.forks
            this_thread.forks = 0
            gate.changed.notify_all()

    def after_fork_in_child(self) -> bool:
        """Forget the parent's threads; return whether none of them was using SQLite."""
        this_thread = self._this_thread
        is_quiet, this_thread.is_quiet = this_thread.is_quiet, False
        this_thread.pauses = []
        this_thread.depth = this_thread.forks = 0
        self._gate = _Gate(self._longest_pause_s)
        self._own_threads.clear()
        return is_quiet


class _Gate:
    """Counts of forks in progress, and of uses of SQLite outside the connections' own threads."""

    def __init__(self, longest_pause_s: float) -> None:
        self.changed = threading.Condition()
        self.users = 0
        self.forks = 0
        self._longest_pause_s = longest_pause_s

    def enter(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.forks, self._longest_pause_s)
            self.users += 1

    def leave(self) -> None:
        with self.changed:
            self.users -= 1
            self.changed.notify_all()


class _ThisThread(threading.local):
    """The state of one thread: its use of SQLite, and the pauses of its fork."""

    def __init__(self) -> None:
        self.depth = 0
        self.forks = 0
        self.pauses: list[_Pause] = []
        self.is_quiet = False


class _Pause:
    """A thread's pause while the process forks."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._begun = threading.Event()
        self._over = threading.Event()

    def __call__(self) -> None:
        self._begun.set()
        self._over.wait(self._longest_s)

    def has_begun(self, thread: threading.Thread, deadline: float) -> bool:
        """Return whether the thread is paused or has ended before the deadline, a monotonic
        time."""
        while not self._begun.wait(0.01):
            if not thread.is_alive():
                return True
            if monotonic() > deadline:
                return False
        return True

    def end(self) -> None:
        self._over.set()
