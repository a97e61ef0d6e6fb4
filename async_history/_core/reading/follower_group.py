"""The shared work of one manager's followers: their reads, and one poll for commits of others."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol
from weakref import WeakSet

from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.reading.follow_reads import PAGE_RECORDS, FollowRead, FollowReader, P
from async_history.errors import HistoryError


class SharedRead(Generic[P]):
    """A read in a separate task, which any number of followers can await.

    If a follower is cancelled, the read continues for the others and for its own next attempt:
    cancelling a SELECT would cost its connection.
    """

    def __init__(self, read: Awaitable[FollowRead[P]], begun_after_commits: int) -> None:
        self.begun_after_commits = begun_after_commits
        self.is_done = False
        self._page: FollowRead[P] | None = None
        self._error: Exception | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._run(read))

    async def _run(self, read: Awaitable[FollowRead[P]]) -> None:
        try:
            self._page = await read
        except Exception as error:  # raised by `page`, to all waiting followers
            self._error = error
        finally:
            self.is_done = True
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def page(self) -> FollowRead[P] | None:
        """Return the page; None if the read was cancelled, for example at the end of the loop.

        Raises the error of the read.
        """
        if not self.is_done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        if self._error is None:
            return self._page
        if isinstance(self._error, HistoryError):
            # A copy for each follower: a traceback grows each time its error is raised.
            raise copy.copy(self._error).with_traceback(self._error.__traceback__) from (
                self._error.__cause__
            )
        raise self._error


_UNKNOWN: Final = object()


class Lagging(Protocol):
    """A follower that reports its lag."""

    @property
    def lag_s(self) -> float:
        """Seconds since it last had returned everything; 0 if it has."""


class FollowerGroup(Generic[P]):
    """The shared work of one manager's followers: their reads, and one poll for commits of others.

    Followers at the same position share a running read, unless something was committed since it
    began. The poll reads a mark that changes with each commit, and wakes all followers when it
    changes. It runs while a follower waits, at the shortest interval of the waiting followers.

    Args:
        signal: notified at each commit of the manager.
        reader: returns the reader; raises if the manager cannot be used: closed, another loop, a
            forked process.
    """

    def __init__(self, signal: CommitSignal, reader: Callable[[], FollowReader[P]]) -> None:
        self.signal = signal
        self.reader = reader
        self._reads: dict[tuple[P | None, str | None], SharedRead[P]] = {}
        self._waiting: dict[asyncio.Event, float] = {}
        self._followers: WeakSet[Lagging] = WeakSet()
        self._mark: object = _UNKNOWN
        self._timer: asyncio.TimerHandle | None = None
        self._poll: asyncio.Task[None] | None = None

    def read(self, after: P | None, memory_id: str | None) -> SharedRead[P]:
        """Read a page after a position, shared with followers that read the same page."""
        key = (after, memory_id)
        read = self._reads.get(key)
        if read is None or read.is_done or read.begun_after_commits != self.signal.commits:
            self._reads = {key: read for key, read in self._reads.items() if not read.is_done}
            page = self.reader().page(after, memory_id, PAGE_RECORDS)
            read = self._reads[key] = SharedRead(page, self.signal.commits)
        return read

    async def wait(self, woken: asyncio.Event, poll_interval_s: float) -> None:
        """Wait for a commit of this manager, and poll for commits of others.

        `woken` was cleared before the read that found nothing more. A commit after the begin of
        that read either notifies or changes the mark.
        """
        self._waiting[woken] = poll_interval_s
        self._poll_within(poll_interval_s)
        try:
            await woken.wait()
        finally:
            del self._waiting[woken]

    @property
    def waiting(self) -> int:
        """The number of followers that wait for the next commit."""
        return len(self._waiting)

    def add(self, follower: Lagging) -> None:
        """Count a follower as long as it exists."""
        self._followers.add(follower)

    def lags_s(self) -> list[float]:
        """Return how far behind each follower is."""
        return [follower.lag_s for follower in self._followers]

    def close(self) -> None:
        """Wake all followers and stop polling."""
        if self._timer is not None:
            self._timer.cancel()
        self.signal.notify()

    def _poll_within(self, interval_s: float) -> None:
        if self._poll is not None:
            return  # its end starts the next one
        loop = asyncio.get_running_loop()
        due = loop.time() + interval_s
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._begin_poll)

    def _begin_poll(self) -> None:
        self._timer = None
        if self._waiting:
            self._poll = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            mark = await self.reader().mark()
        except Exception:
            mark = _UNKNOWN  # the followers are woken, and their next read raises the error
        finally:
            self._poll = None
        if mark is _UNKNOWN or mark != self._mark:
            self._mark = mark
            self.signal.notify()
        elif self._waiting:
            self._poll_within(min(self._waiting.values()))
