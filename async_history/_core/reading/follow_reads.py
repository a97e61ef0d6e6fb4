"""A backend's reads for followers: the records committed after a position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from async_history._core.records.records import HistoryRecord

P = TypeVar("P")
"""A position between two records, in a backend's form; its text is a cursor."""


PAGE_RECORDS = 2_000
"""Most records of a read, a few batches. In a busy event loop a read waits for several iterations,
and with pages of 500 a follower fell behind 1,000 writing tasks.
"""


@dataclass(frozen=True, slots=True)
class FollowRead(Generic[P]):
    """The records after a position, and by their index the position after each.

    `end` is after everything that was read, None if the history was always empty. `is_last` says
    that nothing more was committed at the time of the read.
    """

    records: Sequence[HistoryRecord]
    position_after: Callable[[int], P | None]
    end: P | None
    is_last: bool
    _by_memory: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)

    def indexes_of(self, memory_id: str | None) -> Sequence[int]:
        """Return the indexes of a memory's records; None means all memories."""
        if memory_id is None:
            return range(len(self.records))
        if not self._by_memory:
            for index, record in enumerate(self.records):
                self._by_memory.setdefault(record.memory_id, []).append(index)
        return self._by_memory.get(memory_id, ())


class FollowReader(Protocol[P]):
    """Reads what was committed after a position between two records."""

    def position(self, cursor: str | None) -> P | None:
        """Return the position of a cursor; None is the beginning.

        Raises:
            InvalidInput: it is not a cursor of this backend, or this history cannot be followed.
        """

    async def page(self, after: P | None, memory_id: str | None, limit: int) -> FollowRead[P]:
        """Return up to `limit` records after a position, of one memory or of all.

        Raises:
            CursorGone: the position can no longer be found.
        """

    async def end(self) -> P | None:
        """Return the position after all committed records; None if there are none."""

    async def mark(self) -> object:
        """Return a value that changes when a record is committed.

        Followers are woken when it changes. It may also change without a commit. It takes constant
        work.
        """
