"""The report of a history check."""

from dataclasses import dataclass
from enum import StrEnum

from async_history._core.wording import counted


class ChainFault(StrEnum):
    """The fault of a record, compared with earlier records of its memory."""

    TEXT = "text"
    """Its `old_memory` is not the memory's previous text."""
    EVENT = "event"
    """Its event can't follow: an ADD of a memory that exists, or a change of one that does not."""
    ORDER = "order"
    """It was recorded after a later change; in the order of times the chain is whole."""
    UNKNOWN_EVENT = "unknown event"
    """Its event is not ADD, UPDATE or DELETE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRecord:
    """A record that does not continue the previous one."""

    memory_id: str
    """The record's memory."""
    record_id: str
    """Its `id`."""
    fault: ChainFault
    """The fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The report of a check of a history."""

    store: str
    """The file's path, or the server's URL without its password."""
    records: int
    """Number of records read."""
    memories: int = 0
    """Number of their memories."""
    problems: tuple[str, ...] = ()
    """Faults that must be repaired, one sentence each; empty if there are none."""
    notes: tuple[str, ...] = ()
    """Unusual facts that can stay, one sentence each, such as chains that other programs broke."""
    broken: tuple[BrokenRecord, ...] = ()
    """The first records that do not continue the previous one; `notes` count them all."""
    is_repaired: bool = False
    """Whether the index was rebuilt first."""

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        records = counted(self.records, "record")
        repaired = " Its index was rebuilt." if self.is_repaired else ""
        notes = "".join(f" Note: {note}" for note in self.notes)
        if not self.problems:
            return f"{self.store}: {records}, nothing is wrong.{repaired}{notes}"
        problems = " ".join(self.problems)
        return f"{self.store}: {records}.{repaired} {problems}{notes}"
