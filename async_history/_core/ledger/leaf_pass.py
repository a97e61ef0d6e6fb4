"""A pass through the leaves, which compares them with the stored values."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from async_history._core.ledger.entries import ERASED
from async_history._core.ledger.leaves import (
    BEGUN,
    ENDED,
    ENTRY,
    OWNER,
    RECORD,
    REST,
    Leaf,
)
from async_history._core.ledger.order import RecordingOrder
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.report import FaultKind, LedgerFault, damaged
from async_history._core.ledger.seen import SeenLeaves, WholeBundle
from async_history._core.ledger.stored import Counts
from async_history._core.ledger.tables import LedgerTables

_NOTHING: Final = Counts(0, 0, 0, 0, 0)


@dataclass(slots=True)
class LeafPass:
    """The findings of a pass through the leaves."""

    removals: Removals
    order: RecordingOrder | None
    placed: int = 0
    """Leaves that had a place when the store's records, owners and operations were counted."""
    counted: Counts = _NOTHING
    """Those records, owners and operations, without the ones whose leaves had no place then."""
    counts: dict[str, int] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    """The first place of each operation's beginning that is in the log."""
    ended: dict[str, int] = field(default_factory=dict)
    faults: list[LedgerFault] = field(default_factory=list)
    marked: list[int] = field(default_factory=list)
    """Places of bundles whose salts are marked as keyed but can't be."""
    unowned: list[int] = field(default_factory=list)
    """Places of owners whose memory has neither an owner nor a record."""
    _attested: Counter[str] = field(default_factory=Counter, init=False)

    async def begin(self, tables: LedgerTables) -> None:
        """Read the removals, and count what is there, in one snapshot if the database has those.

        What is removed later looks wrong first, and is dismissed then. Without snapshots, what is
        recorded meanwhile must not be counted: so the numbers of leaves are read last.
        """
        await self.removals.read(tables)
        there = await tables.counts()
        waiting = await tables.waiting()
        self.placed = await tables.size()
        self.counted = Counts(
            there.records - waiting[RECORD] - waiting[REST],
            there.owners - waiting[OWNER],
            there.disowned,
            there.begun - waiting[BEGUN],
            there.ended - waiting[ENDED],
        )

    def count(self, what: str, many: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + many

    def attested(self) -> Counter[str]:
        """Return how much of what was counted has its leaf: the numbers of leaves by kind."""
        kinds = Counter(self._attested)
        for kind, places in ((BEGUN, self.begun), (ENDED, self.ended)):
            kinds[kind] = sum(place < self.placed for place in places.values())
        return kinds

    def _attest(self, place: int, kind: str, many: int = 1) -> None:
        if place < self.placed:
            self._attested[kind] += many

    def check_whole(self, page: WholeBundle) -> None:
        """Count the leaves of a whole bundle, and check the order of its records."""
        size = len(page.names)
        self._attest(page.first, OWNER if page.kind == OWNER else RECORD, size)
        if page.kind == OWNER:
            self.count("owners", size)
            return
        self.count("records", size)
        if self.order is None or self.order.are_next(page.positions):
            return
        for at, position in enumerate(page.positions):
            self._check_order(page.first + at, page.names[at], position)

    def check(self, page: SeenLeaves) -> None:
        """Compare leaves with the stored values."""
        for place, leaf in enumerate(page.leaves, start=page.first):
            if leaf.kind == ENTRY:
                continue
            how = self.removals.at(place)
            if how is not None:
                self._check_removed(place, leaf, how)
            if leaf.kind in (RECORD, REST):
                self._check_record(place, leaf, page, how)
            elif how is None and leaf.kind == OWNER:
                self._check_owner(place, leaf, page)
            elif how is None:
                self._check_operation(place, leaf, page)

    def _check_removed(self, place: int, leaf: Leaf, how: str) -> None:
        # A record has one leaf that is erased, and one that is removed with the record.
        if leaf.kind == RECORD or (leaf.kind == REST and how != ERASED):
            self.count(how)
        if not leaf.is_erased:
            name = leaf.name if leaf.kind in (RECORD, REST) else None
            self.faults.append(
                damaged(place, f"the leaf was removed ({how}), and has its salt again", name)
            )

    def _check_record(self, place: int, leaf: Leaf, page: SeenLeaves, how: str | None) -> None:
        stored = page.records.get(leaf.name or "")
        if stored is not None and leaf.kind == RECORD:
            self._check_order(place, leaf.name, stored.position)
        if how is not None:
            return
        if leaf.is_erased or leaf.name is None:
            self.faults.append(
                damaged(place, "the leaf lost its salt, and no entry says why", leaf.name)
            )
        elif stored is None:
            text = f"the record {leaf.name} is gone, and was not pruned"
            self._found("lost", place, text, record_id=leaf.name)
        else:
            self._attest(place, RECORD)
            if place in page.held:
                self.count("records")
            else:
                text = f"the record {leaf.name} is not what was recorded"
                self._found("changed", place, text, record_id=leaf.name)

    def _check_order(self, place: int, name: str | None, position: int) -> None:
        if self.order is not None and not self.order.is_next(position):
            text = f"the record {name} is at another place in the order of recording"
            self._found("moved", place, text, record_id=name)

    def _check_owner(self, place: int, leaf: Leaf, page: SeenLeaves) -> None:
        name = leaf.name or ""
        if place in page.held:
            self._attest(place, OWNER)
            self.count("owners")
        elif name in page.owners:
            text = f"the owner of memory {name} is not the one that was given"
            self._found("changed", place, text, memory_id=name)
        elif name in page.memories:
            text = f"the owner of memory {name} is gone"
            self._found("lost", place, text, memory_id=name)
        else:  # it was removed with the memory's last record, whose own leaf shows that
            self.unowned.append(place)

    def _check_operation(self, place: int, leaf: Leaf, page: SeenLeaves) -> None:
        name = leaf.name or ""
        stored = page.operations.get(name)
        if stored is None:
            text = f"the operation {name} is gone from the log of operations"
            self._found("lost", place, text, operation_id=name)
            return
        values = stored.begun if leaf.kind == BEGUN else stored.ended
        if values is not None and leaf.holds(values):
            (self.begun if leaf.kind == BEGUN else self.ended).setdefault(name, place)
        else:
            text = f"the operation {name} is not what was entered in the log of operations"
            self._found("changed", place, text, operation_id=name)

    def _found(
        self,
        kind: FaultKind,
        place: int,
        text: str,
        *,
        record_id: str | None = None,
        memory_id: str | None = None,
        operation_id: str | None = None,
    ) -> None:
        self.faults.append(
            LedgerFault(
                kind=kind,
                place=place,
                text=text,
                record_id=record_id,
                memory_id=memory_id,
                operation_id=operation_id,
            )
        )

    def damage(self) -> list[LedgerFault]:
        """Return the faults of entries and bundles that can't be as they are."""
        wrong = "an entry is not the one of its leaf, or not one that this library writes"
        falsely_marked = "leaves have the mark of encrypted records, which they are not of"
        return [
            *(damaged(place, wrong) for place in self.removals.damaged),
            *(damaged(place, falsely_marked) for place in self.marked),
        ]
