"""What the store has now of what its leaves commit to, as verifying compares them."""

from collections.abc import Mapping, Sequence, Set
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
    """Leaves from a place on, and what the store has of them now."""

    first: int
    leaves: Sequence[Leaf]
    records: Mapping[str, StoredRecord]
    owners: Mapping[str, Owner]
    memories: frozenset[str]
    operations: Mapping[str, StoredOperation]
    held: Set[int]


@dataclass(frozen=True, slots=True)
class WholeBundle:
    """A bundle of which the store has all as its leaves have it, and where its records are."""

    first: int
    names: Sequence[str | None]
    kind: str
    positions: Sequence[int]


async def seen_bundle(
    stored: StoredBundle, removals: Removals, tables: LedgerTables
) -> WholeBundle | SeenLeaves:
    """Return what the store has of a bundle: as a rule all, which is found out at once."""
    first, bundle = stored.first, stored.bundle
    if not removals.touch(first, first + bundle.size):
        whole = await _whole(first, bundle, tables)
        if whole is not None:
            return whole
    return await seen(first, bundle.leaves(), tables)


async def _whole(first: int, bundle: Bundle, tables: LedgerTables) -> WholeBundle | None:
    if bundle.kind not in (RECORD, REST, OWNER):
        return None
    if bundle.has_keyed_salts:
        await tables.require_key()
    names = bundle.leaf_names()
    asked = [name for name in names if name is not None]
    records: Mapping[str, StoredRecord] = {}
    owners: Mapping[str, Owner] = {}
    if bundle.kind == OWNER:
        owners = await tables.owners(asked)
    else:
        records = await tables.records(asked)
    values = [_values(bundle.kind, name or "", records, owners) for name in names]
    rows = [row for row in values if row is not None]
    if len(rows) < len(names) or not bundle.holds(rows, tables.key):
        return None
    positions = [records[name].position for name in asked] if bundle.kind == RECORD else ()
    return WholeBundle(first, names, bundle.kind, positions)


async def seen(first: int, leaves: Sequence[Leaf], tables: LedgerTables) -> SeenLeaves:
    """Return what the store has of leaves from a place on."""
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
    if any(leaf.has_keyed_salt for leaf in shown.values()):
        await tables.require_key()
    held = held_at(shown, [values for *_, values in there_now], tables.key)
    return SeenLeaves(first, leaves, records, owners, frozenset(there), operations, held)


def _values(
    kind: str, name: str, records: Mapping[str, StoredRecord], owners: Mapping[str, Owner]
) -> Sequence[Any] | None:
    """Return what a leaf should commit to, as the store has it now; None if it does not."""
    if kind == OWNER:
        return owner_values(name, owners[name]) if name in owners else None
    if kind in (RECORD, REST):
        stored = records.get(name)
        return stored.values if stored is not None and stored.has_owner else None
    return None


def _names(leaves: Sequence[Leaf], *kinds: str) -> list[str]:
    return [leaf.name for leaf in leaves if leaf.kind in kinds and leaf.name is not None]
