"""The report of a verification."""

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["changed", "lost", "moved", "cut", "rewritten", "damaged"]
"""The kind of a fault: a record, owner or operation was changed, is missing, or is at another place
in the order; leaves of a checkpoint are missing or changed; or the ledger's tables contradict each
other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFault:
    """One difference from what was recorded."""

    kind: FaultKind
    """The kind of the fault."""
    record_id: str | None = None
    """The record, if the fault concerns one."""
    memory_id: str | None = None
    """The memory, if the fault concerns its owner."""
    operation_id: str | None = None
    """The operation in the log, if the fault concerns one."""
    place: int | None = None
    """The place of the leaf, if known."""
    text: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """The result of verifying a store."""

    size: int
    """Number of leaves of the ledger."""
    root: bytes
    """The root of its tree, computed from all leaves."""
    records: int
    """Number of records that match their leaves."""
    owners: int
    """Number of memories whose owner matches its leaf."""
    operations: int
    """Number of operations in the log that match their leaves."""
    erased: int
    """Number of records whose leaf was erased. They existed, and their text is not proven."""
    pruned: int
    """Number of pruned records that had a leaf."""
    reset: int
    """Number of records with a leaf that a reset removed."""
    faults: tuple[LedgerFault, ...]
    """The differences from what was recorded, in the order of the leaves."""
    unattested: tuple[str, ...]
    """Ids of records without a leaf: recorded before the history had a ledger, or written by other
    programs. An id that is not text, or has a NUL character, is as Python's `repr` shows it."""
    unattested_owners: int
    """Number of memories whose owner has no leaf."""
    unattested_operations: int
    """Number of operations without a leaf, or without a leaf for their outcome."""

    @property
    def is_intact(self) -> bool:
        """Whether everything with a leaf is as it was recorded."""
        return not self.faults


def damaged(place: int, text: str, record_id: str | None = None) -> LedgerFault:
    """Return the fault of contradicting tables of the ledger."""
    return LedgerFault(kind="damaged", place=place, text=text, record_id=record_id)
