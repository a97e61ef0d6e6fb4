"""What pruning asks of a database inside the transaction of one step, and what that removed."""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from async_history._core.erase_transaction import RecordRef
from async_history._core.operations import OperationLog
from async_history._core.prune_request import PruneRequest

Edge = tuple[int, str]
"""The first of the last records of a memory that stay: its position and id."""


class Candidate(NamedTuple):
    """A record as pruning sees it. A tuple: one is made of each record of the history.

    `memory_id` can be anything: others may have stored what can't be a name. `is_old` is None
    where the record has no time of its own. `of_undated` is False if its memory has no such record:
    then nothing has to be looked up of it. `prunable_alone` is of the records of a whole memory.
    """

    position: int
    id: str
    memory_id: Any
    is_delete: bool
    is_old: bool | None
    of_undated: bool = True
    prunable_alone: bool = False

    @property
    def place(self) -> RecordRef:
        return RecordRef(self.position, self.id, self.memory_id)


def prunable_alone(asked: PruneRequest, are_old: Sequence[bool | None], index: int) -> bool:
    """Return whether a record of a whole memory goes whatever becomes of the memory.

    Args:
        are_old: each record's own `is_old`, in order.
        index: the record's index in it.
    """
    return (
        are_old[index] is True
        and len(are_old) - index > max(asked.keep_last, 1)
        and are_old[index + 1] is not None
    )


class PruneTransaction(Protocol):
    """What a database does inside a step's transaction."""

    @property
    def log(self) -> OperationLog:
        """The store's log of operations, inside this transaction."""

    async def ends(self) -> tuple[int, int] | None:
        """Return the positions of the first and the last record; None where there is none."""

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> Sequence[Candidate]:
        """Return the records after a position and up to another, in order.

        It may begin with the first one that may go, if it passes over few: see `PruneLimits`.
        """

    async def edges(self, memory_ids: Sequence[str], before: int) -> Mapping[str, Edge]:
        """Return each memory's record that comes so many before its last; not of one without."""

    async def still_there(self, places: Collection[RecordRef]) -> Set[RecordRef]:
        """Return which records are still there."""

    async def next_are_dated(self, records: Sequence[Candidate]) -> Mapping[int, bool]:
        """Return, by position, whether the next record of the memory has a time of its own.

        Not of a record that is the last of its memory.
        """

    async def whole(self, asked: PruneRequest, memory_ids: Sequence[str]) -> Sequence[Candidate]:
        """Return all records of some memories, memory by memory, each's in order.

        One without a time of its own is as old as the one before it.
        """

    async def remove(self, records: Sequence[Candidate]) -> Set[RecordRef]:
        """Remove records; return those that were still there."""


@dataclass(frozen=True, slots=True)
class _Try:
    """What a transaction removed, if it was committed."""

    removed: Set[RecordRef]
    memories_gone: Set[str]


class PruneTries:
    """The tries of one step: one whose outcome was not known is made again.

    A transaction removes all that it removes, or nothing. So a try was committed where nothing of
    it is there any more, and it was not a later one that removed it.
    """

    def __init__(self) -> None:
        self._tries: list[_Try] = []

    @property
    def has_removed(self) -> bool:
        """Whether a try that may not be committed removed anything."""
        return bool(self._tries)

    async def remove(
        self,
        asked: PruneRequest,
        records: Sequence[Candidate],
        ending: Set[str],
        steps: PruneTransaction,
    ) -> tuple[int, int]:
        """Remove records, and with them some memories as a whole; count them in the log.

        Returns:
            How many records and memories this try and those that were committed removed.
        """
        # It waits for an earlier try that is not over.
        removed = await steps.remove(records) if records else frozenset()
        if removed:
            await steps.log.add(asked.id, len(removed), 0)
        last = _Try(removed, ending & {place.memory_id for place in removed})
        earlier = self._tries.copy()
        committed = [last]
        if earlier:
            there = await steps.still_there({place for one in earlier for place in one.removed})
            gone = set(removed)
            for one in reversed(earlier):
                if not (one.removed & there or one.removed & gone):
                    committed.append(one)
                    gone |= one.removed
        if removed:
            self._tries.append(last)
        return (
            sum(len(one.removed) for one in committed),
            sum(len(one.memories_gone) for one in committed),
        )
