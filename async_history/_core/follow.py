"""Following a history: every record committed from a point on, in order, once.

What a follower yields depends on its reads alone, each a page after a place; a wake-up that is lost
costs time, never a record. Followers share work, not places: those that stand at the same place
share a read, and one poll for all tells whether others than their own manager have committed.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, Self, TypeVar
from weakref import WeakSet

from async_history._core.query import Pairs, has_details
from async_history._core.records import HistoryRecord
from async_history._core.validation import check_count, check_seconds
from async_history._core.yielding import after_record
from async_history.errors import HistoryError, InvalidInput

POLL_INTERVAL_S = 0.25
"""How often a manager that is followed looks for what others have committed, unless told."""

P = TypeVar("P")
"""A place between two records, as a backend keeps it; as text it is a cursor."""


PAGE_RECORDS = 2_000
"""Most records of a read, a few batches: in a busy event loop a read waits for several turns, and
with pages of 500 a follower fell behind 1,000 tasks that wrote."""


@dataclass(frozen=True, slots=True)
class FollowRead(Generic[P]):
    """What a backend found after a place: records, and by their index the place after each.

    `place` is after all that was looked at, None if the history was always empty.
    `is_last` says that nothing more was committed by then.
    """

    records: Sequence[HistoryRecord]
    behind: Callable[[int], P | None]
    place: P | None
    is_last: bool
    _by_memory: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)

    def indexes_of(self, memory_id: str | None) -> Sequence[int]:
        """Return which records are of a memory, or of any."""
        if memory_id is None:
            return range(len(self.records))
        if not self._by_memory:
            for index, record in enumerate(self.records):
                self._by_memory.setdefault(record.memory_id, []).append(index)
        return self._by_memory.get(memory_id, ())


class FollowReader(Protocol[P]):
    """Tells what was committed after a place between two records."""

    def place(self, cursor: str | None) -> P | None:
        """Return a place from its text, None for the beginning.

        Raises:
            InvalidInput: it is not one of this backend's, or this history can't be followed.
        """

    async def page(self, place: P | None, memory_id: str | None, limit: int) -> FollowRead[P]:
        """Return up to `limit` records after a place, of one memory or of all.

        Raises:
            CursorGone: the place can't be told any more.
        """

    async def end(self) -> P | None:
        """Return the place after all that is committed; None where nothing is."""

    async def mark(self) -> object:
        """Return something that differs from what it was once a record is committed.

        Followers are woken when it does: it may also differ without need. It takes constant work.
        """


class CommitSignal:
    """Wakes the followers of one manager when something was committed."""

    def __init__(self) -> None:
        self._subscribers: WeakSet[asyncio.Event] = WeakSet()
        self.commits = 0

    def subscribe(self) -> asyncio.Event:
        """Return an event that is set at every commit, as long as a reference to it exists."""
        event = asyncio.Event()
        self._subscribers.add(event)
        return event

    @property
    def has_subscribers(self) -> bool:
        """Return whether there are followers."""
        return len(self._subscribers) > 0

    def notify(self) -> None:
        """Wake all subscribers."""
        self.commits += 1
        if self.has_subscribers:  # to iterate over none takes ten times as long
            for event in self._subscribers:
                event.set()


class SharedRead(Generic[P]):
    """A read in a task of its own, which any number of followers await.

    A follower that is cancelled leaves the read to the others, and to its own next attempt: a
    cancelled SELECT would cost its connection.
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
        except Exception as error:  # raised by `page`, to all who wait
            self._error = error
        finally:
            self.is_done = True
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def page(self) -> FollowRead[P] | None:
        """Return what was read; None where the read was cancelled, as an ending loop does.

        Raises what the read raised.
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
            # A copy for each: a traceback grows wherever its error is raised.
            raise copy.copy(self._error).with_traceback(self._error.__traceback__) from (
                self._error.__cause__
            )
        raise self._error


_UNKNOWN: Final = object()


class Tail(Generic[P]):
    """What the followers of one manager share: their reads, and one poll for what others commit.

    Followers that stand at one place and ask while the same read is under way share it, unless
    something was committed since it began. The poll asks for a mark, which differs once anybody
    has committed, and wakes all followers when it does; it runs while a follower waits, as often
    as the most impatient one of those asks for.

    Args:
        signal: notified at each commit of the manager.
        reader: returns what reads; raises where the manager may not be used: closed, another loop,
            a forked process.
    """

    def __init__(self, signal: CommitSignal, reader: Callable[[], FollowReader[P]]) -> None:
        self.signal = signal
        self.reader = reader
        self._reads: dict[tuple[P | None, str | None], SharedRead[P]] = {}
        self._waiting: dict[asyncio.Event, float] = {}
        self._mark: object = _UNKNOWN
        self._timer: asyncio.TimerHandle | None = None
        self._poll: asyncio.Task[None] | None = None

    def read(self, place: P | None, memory_id: str | None) -> SharedRead[P]:
        """Read a page after a place, together with who is about to read the same."""
        key = (place, memory_id)
        read = self._reads.get(key)
        if read is None or read.is_done or read.begun_after_commits != self.signal.commits:
            self._reads = {key: read for key, read in self._reads.items() if not read.is_done}
            page = self.reader().page(place, memory_id, PAGE_RECORDS)
            read = self._reads[key] = SharedRead(page, self.signal.commits)
        return read

    async def wait(self, woken: asyncio.Event, poll_interval_s: float) -> None:
        """Wait for a commit; look meanwhile whether others have committed.

        `woken` was cleared before the read that found nothing more: what is committed after that
        read began either notifies or changes the mark.
        """
        self._waiting[woken] = poll_interval_s
        self._poll_within(poll_interval_s)
        try:
            await woken.wait()
        finally:
            del self._waiting[woken]

    @property
    def waiting(self) -> int:
        """Followers that wait for the next commit."""
        return len(self._waiting)

    def close(self) -> None:
        """Wake all followers, and poll no more."""
        if self._timer is not None:
            self._timer.cancel()
        self.signal.notify()

    def _poll_within(self, interval_s: float) -> None:
        if self._poll is not None:
            return  # its end sees to the next
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
            mark = _UNKNOWN  # the followers are woken, and meet the error where it can be raised
        finally:
            self._poll = None
        if mark is _UNKNOWN or mark != self._mark:
            self._mark = mark
            self.signal.notify()
        elif self._waiting:
            self._poll_within(min(self._waiting.values()))


class Follower:
    """Records as they are committed: iterate over it, in one task. It ends only by an error.

    No connection is held while the caller thinks, and at most a page of records. After a `break`,
    a cancellation, a timeout or an error it goes on after the last record that was returned.
    """

    def __init__(
        self,
        tail: Tail[Any],
        place: Any,
        memory_id: str | None,
        owner: Pairs,
        cause: Pairs,
        poll_interval_s: float,
    ) -> None:
        self._tail = tail
        self._memory_id = memory_id
        self._owner = owner
        self._cause = cause
        self._poll_interval_s = poll_interval_s
        self._woken = tail.signal.subscribe()
        self._is_in_use = False
        self._reading: SharedRead[Any] | None = None
        self._is_at_end = False
        self._hold(_nothing_read(place), begin=place)

    def __repr__(self) -> str:
        of = "all memories" if self._memory_id is None else f"memory {self._memory_id!r}"
        of += "".join(f" {name}={value!r}" for name, value in (*self._owner, *self._cause))
        where = "the beginning" if self.cursor is None else self.cursor
        return f"<Follower of {of} after {where}>"

    @property
    def cursor(self) -> str | None:
        """Where to continue after the last returned record, in any process: `follow`'s `after`.

        None is the beginning: the history was empty.
        """
        place = self._reached
        return None if place is None else str(place)

    @property
    def _reached(self) -> Any:
        if self._next:
            return self._page.behind(self._left[self._next - 1])
        return self._begin if self._left else self._page.place

    def __aiter__(self) -> Self:
        """Begin a loop: what is left of a page that was read for an earlier one is read again."""
        if self._next < len(self._left):
            self._hold(_nothing_read(self._reached), begin=self._reached)
        return self

    async def __anext__(self) -> HistoryRecord:
        if self._next == len(self._left):
            await self._fill()
        elif self._next:
            await after_record(self._next - 1)
        record = self._page.records[self._left[self._next]]
        self._next += 1
        return record

    async def next_records(
        self, *, limit: int = PAGE_RECORDS, timeout_s: float | None = None
    ) -> list[HistoryRecord]:
        """Wait for records and return those that are there, up to `limit`, in order.

        Args:
            limit: most records to return, at least 1.
            timeout_s: seconds to wait. Past it the list is empty: time for a heartbeat. None waits
                without bound.

        Raises:
            InvalidInput: naming the argument that can't be used.
            CursorGone, HistoryClosed, WrongLoop, StorageError: as iterating.
        """
        check_count("limit", limit, least=1)
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        if self._next == len(self._left):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._fill()
            except TimeoutError:
                return []
        taken = self._left[self._next : self._next + limit]
        self._next += len(taken)
        return [self._page.records[index] for index in taken]

    async def _fill(self) -> None:
        """Wait until there are records to return."""
        if self._is_in_use:
            raise InvalidInput("another task reads from this follower; give each task its own")
        self._is_in_use = True
        try:
            while self._next == len(self._left):
                page = await self._next_page()
                if page is not None:
                    self._hold(page, begin=self._page.place)
        finally:
            self._is_in_use = False

    async def _next_page(self) -> FollowRead[Any] | None:
        self._tail.reader()
        if self._reading is None:
            if self._is_at_end and not self._woken.is_set():
                await self._tail.wait(self._woken, self._poll_interval_s)
                self._tail.reader()
            self._woken.clear()
            # At the end followers read what is new together, whichever memory each follows.
            memory_id = None if self._is_at_end else self._memory_id
            self._reading = self._tail.read(self._page.place, memory_id)
        # Cancelled here, the read goes on and is awaited again by the next attempt.
        try:
            page = await self._reading.page()
        except Exception:
            self._reading = None
            self._is_at_end = False
            raise
        self._reading = None
        return page

    def _hold(self, page: FollowRead[Any], *, begin: Any) -> None:
        self._page = page
        self._begin = begin
        self._is_at_end = page.is_last
        self._left = page.indexes_of(self._memory_id)
        if self._owner or self._cause:
            self._left = [
                index
                for index in self._left
                if has_details(page.records[index], self._owner, self._cause)
            ]
        self._next = 0


def _nothing_read(place: P | None) -> FollowRead[P]:
    return FollowRead([], lambda _: place, place, is_last=False)
