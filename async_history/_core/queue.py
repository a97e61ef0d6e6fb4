"""The bounded queue: who is in, who waits for room, in what order, and who has left.

A call gets its place at once, also where its submission is not ready yet: so the order of the calls
is that of the commits, whatever their size.

A caller has one future, its place, whether it waits for room or for its commit: moving it from the
one line to the other wakes nobody. It is done with its ack; cancelling it leaves the queue.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from async_history.errors import Overloaded

QUEUE_RECORDS = 20_000
"""Default bound of the queue in records: a fifth of a second's work, and twice 10,000 tasks."""
QUEUE_BYTES = 64 * 1024 * 1024
"""Default bound of the queue in bytes of memory, as submissions estimate it."""


class Submission(Protocol):
    """What the queue and the writer need to know: the weight, and the ids it would write."""

    @property
    def record_count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def ids(self) -> Sequence[str]: ...


S = TypeVar("S", bound=Submission)

Operation = Callable[[], Awaitable[Any]]


class PendingCall(asyncio.Future[Any], Generic[S]):
    """One caller's place and ack: for a submission, or for an operation that takes a turn alone."""

    __slots__ = ("_withdraw", "count", "operation", "since", "size", "submission", "timer")

    def __init__(
        self,
        submission: S | None,
        operation: Operation | None,
        withdraw: "Callable[[PendingCall[S]], None]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self._withdraw = withdraw
        self.submission = submission
        self.operation = operation
        self.since = loop.time()
        self.count = submission.record_count if submission is not None else 0
        self.size = submission.size_bytes if submission is not None else 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_reserved(self) -> bool:
        """Whether it has no submission yet: see `BoundedQueue.reserve`."""
        return self.submission is None and self.operation is None

    @property
    def ids(self) -> Sequence[str]:
        """The ids it would write."""
        return self.submission.ids if self.submission is not None else ()

    def ack(self, result: object) -> None:
        """Tell the caller, if it has not been told anything yet."""
        if not self.done():
            self.set_result(result)

    def refuse(self, error: Exception) -> None:
        """Tell the caller, if it has not been told anything yet."""
        self.stop_waiting()
        if not self.done():
            self.set_exception(error)

    def cancel(self, msg: Any = None) -> bool:
        """Leave the queue, wherever in line; what was taken into a batch has left already."""
        self._withdraw(self)
        return super().cancel(msg)

    def stop_waiting(self) -> None:
        """Forget the timer, and with it the cycle that would keep the submission in memory."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class BoundedQueue(Generic[S]):
    """Places in order: up to a bound in records and bytes they are in, the others wait.

    A place larger than the bound gets in alone, when nobody else is in.

    Args:
        records, size_bytes: the bound.
        timeout_s: how long a place may wait for room before its caller gets `Overloaded`.
        on_admitted: called whenever a place gets in.
    """

    def __init__(
        self,
        *,
        records: int,
        size_bytes: int,
        timeout_s: float | None,
        on_admitted: Callable[[], None],
    ) -> None:
        self.records = 0
        self.size_bytes = 0
        self._most_records = records
        self._most_bytes = size_bytes
        self._timeout_s = timeout_s
        self._on_admitted = on_admitted
        self._loop = asyncio.get_running_loop()
        # Ordered dictionaries, because a place in the middle must be able to leave at once.
        self._in: OrderedDict[PendingCall[S], None] = OrderedDict()
        self._waiting: OrderedDict[PendingCall[S], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._in)

    @property
    def waiting(self) -> int:
        """How many callers wait for room."""
        return len(self._waiting)

    @property
    def first(self) -> PendingCall[S] | None:
        """The place whose turn is next."""
        return next(iter(self._in), None)

    def enter(self, submission: S | None, operation: Operation | None) -> PendingCall[S]:
        """Return a new place that is in, or waits behind those who wait already."""
        place = PendingCall(submission, operation, self._withdraw, self._loop)
        if not self._waiting and self._has_room(place):
            self._admit(place)
            return place
        self._start_timer(place)
        self._waiting[place] = None
        return place

    def reserve(self) -> PendingCall[S]:
        """Return a new place whose submission is not ready yet, to be filled or cancelled.

        It keeps its order: those who come after it wait behind it, whatever room there is.
        """
        place = PendingCall[S](None, None, self._withdraw, self._loop)
        self._waiting[place] = None
        return place

    def fill(self, place: PendingCall[S], submission: S) -> None:
        """Give a reserved place its submission: it gets in, or waits for room from now on."""
        self._start_timer(place)
        place.submission = submission
        place.count, place.size = submission.record_count, submission.size_bytes
        self._admit_waiting()

    def _start_timer(self, place: PendingCall[S]) -> None:
        if self._timeout_s is not None:
            place.timer = self._loop.call_later(self._timeout_s, self._overload, place)

    def _withdraw(self, place: PendingCall[S]) -> None:
        place.stop_waiting()
        if place in self._in:
            self._leave(place)
        else:
            self._waiting.pop(place, None)
        self._admit_waiting()

    def take(self, records: int, size_bytes: int) -> list[PendingCall[S]]:
        """Take the next batch: places in order up to these bounds, or one that is larger alone.

        An operation is a batch of its own. Places whose callers were cancelled are left out.
        """
        if self.records <= records and self.size_bytes <= size_bytes:
            # Everyone in one go takes a quarter of the time, which the database waits for.
            everyone = [place for place in self._in if not place.done()]
            if not [place for place in everyone if place.operation is not None]:
                self._forget_all()
                self._admit_waiting()
                return everyone
        batch: list[PendingCall[S]] = []
        while self._in:
            place = next(iter(self._in))
            if not place.done():
                records -= place.count
                size_bytes -= place.size
                is_alone = place.operation is not None
                if batch and (is_alone or records < 0 or size_bytes < 0):
                    break
                batch.append(place)
            self._leave(place)
            if batch and batch[-1].operation is not None:
                break
        self._admit_waiting()
        return batch

    def clear_waiting(self) -> list[PendingCall[S]]:
        """Send away all who wait for room, and return them.

        Reserved places are cancelled, and those get in who had room and only waited behind them.
        """
        for place in [place for place in self._waiting if place.is_reserved]:
            place.cancel()
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def clear(self) -> list[PendingCall[S]]:
        """Send away everyone, and return them."""
        waiting = self.clear_waiting()
        everyone = [*self._in, *waiting]
        self._forget_all()
        return everyone

    def _has_room(self, place: PendingCall[S]) -> bool:
        return not self._in or (
            self.records + place.count <= self._most_records
            and self.size_bytes + place.size <= self._most_bytes
        )

    def _admit(self, place: PendingCall[S]) -> None:
        self._on_admitted()  # first: what it raises leaves nothing behind
        place.stop_waiting()
        self._in[place] = None
        self.records += place.count
        self.size_bytes += place.size

    def _admit_waiting(self) -> None:
        while self._waiting:
            place = next(iter(self._waiting))
            if place.is_reserved or not self._has_room(place):
                return
            self._admit(place)
            del self._waiting[place]

    def _forget_all(self) -> None:
        self._in.clear()
        self.records = self.size_bytes = 0

    def _leave(self, place: PendingCall[S]) -> None:
        del self._in[place]
        self.records -= place.count
        self.size_bytes -= place.size

    def _overload(self, place: PendingCall[S]) -> None:
        if place not in self._waiting:
            return
        if next(iter(self._waiting)).is_reserved:
            self._start_timer(place)  # it waits for its turn: the queue may have room
            return
        del self._waiting[place]
        place.refuse(
            Overloaded(
                f"the queue was full ({self.records} records, {self.size_bytes} bytes) for "
                f"{self._timeout_s} s; not written. Send less, or raise queue_records, "
                "queue_bytes or queue_timeout_s"
            )
        )
        self._admit_waiting()
