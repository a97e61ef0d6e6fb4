"""The stored values that verification compares with their leaves."""

from collections.abc import Iterator, Mapping, Sequence, Set
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
from async_history._core.ledger.new_leaves import MOST_CHARACTERS, MOST_LEAVES
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
    untouched: list[_Untouched] = []
    for first, _, _, bundle in stored:
        leaf_names = bundle.leaf_names()
        names = [name for name in leaf_names if name is not None]
        if len(names) == len(leaf_names) and not removals.touch(first, first + bundle.size):
            untouched.append((first, bundle, names))
    whole = await _whole_of_records([u for u in untouched if u[1].kind in (RECORD, REST)], tables)
    whole |= await _whole_of_owners([u for u in untouched if u[1].kind == OWNER], tables)
    return [
        whole.get(one.first) or await seen(one.first, one.bundle.leaves(), tables) for one in stored
    ]


_Untouched = tuple[int, Bundle, Sequence[str]]
"""A bundle without removed leaves: its place, the bundle, and the names of its leaves."""


async def _whole_of_records(
    bundles: Sequence[_Untouched], tables: LedgerTables
) -> dict[int, WholeBundle]:
    """Return the bundles whose records all match, by place."""
    whole: dict[int, WholeBundle] = {}
    groups = list(_groups(bundles))
    with closing(tables.ask_records(map(_names_in, groups))) as answers:
        for group, asked in zip(groups, answers, strict=True):
            names_in_group, begin = _names_in(group), 0
            rows = await tables.record_rows(names_in_group, asked)
            all_there = rows.of(names_in_group)
            for first, bundle, names in group:
                end = begin + len(names)
                there = rows.of(names) if all_there is None else all_there.part(begin, end)
                begin = end
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
    groups = list(_groups(bundles))
    with closing(tables.ask_owners(map(_names_in, groups))) as answers:
        for group, asked in zip(groups, answers, strict=True):
            there = await tables.owners_of(asked)
            for first, bundle, names in group:
                rows = [owner_values(name, there[name]) for name in names if name in there]
                if len(rows) == len(names) and bundle.holds(rows, tables.key):
                    whole[first] = WholeBundle(first, names, OWNER, ())
    return whole


def _groups(bundles: Sequence[_Untouched]) -> Iterator[Sequence[_Untouched]]:
    """Yield bundles whose names one statement takes: a batch of one record is a bundle of its own.

    At least one bundle, and no more names than in a large one.
    """
    group: list[_Untouched] = []
    count = characters = 0
    for one in bundles:
        _, bundle, names = one
        count += len(names)
        characters += len(bundle.names)
        if group and (count > MOST_LEAVES or characters > MOST_CHARACTERS):
            yield group
            group, count, characters = [], len(names), len(bundle.names)
        group.append(one)
    if group:
        yield group


def _names_in(group: Sequence[_Untouched]) -> list[str]:
    return [name for *_, names in group for name in names]


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
