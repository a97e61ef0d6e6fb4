"""Following a history: every record committed after a cursor, once and in order.

A follower yields only what its reads return, each a page after a position. A lost wake-up costs
time, never a record. Followers share work, but each has its own position: followers at the same
position share a read, and one poll for all detects commits of others than their own manager.
"""

import asyncio
from time import monotonic
from typing import Any, Self

from async_history._core.concurrency.yielding import after_record
from async_history._core.reading.filters import Pairs, has_owner_and_cause
from async_history._core.reading.follow_reads import PAGE_RECORDS, FollowRead, P
from async_history._core.reading.follower_group import FollowerGroup, SharedRead
from async_history._core.records.records import HistoryRecord
from async_history._core.validation import check_count, check_seconds
from async_history.errors import InvalidInput

POLL_INTERVAL_S = 0.25
"""Default interval at which a manager with followers polls for commits of others, in seconds."""


class Follower:
    """Records as they are committed. Iterate over it, in one task. It ends only with an error.

    While the caller processes records, it holds no connection and at most a page of records. After
    a `break`, a cancellation, a timeout or an error it continues after the last returned record.
    """

    def __init__(
        self,
        group: FollowerGroup[Any],
        begin: Any,
        memory_id: str | None,
        owner: Pairs,
        cause: Pairs,
        poll_interval_s: float,
    ) -> None:
        self._group = group
        self._memory_id = memory_id
        self._owner = owner
        self._cause = cause
        self._poll_interval_s = poll_interval_s
        self._woken = group.signal.subscribe()
        self._is_in_use = False
        self._reading: SharedRead[Any] | None = None
        self._is_at_end = False
        self._behind_since: float | None = monotonic()
        self._hold(_nothing_read(begin), begin=begin)
        group.add(self)

    def __repr__(self) -> str:
        of = "all memories" if self._memory_id is None else f"memory {self._memory_id!r}"
        of += "".join(f" {name}={value!r}" for name, value in (*self._owner, *self._cause))
        where = "the beginning" if self.cursor is None else self.cursor
        return f"<Follower of {of} after {where}>"

    @property
    def cursor(self) -> str | None:
        """The cursor after the last returned record, for `follow(after=)` in any process.

        None is the beginning: the history was empty.
        """
        reached = self._reached
        return None if reached is None else str(reached)

    @property
    def lag_s(self) -> float:
        """Seconds since it last had returned everything; 0 if it has.

        Records committed while the program does not read count from when this is read.
        """
        if self._behind_since is None and self._woken.is_set():
            self._behind_since = monotonic()
        return 0.0 if self._behind_since is None else monotonic() - self._behind_since

    @property
    def _reached(self) -> Any:
        if self._next:
            return self._page.position_after(self._left[self._next - 1])
        return self._begin if self._left else self._page.end

    def __aiter__(self) -> Self:
        """Begin a loop. The rest of a page that was read for an earlier loop is read again."""
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
        """Wait for records and return the available ones, up to `limit`, in order.

        Args:
            limit: most records to return, at least 1.
            timeout_s: seconds to wait; then the list is empty, for example to send a heartbeat.
                None waits without limit.

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
                    self._hold(page, begin=self._page.end)
        finally:
            self._is_in_use = False

    async def _next_page(self) -> FollowRead[Any] | None:
        self._group.reader()
        if self._reading is None:
            if self._is_at_end and not self._woken.is_set():
                self._behind_since = None
                await self._group.wait(self._woken, self._poll_interval_s)
                self._behind_since = monotonic()
                self._group.reader()
            self._woken.clear()
            # Followers at the end share the read of new records, whichever memory each follows.
            memory_id = None if self._is_at_end else self._memory_id
            self._reading = self._group.read(self._page.end, memory_id)
        # If this is cancelled, the read continues, and the next attempt awaits it.
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
                if has_owner_and_cause(page.records[index], self._owner, self._cause)
            ]
        self._next = 0


def _nothing_read(position: P | None) -> FollowRead[P]:
    return FollowRead([], lambda _: position, position, is_last=False)
