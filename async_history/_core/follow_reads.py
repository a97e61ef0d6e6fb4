"""What a backend gives to followers: the records that were committed after a place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from async_history._core.records import HistoryRecord

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
