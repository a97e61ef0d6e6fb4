"""Entries of the ledger for changes of records, owners and the log of operations.

Each is written within the transaction of the change.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from async_history._core.ledger.entries import (
    ERASED,
    PRUNED,
    RESET,
    Removed,
    entry_bundle,
    ranges_of,
)
from async_history._core.ledger.leaves import (
    BEGUN,
    ENDED,
    OWNER,
    RECORD,
    REST,
    Leaf,
    owner_bundle,
    owner_values,
    values_bundle,
)
from async_history._core.ledger.tables import LedgerTables


async def prune(tables: LedgerTables, ids: Sequence[str], memory_ids: Collection[str]) -> None:
    """Record that records were removed, and with them owners of memories."""
    await tables.grow_completely()
    gone = set(memory_ids) - set(await tables.owners(memory_ids))
    leaves = await tables.leaves_of(RECORD, ids) | await tables.leaves_of(OWNER, gone)
    await _remove(tables, PRUNED, leaves)


async def held(tables: LedgerTables, ids: Sequence[str]) -> set[str]:
    """Return the ids of those records that match their leaves."""
    await tables.grow_completely()
    leaves = (await tables.leaves_of(RECORD, ids)).values()
    there = await tables.records(ids)
    return {
        name
        for leaf in leaves
        if (name := leaf.name) in there
        and there[name].has_owner
        and leaf.holds(there[name].values, tables.key)
    }


async def erase(tables: LedgerTables, ids: Sequence[str], held: Collection[str]) -> None:
    """Record that records lost texts: remove their salts, and add a leaf for what is left.

    Args:
        ids: the records.
        held: the records that matched their leaves before. Others get no new leaf, because they are
            not attested.
    """
    await _remove(tables, ERASED, await tables.leaves_of(RECORD, ids))
    left = [(name, one) for name, one in (await tables.records(ids)).items() if name in held]
    if left:
        rows = [one.values for _, one in left]
        await tables.append(values_bundle(REST, [name for name, _ in left], rows, tables.key))


async def owned(tables: LedgerTables, memory_ids: Collection[str]) -> set[str]:
    """Return those memories whose owner matches their leaves."""
    await tables.grow_completely()
    leaves = (await tables.leaves_of(OWNER, memory_ids)).values()
    owners = await tables.owners(memory_ids)
    return {
        name
        for leaf in leaves
        if (name := leaf.name) in owners and leaf.holds(owner_values(name, owners[name]))
    }


async def disown(tables: LedgerTables, memory_ids: Collection[str], owned: Collection[str]) -> None:
    """Record that memories lost a scope of their owner, or the owner.

    Args:
        memory_ids: the memories.
        owned: the memories whose owner matched their leaves before.
    """
    await _remove(tables, ERASED, await tables.leaves_of(OWNER, memory_ids))
    left = {n: one for n, one in (await tables.owners(memory_ids)).items() if n in owned}
    if left:
        await tables.append(owner_bundle(left))


async def begin_operations(tables: LedgerTables, operation_ids: Sequence[str]) -> None:
    """Write the leaves of operations that were added to the log."""
    stored = await tables.operations(operation_ids)
    if stored:
        rows = [one.begun for one in stored.values()]
        await tables.append(values_bundle(BEGUN, list(stored), rows))
    await end_operations(tables, operation_ids)


async def end_operations(tables: LedgerTables, operation_ids: Sequence[str]) -> None:
    """Write the leaves of the outcomes of operations that have ended."""
    stored = await tables.operations(operation_ids)
    ends = {name: one.ended for name, one in stored.items() if one.ended is not None}
    if ends:
        await tables.append(values_bundle(ENDED, list(ends), list(ends.values())))


async def operations_of(tables: LedgerTables, actor_id: str) -> list[str]:
    """Return those operations of an actor whose beginning matches their leaves."""
    await tables.grow_completely()
    ids = await tables.operations_of(actor_id)
    leaves = (await tables.leaves_of(BEGUN, ids)).values()
    there = await tables.operations(ids)
    return [
        name for leaf in leaves if (name := leaf.name) in there and leaf.holds(there[name].begun)
    ]


async def forget_actor(tables: LedgerTables, operation_ids: Sequence[str]) -> None:
    """Record that operations lost their actor's name."""
    await _remove(tables, ERASED, await tables.leaves_of(BEGUN, operation_ids))
    stored = await tables.operations(operation_ids)
    if stored:
        rows = [one.begun for one in stored.values()]
        await tables.append(values_bundle(BEGUN, list(stored), rows))


async def reset(tables: LedgerTables) -> None:
    """Record that all records were removed."""
    await tables.grow_completely()
    places = await tables.rewrite_all()
    if places:
        await tables.append(entry_bundle(Removed(RESET, places, _now())))


async def _remove(tables: LedgerTables, how: str, leaves: Mapping[int, Leaf]) -> None:
    places = sorted(place for place, leaf in leaves.items() if not leaf.is_erased)
    if not places:
        return
    for stored in await tables.bundles_at(places):
        first, end = stored.first, stored.first + stored.bundle.size
        held = places[bisect_left(places, first) : bisect_left(places, end)]
        at = [place - first for place in held]
        await tables.rewrite(stored, at, keeps_names=how == ERASED)
    await tables.append(entry_bundle(Removed(how, ranges_of(places), _now())))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
