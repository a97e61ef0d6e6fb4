"""Verification of a store against its ledger: every leaf, every record, every node of the tree."""

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from async_history._core.ledger.checkpoint import Checkpoint
from async_history._core.ledger.computed_tree import ComputedTree
from async_history._core.ledger.leaf_pass import LeafPass
from async_history._core.ledger.leaves import (
    BEGUN,
    ENDED,
    OWNER,
    RECORD,
)
from async_history._core.ledger.ledger_store import LedgerStore, place_all
from async_history._core.ledger.order import RecordingOrder
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.report import LedgerFault, LedgerReport, damaged
from async_history._core.ledger.seen import WholeBundle, seen, seen_bundles
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.progress import Progress
from async_history.errors import StorageCorrupt

_IDS_AT_ONCE: Final = 2_000
_LOWEST: Final = -(1 << 63)
"""The lowest position that a record can have."""
_LOCKED_AT_ONCE: Final = 300
"""Leaves or records that are looked at again in one transaction, for which writers may wait."""
_ADDED_AT_ONCE: Final = 256
"""Leaves that are added to the tree at once, while a server reads the next records."""


async def verify(
    ledger: LedgerStore,
    checkpoints: Sequence[Checkpoint],
    on_progress: Progress | None,
) -> LedgerReport:
    """Verify a store; see `Ledger.verify`."""
    order = RecordingOrder()
    found = LeafPass(Removals(), order)
    tree = ComputedTree(checkpoints)
    faults: list[LedgerFault] = []
    unattested: tuple[str, ...] = ()
    dismissed = _Dismissed()
    await place_all(ledger)
    try:
        await ledger.read(found.begin)
        await _check_leaves(ledger, found, order, tree, on_progress)
        tree.reach_checkpoints()
        tree.end()
        dismissed = await _look_again(ledger, found)
        faults += [one for one in found.faults if not dismissed.has(one)]
        if faults or found.counted.records > found.attested()[RECORD]:
            unattested = await _unattested(ledger)
    except StorageCorrupt as error:
        faults += found.faults
        faults.append(_unreadable(tree.size, error))
    faults += [*found.damage(), *tree.faults]
    known = found.attested() + dismissed.kinds(found.placed)
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
        unattested_owners=max(0, found.counted.owners - known[OWNER]),
        unattested_operations=max(
            0, found.counted.begun - known[BEGUN], found.counted.ended - known[ENDED]
        ),
    )


async def _check_leaves(
    ledger: LedgerStore,
    found: LeafPass,
    order: RecordingOrder,
    tree: ComputedTree,
    on_progress: Progress | None,
) -> None:
    """Check all leaves written so far."""
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
    found: LeafPass, order: RecordingOrder, tree: ComputedTree, tables: LedgerTables
) -> None:
    """Check the next leaves, and add them to the tree.

    A bundle is counted and added once all of it was read. After a lost connection this is run
    again, and goes on with the next one.
    """
    bundles = await tables.bundles(tree.size)
    leaves: list[bytes] = []
    try:
        async with aclosing(seen_bundles(bundles, found.removals, found.counted, tables)) as pages:
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
        leaves: kinds of leaves, by place.
        first_entry: the place of the first entry of a removal since the pass began, after which
            new records may have the positions of removed ones; None if there is none.
    """

    leaves: dict[int, str] = field(default_factory=dict)
    first_entry: int | None = None

    def has(self, fault: LedgerFault) -> bool:
        """Return whether a fault is dismissed."""
        if fault.place is None or fault.kind != "moved":
            return fault.place in self.leaves
        return self.first_entry is not None and fault.place > self.first_entry

    def kinds(self, placed: int) -> Counter[str]:
        """Return the number of the leaves below a place, by kind."""
        return Counter(kind for place, kind in self.leaves.items() if place < placed)


async def _look_again(ledger: LedgerStore, found: LeafPass) -> _Dismissed:
    """Look again at what looked wrong, while nothing can be removed."""
    dismissed = _Dismissed()
    places = {one.place for one in found.faults if one.place is not None and one.kind != "moved"}
    seen_once = sorted(places.union(found.unowned))
    if found.faults or found.unowned:
        await place_all(ledger)
    for start in range(0, len(seen_once), _LOCKED_AT_ONCE):
        part = seen_once[start : start + _LOCKED_AT_ONCE]
        await ledger.write(partial(_dismiss, dismissed, part))
    if any(one.kind == "moved" for one in found.faults):
        removals = Removals()
        await ledger.read(removals.read)
        dismissed.first_entry = removals.first_since(found.removals)
    return dismissed


async def _dismiss(dismissed: _Dismissed, places: Sequence[int], tables: LedgerTables) -> None:
    """Dismiss leaves, in a transaction that removals wait for."""
    await tables.grow_completely()
    removals = Removals()
    await removals.read(tables)
    for place, leaf in (await tables.leaves(places)).items():
        alone = LeafPass(removals, order=None)
        alone.check(await seen(place, [leaf], tables))
        if not alone.faults and not alone.unowned:
            dismissed.leaves[place] = leaf.kind


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
