"""A bounded FIFO of pending calls, with backpressure.

A call is queued at once, even if its submission is not ready yet, so calls are committed in the
order in which they were made, whatever their size.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic

from async_history._core.wording import counted
from async_history._core.writing.pending_calls import Operation, PendingCall, S
from async_history.errors import Overloaded

QUEUE_RECORDS = 20_000
"""Default bound of the queue in records: a fifth of a second's work, and twice 10,000 tasks."""
QUEUE_BYTES = 64 * 1024 * 1024
"""Default bound of the queue in bytes of memory, as submissions estimate it."""
_ADMIT_AFTER_S: Final = 0.1
"""Seconds after which the calls that wait for a reserved one are admitted: the stack of its caller
may be too short to do it."""


class BoundedQueue(Generic[S]):
    """Calls in order: admitted ones, within the bound in records and bytes, and waiting ones.

    A call larger than the bound is admitted when no other call is.

    Args:
        records, size_bytes: the bound.
        timeout_s: seconds for which a call may wait for space before it raises `Overloaded`.
        on_admitted: called when a call is admitted to an empty queue, or waits for space in one.
        on_withdrawn: called when an admitted call is withdrawn.
    """

    def __init__(
        self,
        *,
        records: int,
        size_bytes: int,
        timeout_s: float | None,
        on_admitted: Callable[[], None],
        on_withdrawn: Callable[[], None],
    ) -> None:
        self.records = 0
        self.size_bytes = 0
        self.overloaded = 0
        self._most_records = records
        self._most_bytes = size_bytes
        self._timeout_s = timeout_s
        self._on_admitted = on_admitted
        self._on_withdrawn = on_withdrawn
        self._loop = asyncio.get_running_loop()
        # Dictionaries, because a call in the middle must be removable at once. From an ordered one
        # the first of many is removed in constant time; from the other they are removed together.
        self._in: dict[PendingCall[S], None] = {}
        self._waiting: OrderedDict[PendingCall[S], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._in)

    @property
    def waiting(self) -> int:
        """The number of callers that wait for space."""
        return len(self._waiting)

    @property
    def first(self) -> PendingCall[S] | None:
        """The first call."""
        return next(iter(self._in), None)

    def enter(self, submission: S | None, operation: Operation | None) -> PendingCall[S]:
        """Queue a new call: admit it, or let it wait after those already waiting."""
        call: PendingCall[S] = PendingCall(loop=self._loop)
        call.queue = self
        call.submission = submission
        call.operation = operation
        call.timer = call.resume = None
        call.has_callbacks = False
        call.since = monotonic()
        if submission is None:
            call.count = call.size = count = size = 0
        else:
            call.count = count = submission.record_count
            call.size = size = submission.size_bytes
        if self._waiting or (  # inlined `_has_room` and `_admit`, for speed
            self._in
            and (
                self.records + count > self._most_records
                or self.size_bytes + size > self._most_bytes
            )
        ):
            self._start_timer(call)
            if not self._in:
                self._on_admitted()
            self._waiting[call] = None
            return call
        if not self._in:
            self._on_admitted()  # first: if it raises, nothing has changed
        self._in[call] = None
        self.records += count
        self.size_bytes += size
        return call

    def reserve(self) -> PendingCall[S]:
        """Return a new call whose submission is not ready yet, which must be filled or cancelled.

        It keeps its position: later calls wait for it, even if there is space.
        """
        call: PendingCall[S] = PendingCall(loop=self._loop)
        call.queue = self
        call.submission = call.operation = call.resume = None
        call.has_callbacks = False
        call.since = monotonic()
        call.count = call.size = 0
        call.timer = self._loop.call_later(_ADMIT_AFTER_S, self._admit_after_reserved, call)
        self._waiting[call] = None
        return call

    def _admit_after_reserved(self, call: PendingCall[S]) -> None:
        if call in self._waiting and call.is_reserved:
            call.timer = self._loop.call_later(_ADMIT_AFTER_S, self._admit_after_reserved, call)
        else:
            call.timer = None
            self.admit_waiting()

    def fill(self, call: PendingCall[S], submission: S) -> None:
        """Give a reserved call its submission: admit it, or let it wait for space from now on."""
        call.submission = submission
        call.count, call.size = submission.record_count, submission.size_bytes
        self.admit_waiting()
        if call in self._waiting:
            call.stop_waiting()
            self._start_timer(call)

    def _start_timer(self, call: PendingCall[S]) -> None:
        if self._timeout_s is not None:
            call.timer = self._loop.call_later(self._timeout_s, self._overload, call)

    def withdraw(self, call: PendingCall[S]) -> None:
        """Remove a call, unless it is in a batch and has left the queue."""
        if call in self._in:
            self._on_withdrawn()  # first: if it raises, nothing has changed
            self._remove(call)
        else:
            self._waiting.pop(call, None)
        self.admit_waiting()
        call.stop_waiting()  # last: if admitting raises, the timer of a reserved call does it

    def take(self, batch: list[PendingCall[S]], records: int, size_bytes: int) -> None:
        """Move the next batch to a list: calls in order up to these bounds, or one larger call
        alone.

        An operation is a separate batch. Cancelled calls are omitted. Whatever interrupts this,
        each call is in the list or still in the queue, or in both.
        """
        if self.records <= records and self.size_bytes <= size_bytes:
            # Taking all at once needs a quarter of the time, and the database waits for it.
            calls = [call for call in self._in if not call.done()]
            if not [call for call in calls if call.operation is not None]:
                batch += calls
                self._remove_all()
                if self._waiting:
                    self.admit_waiting()
                return
        taken: list[PendingCall[S]] = []
        for call in self._in:
            if not call.done():
                records -= call.count
                size_bytes -= call.size
                is_alone = call.operation is not None
                if batch and (is_alone or records < 0 or size_bytes < 0):
                    break
                batch.append(call)
            taken.append(call)
            if batch and batch[-1].operation is not None:
                break
        for call in taken:
            self._remove(call)
        self.admit_waiting()

    def next_submissions(self, records: int, size_bytes: int) -> list[S]:
        """Return the submissions that `take` would take now, within the same bounds."""
        if self.records <= records and self.size_bytes <= size_bytes:
            all_of_them = [s for call in self._in if (s := call.submission) is not None]
            if len(all_of_them) == len(self._in):
                return all_of_them
        found: list[S] = []
        for call in self._in:
            records -= call.count
            size_bytes -= call.size
            if call.submission is None or records < 0 or size_bytes < 0:
                break
            found.append(call.submission)
        return found

    def refuse_waiting(self, error: Callable[[], Exception]) -> None:
        """Remove all calls that wait for space, each refused with a new error.

        Reserved calls are cancelled. Calls that waited only for them, and fit, are admitted.
        Whatever interrupts this, each call without an outcome is still in the queue.
        """
        for call in [call for call in self._waiting if call.is_reserved]:
            call.cancel()
        for call in self._waiting:
            call.refuse(error())
        self._waiting.clear()

    def refuse_all(self, error: Callable[[], Exception]) -> None:
        """Remove all calls, each refused with a new error, as `refuse_waiting` does."""
        self.refuse_waiting(error)
        for call in self._in:
            call.refuse(error())
        self._remove_all()

    def _has_room(self, call: PendingCall[S]) -> bool:
        return not self._in or (
            self.records + call.count <= self._most_records
            and self.size_bytes + call.size <= self._most_bytes
        )

    def _admit(self, call: PendingCall[S]) -> None:
        if not self._in:
            self._on_admitted()  # first: if it raises, nothing has changed
        if call.timer is not None:
            call.stop_waiting()
        self._in[call] = None
        self.records += call.count
        self.size_bytes += call.size

    def admit_waiting(self) -> int:
        """Admit the calls that wait, as long as there is space; return how many calls are in."""
        while self._waiting:
            call = next(iter(self._waiting))
            if call.is_reserved or not self._has_room(call):
                break
            self._admit(call)
            del self._waiting[call]
        return len(self._in)

    def _remove_all(self) -> None:
        self._in.clear()
        self.records = self.size_bytes = 0

    def _remove(self, call: PendingCall[S]) -> None:
        del self._in[call]
        self.records -= call.count
        self.size_bytes -= call.size

    def _overload(self, call: PendingCall[S]) -> None:
        if call not in self._waiting:
            return
        if next(iter(self._waiting)).is_reserved:
            self._start_timer(call)  # it waits for a reserved call: the queue may have space
            return
        call.refuse(
            Overloaded(
                f"the queue was full ({counted(self.records, 'record')}, {self.size_bytes:,} "
                f"bytes) for {self._timeout_s} s; not written. Send less, or raise queue_records, "
                "queue_bytes or queue_timeout_s"
            )
        )
        del self._waiting[call]  # last: if refusing raises, it still waits
        self.overloaded += 1
        self.admit_waiting()
