"""The stored values that verification compares with their leaves."""

from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from async_history._core.ledger.leaves import (
    BEGUN,
    ENDED,
    OWNER,
    RECORD,
    REST,
    Bundle,
    Leaf,
    held_at,
    owner_values,
)
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.tables import (
    LedgerTables,
    StoredBundle,
    StoredOperation,
    StoredRecord,
)
from async_history._core.owners import Owner


@dataclass(frozen=True, slots=True)
class SeenLeaves:
    """Leaves from a place on, with the stored values."""

    first: int
    leaves: Sequence[Leaf]
    records: Mapping[str, StoredRecord]
    owners: Mapping[str, Owner]
    memories: frozenset[str]
    operations: Mapping[str, StoredOperation]
    held: Set[int]


@dataclass(frozen=True, slots=True)
class WholeBundle:
    """A bundle whose leaves all match the store, with the positions of its records."""

    first: int
    names: Sequence[str | None]
    kind: str
    positions: Sequence[int]


async def seen_bundles(
    stored: Sequence[StoredBundle], removals: Removals, tables: LedgerTables
) -> list[WholeBundle | SeenLeaves]:
    """Return bundles with their stored values. Usually all match, which is checked at once."""
    if any(one.bundle.has_keyed_salts for one in stored):
        await tables.require_key()
    untouched = [
        (first, bundle, names)
        for first, _, _, bundle in stored
        if None not in (names := bundle.leaf_names())
        and not removals.touch(first, first + bundle.size)
    ]
    whole = await _whole_of_records([u for u in untouched if u[1].kind in (RECORD, REST)], tables)
    whole |= await _whole_of_owners([u for u in untouched if u[1].kind == OWNER], tables)
    return [
        whole.get(one.first) or await seen(one.first, one.bundle.leaves(), tables) for one in stored
    ]


_Untouched = tuple[int, Bundle, Sequence[str | None]]
"""A bundle without removed leaves: its place, the bundle, and the names of its leaves."""


async def _whole_of_records(
    bundles: Sequence[_Untouched], tables: LedgerTables
) -> dict[int, WholeBundle]:
    """Return the bundles whose records all match, by place."""
    whole: dict[int, WholeBundle] = {}
    with closing(tables.ask_records(bundle.names for _, bundle, _ in bundles)) as answers:
        for (first, bundle, names), asked in zip(bundles, answers, strict=True):
            there = (await tables.record_rows(bundle.names, asked)).of(names)
            if (
                there is not None
                and all(there.have_owner)
                and bundle.holds(there.values, tables.key)
            ):
                positions = there.positions if bundle.kind == RECORD else ()
                whole[first] = WholeBundle(first, names, bundle.kind, positions)
    return whole


async def _whole_of_owners(
    bundles: Sequence[_Untouched], tables: LedgerTables
) -> dict[int, WholeBundle]:
    """Return the bundles whose owners all match, by place."""
    whole: dict[int, WholeBundle] = {}
    with closing(tables.ask_owners(bundle.names for _, bundle, _ in bundles)) as answers:
        for (first, bundle, names), asked in zip(bundles, answers, strict=True):
            there = await tables.owners_of(asked)
            rows = [owner_values(name, there[name]) for name in names if name in there]
            if len(rows) == len(names) and bundle.holds(rows, tables.key):
                whole[first] = WholeBundle(first, names, OWNER, ())
    return whole


async def seen(first: int, leaves: Sequence[Leaf], tables: LedgerTables) -> SeenLeaves:
    """Return leaves from a place on, with the stored values."""
    ids = _names(leaves, RECORD, REST)
    owned = _names(leaves, OWNER)
    logged = _names(leaves, BEGUN, ENDED)
    records = await tables.records(ids) if ids else {}
    owners = await tables.owners(owned) if owned else {}
    bare = [name for name in owned if name not in owners]
    there = await tables.memories(bare) if bare else set()
    operations = await tables.operations(logged) if logged else {}
    there_now = [
        (place, leaf, values)
        for place, leaf in enumerate(leaves, start=first)
        if (values := _values(leaf.kind, leaf.name or "", records, owners)) is not None
    ]
    shown = {place: leaf for place, leaf, _ in there_now}
    held = held_at(shown, [values for *_, values in there_now], tables.key)
    return SeenLeaves(first, leaves, records, owners, frozenset(there), operations, held)


def _values(
    kind: str, name: str, records: Mapping[str, StoredRecord], owners: Mapping[str, Owner]
) -> Sequence[Any] | None:
    """Return the stored values of a leaf; None if they are not stored."""
    if kind == OWNER:
        return owner_values(name, owners[name]) if name in owners else None
    if kind in (RECORD, REST):
        stored = records.get(name)
        return stored.values if stored is not None and stored.has_owner else None
    return None


def _names(leaves: Sequence[Leaf], *kinds: str) -> list[str]:
    return [leaf.name for leaf in leaves if leaf.kind in kinds and leaf.name is not None]
