"""Pauses of threads while their process forks, also if a fork does not end as it should."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from async_history._sqlite.connecting.fork_pauses import ForkPauses
from tests.support.patience import LONG_S


class OwnThread:
    """A connection's own thread, which runs what is put on it."""

    def __init__(self, pauses: ForkPauses) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(pauses,), daemon=True)
        self._thread.start()
        assert self.responds_within(LONG_S)

    def _run(self, pauses: ForkPauses) -> None:
        pauses.pause_at_fork(self._calls.put)
        while (call := self._calls.get()) is not None:
            call()

    def responds_within(self, seconds: float) -> bool:
        """Return whether a function that is put on the thread now runs within some seconds."""
        has_run = threading.Event()
        self._calls.put(has_run.set)
        return has_run.wait(seconds)

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join(LONG_S)


@pytest.fixture
def pauses() -> ForkPauses:
    """Pauses that end by themselves, but much later than a test may take."""
    return ForkPauses(wait_s=LONG_S, longest_pause_s=20 * LONG_S)


@pytest.fixture
def own_thread(pauses: ForkPauses) -> Iterator[OwnThread]:
    thread = OwnThread(pauses)
    yield thread
    thread.end()


def can_use_sqlite(pauses: ForkPauses, within_s: float) -> bool:
    """Return whether another thread can use SQLite within some seconds."""

    def use() -> None:
        with pauses.using_sqlite():
            pass

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()


def test_threads_pause_until_the_fork_has_ended(pauses: ForkPauses, own_thread: OwnThread) -> None:
    pauses.before_fork()
    assert not own_thread.responds_within(0.05)
    assert not can_use_sqlite(pauses, 0.05)
    pauses.after_fork_in_parent()
    assert own_thread.responds_within(LONG_S)
    assert can_use_sqlite(pauses, LONG_S)


def test_threads_continue_if_the_end_of_a_fork_is_not_reported() -> None:
    pauses = ForkPauses(wait_s=LONG_S, longest_pause_s=0.05)
    own_thread = OwnThread(pauses)
    pauses.before_fork()
    assert own_thread.responds_within(LONG_S)
    assert can_use_sqlite(pauses, LONG_S)
    own_thread.end()


def test_threads_continue_after_an_exception_before_a_fork(
    pauses: ForkPauses, own_thread: OwnThread
) -> None:
    """As of Ctrl-C, or of a guard against blocking calls, while the fork waits for the threads."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    pauses.pause_at_fork(interrupted)
    with pytest.raises(KeyboardInterrupt):
        pauses.before_fork()
    assert not can_use_sqlite(pauses, 0.05)
    pauses.after_fork_in_parent()
    assert own_thread.responds_within(LONG_S)
    assert can_use_sqlite(pauses, LONG_S)


def test_a_thread_that_forks_while_it_uses_sqlite_does_not_wait_for_itself(
    pauses: ForkPauses,
) -> None:
    found: list[bool] = []

    def fork() -> None:
        with pauses.using_sqlite():
            pauses.before_fork()
            found.append(pauses.after_fork_in_child())

    thread = threading.Thread(target=fork, daemon=True)
    thread.start()
    thread.join(LONG_S / 2)  # less than `wait_s`
    assert found == [False]


@pytest.mark.parametrize("is_in_use", [False, True])
def test_a_child_knows_whether_sqlite_was_in_use(is_in_use: bool) -> None:
    pauses = ForkPauses(wait_s=0.05 if is_in_use else LONG_S)
    begun, may_end = threading.Event(), threading.Event()

    def use() -> None:
        with pauses.using_sqlite():
            begun.set()
            may_end.wait(LONG_S)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert begun.wait(LONG_S)
    if not is_in_use:
        may_end.set()
    pauses.before_fork()
    assert pauses.after_fork_in_child() is not is_in_use
    may_end.set()
    thread.join(LONG_S)
