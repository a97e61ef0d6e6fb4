"""Plans that take memories back to an earlier state, from their records, the last one first."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from async_history._core.reading.filters import Order
from async_history._core.reading.query import HistoryQuery
from async_history._core.reading.restoration import Restoration
from async_history._core.records.recording import repeating
from async_history._core.records.records import Event, HistoryRecord, is_alive, made_at


class RollbackAction(StrEnum):
    """What happens to a memory in a rollback or an undo."""

    RESTORE = "restore"
    """It gets an earlier text and context back, by an UPDATE, or an ADD if it is deleted."""
    DELETE = "delete"
    """It did not exist then, so it is deleted."""
    NOTHING = "nothing"
    """It is already in the wanted state."""
    CONFLICT = "conflict"
    """It is not changed, for the given reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The plan for one memory.

    Attributes:
        latest: its latest record, which must still be the latest when the plan is carried out.
        wanted: the record of the state to restore, if there is one.
    """

    memory_id: str
    action: RollbackAction
    reason: str | None = None
    latest: HistoryRecord | None = None
    wanted: HistoryRecord | None = None

    def record(
        self, actor_id: str | None, role: str | None, cause: Mapping[str, str]
    ) -> dict[str, Any] | None:
        """Return the fields of the record to append; None if there is nothing to record."""
        if self.latest is None:
            return None
        if self.action is RollbackAction.RESTORE and self.wanted is not None:
            return {**Restoration(self.latest, self.wanted).record(actor_id, role), "cause": cause}
        if self.action is RollbackAction.DELETE:
            return {
                "memory_id": self.memory_id,
                "event": Event.DELETE,
                "old_memory": self.latest.new_memory,
                "created_at": made_at(self.latest),
                "actor_id": actor_id,
                "role": role,
                "cause": cause,
            }
        return None

    def repeating(self) -> AbstractContextManager[None]:
        """Return a context in which the plan's record is refused if its text was erased."""
        return (
            nullcontext()
            if self.wanted is None
            else repeating(self.wanted.id, self.wanted.new_memory)
        )


class Walk(Protocol):
    """A walk through one memory, from its latest record backwards."""

    def see(self, record: HistoryRecord) -> bool:
        """Process the next earlier record; return whether no other is needed."""

    def plan(self) -> MemoryPlan:
        """Return the plan, when no more records are needed or left."""


class WalkToInstant:
    """Takes a memory back to its state at an instant.

    As for `memory_at`, that is the last recorded of the records that occurred by then.
    """

    def __init__(self, memory_id: str, to: datetime) -> None:
        self._memory_id = memory_id
        self._to = to
        self._latest: HistoryRecord | None = None
        self._oldest: HistoryRecord | None = None
        self._wanted: HistoryRecord | None = None

    def see(self, record: HistoryRecord) -> bool:
        """Return whether the record is the one that was in force."""
        self._latest = self._latest or record
        self._oldest = record
        instant = record.occurred_at
        if instant is None or instant <= self._to:
            self._wanted = record
        return self._wanted is not None

    def plan(self) -> MemoryPlan:
        """Return the plan that takes the memory back."""
        if self._latest is None or self._oldest is None:
            return conflict(self._memory_id, "there is no history of it")
        if self._wanted is None and self._oldest.event != Event.ADD:
            return conflict(
                self._memory_id,
                f"its history begins later, with {named(self._oldest)}: what it was then is not "
                "known",
            )
        return plan_between(self._memory_id, self._latest, self._wanted)


def plan_of(walk: Walk, records: Sequence[HistoryRecord]) -> MemoryPlan:
    """Plan for one memory from its records, oldest first."""
    for record in reversed(records):
        if walk.see(record):
            break
    return walk.plan()


class ReadHistory(Protocol):
    """The method of a history manager that planning needs."""

    def query_history(
        self, *, memory_id: Sequence[str], order: Order, page_size: int
    ) -> HistoryQuery:
        """Query the records of memories."""


async def plan_memories(
    history: ReadHistory,
    memory_ids: Sequence[str],
    new_walk: Callable[[str], Walk],
    page_size: int,
) -> list[MemoryPlan]:
    """Plan for some memories, in their order. At most two records of each are kept in memory."""
    walks = {memory_id: new_walk(memory_id) for memory_id in memory_ids}
    undecided = set(walks)
    query = history.query_history(memory_id=list(walks), order="newest", page_size=page_size)
    async for page in query.pages():
        for record in page.records:
            memory_id = record.memory_id
            if memory_id in undecided and walks[memory_id].see(record):
                undecided.discard(memory_id)
        if not undecided:
            break
    return [walk.plan() for walk in walks.values()]


def plan_between(memory_id: str, latest: HistoryRecord, wanted: HistoryRecord | None) -> MemoryPlan:
    """Return the plan from the latest record to the wanted one (None: it did not exist then)."""
    action = RollbackAction.NOTHING
    if wanted is None or not is_alive(wanted):
        if is_alive(latest):
            action = RollbackAction.DELETE
    elif wanted.id != latest.id or wanted.new_memory != latest.new_memory:
        if wanted.new_memory is None:
            return conflict(
                memory_id,
                f"what it said is not in {named(wanted)}: it was erased, or never recorded",
            )
        if Restoration(latest, wanted).is_needed:
            action = RollbackAction.RESTORE
    return MemoryPlan(memory_id=memory_id, action=action, latest=latest, wanted=wanted)


def conflict(memory_id: str, reason: str) -> MemoryPlan:
    """Return the plan of a memory that is not changed, for a reason."""
    return MemoryPlan(memory_id=memory_id, action=RollbackAction.CONFLICT, reason=reason)


def named(record: HistoryRecord) -> str:
    """Return a record's name for a reason."""
    return f"record {record.id} ({record.event})"
