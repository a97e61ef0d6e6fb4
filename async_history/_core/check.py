"""What the check of a history reports."""

from dataclasses import dataclass
from enum import StrEnum


class ChainFault(StrEnum):
    """What is wrong with a record, by those of its memory before it."""

    TEXT = "text"
    """Its `old_memory` is not what the memory said before it."""
    EVENT = "event"
    """Its event can't follow: an ADD of a memory that exists, or a change of one that does not."""
    ORDER = "order"
    """It is recorded after a later change, by their times; in the order of times all is well."""
    UNKNOWN_EVENT = "unknown event"
    """Its event is not ADD, UPDATE or DELETE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRecord:
    """A record that does not continue the one before it."""

    memory_id: str
    """Of which memory."""
    record_id: str
    """Its `id`."""
    fault: ChainFault
    """What is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check of a history found."""

    store: str
    """The file's path, or the server's URL without its password."""
    records: int
    """Records that were read."""
    memories: int = 0
    """Memories that they are of."""
    problems: tuple[str, ...] = ()
    """What is wrong and must be repaired, a sentence each; empty where all is well."""
    notes: tuple[str, ...] = ()
    """What is unusual and can stay, a sentence each, such as chains that others broke."""
    broken: tuple[BrokenRecord, ...] = ()
    """The first records that do not continue the one before them; `notes` count them all."""
    is_repaired: bool = False
    """Whether the index was built again first."""

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        repaired = " Its index was rebuilt." if self.is_repaired else ""
        notes = "".join(f" Note: {note}" for note in self.notes)
        if not self.problems:
            return f"{self.store}: {self.records:,} records, nothing is wrong.{repaired}{notes}"
        problems = " ".join(self.problems)
        return f"{self.store}: {self.records:,} records.{repaired} {problems}{notes}"
