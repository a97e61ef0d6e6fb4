"""Verification of a store against its ledger: every leaf, every record, every node of the tree."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from async_history._core.ledger.checkpoint import Checkpoint
from async_history._core.ledger.computed_tree import ComputedTree
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
from async_history._core.ledger.ledger_store import LedgerStore, place_all
from async_history._core.ledger.order import RecordingOrder
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.report import FaultKind, LedgerFault, LedgerReport, damaged
from async_history._core.ledger.seen import SeenLeaves, WholeBundle, seen, seen_bundles
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.progress import Progress
from async_history.errors import StorageCorrupt

T = TypeVar("T")

_IDS_AT_ONCE: Final = 2_000
_LOWEST: Final = -(1 << 63)
"""The lowest position that a record can have."""
_LOCKED_AT_ONCE: Final = 300
"""Leaves or records that are looked at again in one transaction, for which writers may wait."""
_ADDED_AT_ONCE: Final = 256
"""Leaves that are added to the tree at once, while a server reads the next records."""


@dataclass(slots=True)
class _Pass:
    """The findings of a pass through the leaves."""

    removals: Removals
    order: RecordingOrder | None
    counts: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    faults: list[LedgerFault] = field(default_factory=list)
    marked: list[int] = field(default_factory=list)
    """Places of bundles whose salts are marked as keyed but can't be."""
    unowned: list[int] = field(default_factory=list)
    """Places of owners whose memory has neither an owner nor a record."""

    def count(self, what: str, many: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + many

    def check_whole(self, page: WholeBundle) -> None:
        """Count the leaves of a whole bundle, and check the order of its records."""
        size = len(page.names)
        if page.kind == OWNER:
            self.count("owners", size)
            return
        self.count("live", size)
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
            self.count("live")
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
            (self.begun if leaf.kind == BEGUN else self.ended).add(name)
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


async def verify(
    ledger: LedgerStore,
    checkpoints: Sequence[Checkpoint],
    on_progress: Progress | None,
) -> LedgerReport:
    """Verify a store; see `Ledger.verify`."""
    order = RecordingOrder()
    found = _Pass(Removals(), order)
    tree = ComputedTree(checkpoints)
    faults: list[LedgerFault] = []
    unattested: tuple[str, ...] = ()
    dismissed = _Dismissed()
    await place_all(ledger)
    try:
        await ledger.read(found.removals.read)
        # Counted after the removals, so that what is removed later looks wrong first, and is
        # dismissed then; and before the last size, so that the leaves of all of them are below it.
        async with _begun(ledger.read(LedgerTables.counts)) as counting:
            await _check_leaves(ledger, found, order, tree, on_progress)
            counts = await counting
        await _check_leaves(ledger, found, order, tree, on_progress)
        tree.reach_checkpoints()
        tree.end()
        dismissed = await _look_again(ledger, found)
        faults += [
            one for one in found.faults if one.kind == "moved" or one.place not in dismissed.places
        ]
        if faults or counts.records > found.counts.get("live", 0):
            unattested = await _unattested(ledger)
    except StorageCorrupt as error:
        counts = await ledger.read(LedgerTables.counts)
        faults += found.faults
        faults.append(_unreadable(tree.size, error))
    faults += [*found.damage(), *tree.faults]
    return LedgerReport(
        size=tree.size,
        root=tree.root,
        records=found.counts.get("records", 0),
        owners=found.counts.get("owners", 0),
        operations=len(found.begun),
        erased=found.counts.get("erased", 0),
        pruned=found.counts.get("pruned", 0),
        reset=found.counts.get("reset", 0),
        faults=tuple(sorted(faults, key=lambda one: one.place or 0)),
        unattested=unattested,
        unattested_owners=max(
            0, counts.owners - found.counts.get("owners", 0) - dismissed.kinds[OWNER]
        ),
        unattested_operations=max(
            0,
            counts.begun - len(found.begun) - dismissed.kinds[BEGUN],
            counts.ended - len(found.ended) - dismissed.kinds[ENDED],
        ),
    )


@asynccontextmanager
async def _begun(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run work at the same time as the body; cancel it if the body fails."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _check_leaves(
    ledger: LedgerStore,
    found: _Pass,
    order: RecordingOrder,
    tree: ComputedTree,
    on_progress: Progress | None,
) -> None:
    """Check all leaves written so far that are not in the tree yet."""
    size = await size_when_placed(ledger)
    while tree.size < size:
        begin = tree.size
        await ledger.read(partial(_check_next, found, order, tree))
        if tree.size == begin:
            raise StorageCorrupt(f"leaves from {tree.size:,} on are missing")
        if on_progress is not None:
            on_progress(min(tree.size, size), size)


def _unreadable(place: int, error: StorageCorrupt) -> LedgerFault:
    return damaged(place, f"the ledger can't be read from here on: {error}")


async def _check_next(
    found: _Pass, order: RecordingOrder, tree: ComputedTree, tables: LedgerTables
) -> None:
    """Check the next leaves, and add them to the tree.

    A bundle is counted and added once all of it was read. After a lost connection this is run
    again, and goes on with the next one.
    """
    bundles = await tables.bundles(tree.size)
    leaves: list[bytes] = []
    try:
        async with aclosing(seen_bundles(bundles, found.removals, tables)) as pages:
            async for (first, turn, after, bundle), page in pages:
                place = tree.size + len(leaves)
                if first != place:
                    raise StorageCorrupt(f"leaves from {place:,} to {first:,} are missing")
                if bundle.is_keyed and (tables.key is None or not bundle.has_keyed_salts):
                    found.marked.append(first)
                order.begin(after)
                if isinstance(page, WholeBundle):
                    found.check_whole(page)
                else:
                    found.check(page)
                order.end(turn)
                leaves += bundle.leaf_hashes()
                if len(leaves) >= _ADDED_AT_ONCE:
                    tree.add(leaves)
                    leaves = []
    finally:
        tree.add(leaves)
    await tree.compare(tables)


async def size_when_placed(ledger: LedgerStore) -> int:
    """Assign places to all written leaves, and return the number of leaves."""
    await place_all(ledger)
    return await ledger.read(LedgerTables.size)


@dataclass(slots=True)
class _Dismissed:
    """What looked wrong, and is not: others removed it meanwhile, which has an entry.

    Attributes:
        places: of the leaves.
        kinds: how many leaves of each kind the pass did not count therefore.
    """

    places: set[int] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)


async def _look_again(ledger: LedgerStore, found: _Pass) -> _Dismissed:
    """Look again at what looked wrong, while nothing can be removed."""
    dismissed = _Dismissed()
    places = {one.place for one in found.faults if one.place is not None and one.kind != "moved"}
    seen_once = sorted(places.union(found.unowned))
    if seen_once:
        await place_all(ledger)
    for start in range(0, len(seen_once), _LOCKED_AT_ONCE):
        part = seen_once[start : start + _LOCKED_AT_ONCE]
        await ledger.write(partial(_dismiss, dismissed, part))
    return dismissed


async def _dismiss(dismissed: _Dismissed, places: Sequence[int], tables: LedgerTables) -> None:
    """Dismiss leaves, in a transaction that removals wait for."""
    await tables.grow_completely()
    removals = Removals()
    await removals.read(tables)
    for place, leaf in (await tables.leaves(places)).items():
        alone = _Pass(removals, order=None)
        alone.check(await seen(place, [leaf], tables))
        if not alone.faults and not alone.unowned and place not in dismissed.places:
            dismissed.places.add(place)
            dismissed.kinds[leaf.kind] += 1


async def _unattested(ledger: LedgerStore) -> tuple[str, ...]:
    """Return the ids of the records without a leaf."""
    found: list[str] = []
    confirmed: list[str] = []
    first: int | None = _LOWEST
    while first is not None:
        first, bare, unnamed = await ledger.read(partial(_next_without_leaf, first))
        found += bare
        confirmed += unnamed
    await place_all(ledger)
    found = list(dict.fromkeys(found))
    for start in range(0, len(found), _LOCKED_AT_ONCE):
        part = found[start : start + _LOCKED_AT_ONCE]
        confirmed += await ledger.write(partial(_still_without_leaf, part))
    return tuple(confirmed)


async def _next_without_leaf(
    first: int, tables: LedgerTables
) -> tuple[int | None, list[str], list[str]]:
    """Return the next position, and the ids of the next records that have no leaf.

    The second list is of ids that no leaf can have, because another program stored NULL, a BLOB or
    a NUL character, which no look-up finds. They are as Python shows them.
    """
    rows = await tables.record_ids(first, _IDS_AT_ONCE)
    ids = [record_id for _, record_id in rows]
    named = [one for one in ids if isinstance(one, str) and "\0" not in one]
    unnamed = [repr(one) for one in ids if not isinstance(one, str) or "\0" in one]
    next_one = rows[-1][0] + 1 if rows and rows[-1][0] < -_LOWEST - 1 else None
    return next_one, await _without_leaf(named, tables), unnamed


async def _still_without_leaf(ids: Sequence[str], tables: LedgerTables) -> list[str]:
    await tables.grow_completely()  # nothing can be erased until this transaction ends
    return await _without_leaf(ids, tables)


async def _without_leaf(ids: Sequence[str], tables: LedgerTables) -> list[str]:
    there = Counter(await tables.ids_there(ids))
    leaves = (await tables.leaves_of(RECORD, ids)).values()
    attested = {leaf.name for leaf in leaves if not leaf.is_erased}
    # Without the table's primary key, a second record can have the id of one with a leaf.
    return [one for one in dict.fromkeys(ids) if there[one] > (one in attested)]
