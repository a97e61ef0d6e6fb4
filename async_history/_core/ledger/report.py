"""What verifying a store finds."""

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["changed", "lost", "moved", "cut", "rewritten", "damaged"]
"""What is wrong: a record, owner or operation is another than was recorded, is gone, or is at
another place in the order; leaves of a checkpoint are missing, or others than its own; or the
ledger's tables contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFault:
    """One thing that is not as it was recorded."""

    kind: FaultKind
    """What is wrong."""
    record_id: str | None = None
    """The record; None where it is not a record's."""
    memory_id: str | None = None
    """The memory, where its owner is concerned."""
    operation_id: str | None = None
    """The operation in the log of operations; None where it is not one's."""
    place: int | None = None
    """The place of the leaf, where it is known."""
    text: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What verifying a store has found."""

    size: int
    """Leaves of the ledger."""
    root: bytes
    """The root of its tree, computed from all of them."""
    records: int
    """Records that are as they were recorded."""
    owners: int
    """Memories whose owner is as it was given."""
    operations: int
    """Operations that are as the log of operations entered them, and as they ended."""
    erased: int
    """Leaves of what an erasure took: that it existed is proven, what it said is not."""
    pruned: int
    """Leaves of records that were pruned."""
    reset: int
    """Leaves of records that a reset removed."""
    faults: tuple[LedgerFault, ...]
    """What is not as it was recorded, in the order of the leaves."""
    unattested: tuple[str, ...]
    """Ids of records that have no leaf: recorded before the ledger was turned on, or by another
    program, or put in."""
    unattested_owners: int
    """Memories whose owner has no leaf."""
    unattested_operations: int
    """Operations that have no leaf, or whose end has none."""

    @property
    def is_intact(self) -> bool:
        """Whether all that has a leaf is as it was recorded."""
        return not self.faults


def damaged(place: int, text: str, record_id: str | None = None) -> LedgerFault:
    """Return the fault of tables of the ledger that contradict each other."""
    return LedgerFault(kind="damaged", place=place, text=text, record_id=record_id)
