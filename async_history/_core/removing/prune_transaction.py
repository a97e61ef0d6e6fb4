"""A database's part of pruning, inside the transaction of one step."""

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from async_history._core.operations.operation_log import OperationLog
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune_request import PruneRequest

K = TypeVar("K", bound=Hashable)
Edge = tuple[int, str]
"""The first of a memory's last records that are kept: its position and id."""


class Candidate(NamedTuple):
    """A record in pruning. A tuple, because one is made for each record of the history.

    `memory_id` can be any value, because other programs may have stored an invalid one. `is_old` is
    None if the record has no time of its own. `of_undated` is False if it dates no other record: no
    look-up is needed. So it is where each record's instant is stored with it; `is_old` is then None
    if the instant is unknown. `prunable_alone` is set for records of a whole memory.
    """

    position: int
    id: str
    memory_id: Any
    is_delete: bool
    is_old: bool | None
    of_undated: bool = True
    prunable_alone: bool = False

    @property
    def ref(self) -> RecordRef:
        return RecordRef(self.position, self.id, self.memory_id)


def prunable_alone(asked: PruneRequest, are_old: Sequence[bool | None], index: int) -> bool:
    """Return whether a record of a whole memory can be removed whatever happens to the memory.

    Args:
        are_old: each record's own `is_old`, in order.
        index: the record's index in it.
    """
    return (
        are_old[index] is True
        and len(are_old) - index > max(asked.keep_last, 1)
        and are_old[index + 1] is not None
    )


class EndsTransaction(Protocol):
    """The part of a step's transaction that finds the ends of the history."""

    async def ends(self) -> tuple[int, int] | None:
        """Return the positions of the first and the last record; None if there is none."""


class EdgesTransaction(Protocol):
    """The part of a step's transaction that finds the edges of memories."""

    async def edges(self, memory_ids: Sequence[str], before: int) -> Mapping[str, Edge]:
        """Return each memory's record that is `before` records before its last, if there is one."""

    async def still_there(self, refs: Collection[RecordRef]) -> Set[RecordRef]:
        """Return the records that still exist."""


class PruneTransaction(EndsTransaction, EdgesTransaction, Protocol):
    """The database's part of a step's transaction."""

    @property
    def log(self) -> OperationLog:
        """The store's log of operations, inside this transaction."""

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> Sequence[Candidate]:
        """Return the records between two positions, including the second, in order.

        It may begin with the first removable record, if it skips few records: see `PruneLimits`.
        """

    async def next_are_dated(self, records: Sequence[Candidate]) -> Mapping[int, bool]:
        """Return, by position, whether the next record of the memory has a time of its own.

        The last record of a memory has no entry.
        """

    async def whole(self, asked: PruneRequest, memory_ids: Sequence[str]) -> Sequence[Candidate]:
        """Return all records of some memories, memory by memory, in order.

        A record that the previous one dates is as old as that. `is_old` is None if a record's time
        is unknown: the memory is kept.
        """

    async def remove(self, records: Sequence[Candidate]) -> Set[RecordRef]:
        """Remove records; return those that still existed."""


@dataclass(frozen=True, slots=True)
class _Try(Generic[K]):
    """What a transaction removes if it is committed."""

    removed: Set[K]
    memories_gone: int


class PruneTries(Generic[K]):
    """The tries of one step: a try with an unknown outcome is repeated.

    A transaction removes all of its records or none. So a try was committed if none of its records
    exist any more and no later try removed them. `K` identifies a record.
    """

    def __init__(self) -> None:
        self._tries: list[_Try[K]] = []

    @property
    def has_removed(self) -> bool:
        """Whether an uncertain try removed anything."""
        return bool(self._tries)

    async def remove(
        self: "PruneTries[RecordRef]",
        asked: PruneRequest,
        records: Sequence[Candidate],
        ending: Set[str],
        steps: PruneTransaction,
    ) -> tuple[int, int]:
        """Remove records, and some memories as a whole; count them in the log.

        Returns:
            The numbers of records and memories removed by this try and committed earlier ones.
        """
        # It waits for an earlier try that is still running.
        removed = await steps.remove(records) if records else frozenset()
        gone = ending & {ref.memory_id for ref in removed}
        return await self.count(asked, removed, len(gone), steps.log, steps.still_there)

    async def count(
        self,
        asked: PruneRequest,
        removed: Set[K],
        memories_gone: int,
        log: OperationLog,
        still_there: Callable[[Set[K]], Awaitable[Set[K]]],
    ) -> tuple[int, int]:
        """Count in the log what this try has removed.

        Args:
            still_there: returns the records that still exist.

        Returns:
            As `remove`.
        """
        if removed:
            await log.add(asked.id, len(removed), 0)
        last = _Try(removed, memories_gone)
        earlier = self._tries.copy()
        committed = [last]
        if earlier:
            there = await still_there({key for one in earlier for key in one.removed})
            gone = set(removed)
            for one in reversed(earlier):
                if not (one.removed & there or one.removed & gone):
                    committed.append(one)
                    gone |= one.removed
        if removed:
            self._tries.append(last)
        return (
            sum(len(one.removed) for one in committed),
            sum(one.memories_gone for one in committed),
        )
