"""Differences between mem0's vector store and a memory's history, and the report of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from async_history._core.checking.check_report import CheckReport
from async_history._core.records.owners import SCOPES
from async_history._core.records.records import HistoryRecord, is_alive
from async_history._core.wording import counted
from async_history.blocking._sanitize import Sanitizer
from async_history.mem0._vectors.payloads import IN_COLUMNS, context_in, owner_in
from async_history.mem0._vectors.vector_changes import Fields, text_held

Repair = Literal["history", "vector"]
"""The side to repair: the history, or the vector store."""


class Difference(StrEnum):
    """A difference between the vector store and a memory's history."""

    NO_HISTORY = "no history"
    """The vector store has the memory, and the history has no record of it."""
    MISSING = "missing"
    """The memory exists in its history, but not in the vector store."""
    DELETED = "deleted"
    """The memory is deleted in its history, but the vector store has it."""
    TEXT = "text"
    """The vector store has another text."""
    METADATA = "metadata"
    """The vector store has other metadata."""
    OWNER = "owner"
    """The vector store names another owner."""
    UNKNOWN_OWNER = "unknown owner"
    """The vector store names an owner, and the history knows none: see `learn_owners`."""


_WORDS: Final = {
    Difference.NO_HISTORY: "in the vector store without a history",
    Difference.MISSING: "missing in the vector store",
    Difference.DELETED: "deleted, and still in the vector store",
    Difference.TEXT: "with another text in the vector store",
    Difference.METADATA: "with other metadata in the vector store",
    Difference.OWNER: "of another owner in the vector store",
    Difference.UNKNOWN_OWNER: "of an owner that the history does not know",
}
_NOTED: Final = frozenset((Difference.UNKNOWN_OWNER,))
"""Differences that are only notes: files from before owners have them everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDifference:
    """A memory whose vector store and history differ."""

    memory_id: str
    """The memory's id."""
    differences: tuple[Difference, ...]
    """What differs."""
    repaired: bool = False
    """Whether it was repaired; in a dry run, whether it would be."""
    reason: str | None = None
    """Why it, or a part of it, was not repaired, if a repair was requested."""
    record_id: str | None = field(default=None, compare=False)
    """The `id` of the record that the repair appended, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCheck:
    """What `check` of an `AsyncMemory` or a `Memory` found and did."""

    id: str
    """The id in the cause of a repair's records, under the key `check`."""
    memories: int
    """Number of compared memories."""
    differences: tuple[MemoryDifference, ...]
    """One entry for each memory that differs."""
    history: CheckReport
    """The check of the history itself; for an owner's memories, only of their chains."""
    unlisted: str | None
    """Why the vector store may have more memories than it has listed; None if it has not.

    Memories that the history knows were still compared, one by one.
    """
    repair: Repair | None = None
    """The side that was to be repaired."""
    done: bool = False
    """Whether differences were repaired; False for a dry run."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Remaining faults, one sentence for each kind; empty if there are none."""
        return (*self.history.problems, *self._sentences(noted=False))

    @property
    def notes(self) -> tuple[str, ...]:
        """Unusual facts that can stay, one sentence each."""
        listing = (
            ()
            if self.unlisted is None
            else (
                f"The vector store may have more memories than were listed: {self.unlisted}. Those "
                "without a history are found only if they are listed.",
            )
        )
        return (*self.history.notes, *self._sentences(noted=True), *listing)

    @property
    def repaired(self) -> int:
        """The number of memories that were repaired, or would be in a dry run."""
        return sum(one.repaired for one in self.differences)

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        done = ""
        if self.repair is not None:
            would = "" if self.done else "would be "
            done = f" {counted(self.repaired, 'memory', 'memories')} {would}repaired."
        problems = " ".join(self.problems) or "Nothing is wrong."
        notes = "".join(f" Note: {note}" for note in self.notes)
        return f"{counted(self.memories, 'memory', 'memories')} compared.{done} {problems}{notes}"

    def _sentences(self, *, noted: bool) -> list[str]:
        left = [one for one in self.differences if not (self.done and one.repaired)]
        counts = Counter(kind for one in left for kind in one.differences)
        examples = {kind: one.memory_id for one in reversed(left) for kind in one.differences}
        return [
            f"{counted(counts[kind], 'memory', 'memories')} {words}, such as {examples[kind]}."
            for kind, words in _WORDS.items()
            if counts[kind] and (kind in _NOTED) is noted
        ]


def differences_of(records: Sequence[HistoryRecord], held: Fields | None) -> tuple[Difference, ...]:
    """Return how a memory's payload differs from its history.

    A text or metadata that the history does not know, for example after an erasure, is not
    compared.

    Args:
        records: all of the memory's, oldest first.
        held: its payload in the vector store; None if there is none.
    """
    latest = records[-1] if records else None
    if held is None:
        is_missing = latest is not None and is_alive(latest) and latest.new_memory is not None
        return (Difference.MISSING,) if is_missing else ()
    if latest is None:
        return (Difference.NO_HISTORY,)
    if not is_alive(latest):
        return (Difference.DELETED,)
    return tuple(
        kind
        for kind, differs in (
            (Difference.TEXT, latest.new_memory not in (None, text_held(held))),
            (Difference.METADATA, _has_other_metadata(latest, held)),
            (_owner_difference(latest, held), True),
        )
        if differs and kind is not None
    )


def _has_other_metadata(latest: HistoryRecord, held: Fields) -> bool:
    if latest.context is None:
        return False
    sanitizer = Sanitizer()
    context = context_in(latest.memory_id, held, owner_in(held, sanitizer), held, sanitizer)
    return _without_columns(context) != _without_columns(latest.context)


def _without_columns(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without owner, actor and role, which a record may have from elsewhere."""
    return {name: value for name, value in context.items() if name not in _ELSEWHERE}


_ELSEWHERE: Final = frozenset((*SCOPES, *IN_COLUMNS))


def _owner_difference(latest: HistoryRecord, held: Fields) -> Difference | None:
    owner = owner_in(held, Sanitizer())
    if owner == latest.owner or (latest.owner is None and latest.new_memory is None):
        return None
    return Difference.UNKNOWN_OWNER if latest.owner is None else Difference.OWNER
