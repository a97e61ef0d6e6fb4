"""Comparison of the vector store's memories with the history's, while operations run."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from async_history._core.checking.chains import broken_records
from async_history._core.checking.check import BrokenChains, CheckLimits, by_memory
from async_history._core.checking.check_report import CheckReport
from async_history._core.manager import HistoryManager
from async_history._core.records.recording import operation
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import parse_time
from async_history.mem0._checking.differences import (
    Difference,
    MemoryCheck,
    MemoryDifference,
    differences_of,
)
from async_history.mem0._checking.repair import CheckRequest, SuspectMemory
from async_history.mem0._vectors.vector_changes import Fields, payload_held
from async_history.mem0._vectors.vector_listing import Listing

_PAGE: Final = 1_000
"""Records of some memories that one read returns."""
_RECENT: Final = timedelta(minutes=1)
"""How long a new memory may take to reach the history: an ADD takes no turn."""

Histories = Mapping[str, Sequence[HistoryRecord]]
"""The records of memories, oldest first."""


@dataclass(frozen=True, slots=True)
class InHistory:
    """The state of the history before memories are compared.

    Attributes:
        where: its name in messages.
        memory_ids: the memories to compare.
    """

    where: str
    memory_ids: Sequence[str]


def look_into_history(
    asked: CheckRequest,
) -> Callable[[HistoryManager], Awaitable[InHistory]]:
    """Return a function that finds the memories of a check. Only their ids are kept."""

    async def look(history: HistoryManager) -> InHistory:
        scopes: dict[str, Any] = dict(asked.owner)
        found: dict[str, None] = {}
        with operation():
            async for page in history.query_history(**scopes, page_size=_PAGE).pages():
                found.update((record.memory_id, None) for record in page.records)
        return InHistory(history.backend.where, list(found))

    return look


def histories_of(memory_ids: Sequence[str]) -> Callable[[HistoryManager], Awaitable[Histories]]:
    """Return a function that reads the records of some memories."""

    async def read(history: HistoryManager) -> Histories:
        with operation():
            return await by_memory(history.query_history(memory_id=memory_ids, page_size=_PAGE))

    return read


def faults_for(asked: CheckRequest) -> Callable[[HistoryManager], Awaitable[Sequence[str]]]:
    """Return a function that reads the backend's own faults; none for an owner's memories."""

    async def ask(history: HistoryManager) -> Sequence[str]:
        return () if asked.owner else await history.store.faults()

    return ask


@dataclass(slots=True)
class Comparison:
    """The memories of one check: those compared, and those that seem to differ."""

    memory: Any
    asked: CheckRequest
    known: InHistory
    listing: Listing
    _compared: int = 0
    _records: int = 0
    _chains: BrokenChains = field(default_factory=lambda: BrokenChains(CheckLimits().named))
    _suspects: dict[str, SuspectMemory] = field(default_factory=dict)
    _found: list[MemoryDifference] = field(default_factory=list)

    @property
    def memory_ids(self) -> list[str]:
        """All memories of the history, then those that only the vector store has listed."""
        return list(dict.fromkeys((*self.known.memory_ids, *self.listing.payloads)))

    def compare(self, memory_ids: Sequence[str], histories: Histories) -> None:
        """Compare some memories. It blocks: memories missing in a cut list are read one by one."""
        for memory_id in memory_ids:
            records = histories.get(memory_id, ())
            found = differences_of(records, self._held(memory_id))
            if found:
                self._suspects[memory_id] = SuspectMemory(self.memory, self.asked, memory_id, found)
        self._compared += len(memory_ids)

    def check_chains(self, histories: Histories) -> None:
        """Check the chains of memories of the history."""
        for records in histories.values():
            self._records += len(records)
            self._chains.take(broken_records(records))

    def _held(self, memory_id: str) -> Fields | None:
        held = self.listing.payloads.get(memory_id)
        if held is not None or self.listing.limit is None:
            return held
        return payload_held(self.memory, memory_id)

    # Memories that may be new

    def recent(self) -> list[str]:
        """Return recently made memories without a history."""
        now = datetime.now(UTC)
        return [
            name
            for name, one in self._suspects.items()
            if one.found == (Difference.NO_HISTORY,)
            and (made := parse_time(str(self.listing.payloads[name].get("created_at"))))
            and abs(now - made) < _RECENT
        ]

    def take_recorded(self, histories: Histories) -> None:
        """Compare again the memories that have a history now."""
        self._compared -= len(histories)
        for memory_id in histories:
            del self._suspects[memory_id]
        self.compare(list(histories), histories)

    # Memories that differ

    def groups(self, size: int) -> Iterator[list[SuspectMemory]]:
        """Yield memories that seem to differ, in groups of this size."""
        suspects = list(self._suspects.values())
        for start in range(0, len(suspects), size):
            yield suspects[start : start + size]

    def take(self, group: Sequence[SuspectMemory]) -> None:
        """Add the results for some memories.

        Raises:
            Exception: the vector store or the model failed for all of several memories.
        """
        failures = [one.failure for one in group if one.failure is not None]
        if failures and len(failures) == len(group):
            raise failures[0]
        self._found += filter(None, (one.outcome() for one in group))

    def report(self, problems: Sequence[str]) -> MemoryCheck:
        """Return the report."""
        return MemoryCheck(
            id=self.asked.id,
            memories=self._compared,
            differences=tuple(self._found),
            history=CheckReport(
                store=self.known.where,
                records=self._records,
                memories=len(self.known.memory_ids),
                problems=tuple(problems),
                notes=self._chains.notes(),
                broken=tuple(self._chains.first),
            ),
            unlisted=self.listing.limit,
            repair=self.asked.repair,
            done=self.asked.acts,
        )
