"""Following a history: every record committed from a point on, in order, once.

Lives here: the walk, its cursor, and the wake-up within a process. Not here: how a backend tells
what was committed since (backends/).

What a follower yields rests on its reads alone, each a page behind a place; a wake-up that is lost
costs time, never a record.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakSet

from async_history.records import HistoryRecord

POLL_INTERVAL_S = 0.25
"""How often a follower looks for what others than its own manager committed, unless told."""

P = TypeVar("P")
"""A place between two records, as a backend keeps it; as text it is a cursor."""


PAGE_RECORDS = 2_000
"""Most records of a read, a few batches: in a busy event loop a read waits for several turns, and
with pages of 500 a follower fell behind 1,000 tasks that wrote."""


@dataclass(frozen=True, slots=True)
class FollowRead(Generic[P]):
    """What a backend found behind a place: records, and by their index the place behind each.

    `place` is behind all that was looked at, None where nothing was ever there to stand behind.
    `is_last` says that nothing more was committed by then.
    """

    records: Sequence[HistoryRecord]
    behind: Callable[[int], P | None]
    place: P | None
    is_last: bool


class Bell:
    """Wakes the followers of one manager when that has committed."""

    def __init__(self) -> None:
        self._hearers: WeakSet[asyncio.Event] = WeakSet()

    def hearer(self) -> asyncio.Event:
        """Return an event that is set at every ring, as long as somebody holds it."""
        event = asyncio.Event()
        self._hearers.add(event)
        return event

    @property
    def is_heard(self) -> bool:
        """Tell whether anybody follows."""
        return len(self._hearers) > 0

    def ring(self) -> None:
        """Wake all who hear."""
        for event in self._hearers:
            event.set()


class Following(Generic[P]):
    """Records as they are committed: iterate over it, in one task. It ends only by an error.

    No connection is held while the caller thinks, and at most a page of records. Iterating again,
    after a `break`, a cancellation or an error, goes on behind the last record that was yielded.
    """

    def __init__(
        self,
        read: Callable[[P | None], Awaitable[FollowRead[P]]],
        place: P | None,
        woken: asyncio.Event,
        poll_interval_s: float,
    ) -> None:
        self._read = read
        self._place: Callable[[], P | None] = partial(_itself, place)
        self._woken = woken
        self._poll_interval_s = poll_interval_s

    @property
    def cursor(self) -> str | None:
        """Where to continue behind the last yielded record, in any process: `follow`'s `after`.

        None is the beginning: nothing was there to stand behind.
        """
        place = self._place()
        return None if place is None else str(place)

    async def __aiter__(self) -> AsyncIterator[HistoryRecord]:
        while True:
            self._woken.clear()
            read = await self._read(self._place())
            for index, record in enumerate(read.records):
                self._place = partial(read.behind, index)
                yield record
            self._place = partial(_itself, read.place)
            if read.is_last:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_interval_s):
                        await self._woken.wait()


def _itself(place: P) -> P:
    return place
