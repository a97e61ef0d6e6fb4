"""The stored values that verification compares with their leaves."""

from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from async_history._core.ledger.asked import Answer, Asked
from async_history._core.ledger.leaves import (
    BEGUN,
    ENDED,
    OWNER,
    RECORD,
    REST,
    Bundle,
    Leaf,
    held_at,
)
from async_history._core.ledger.new_leaves import MOST_CHARACTERS, MOST_LEAVES
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.stored import (
    Counts,
    StoredBundle,
    StoredOperation,
    StoredRecord,
    lines_of,
)
from async_history._core.ledger.tables import LedgerTables
from async_history.errors import StorageCorrupt


@dataclass(frozen=True, slots=True)
class SeenLeaves:
    """Leaves from a place on, with the stored values."""

    first: int
    leaves: Sequence[Leaf]
    records: Mapping[str, StoredRecord]
    owners: Mapping[str, Sequence[Any]]
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
    stored: Sequence[StoredBundle], removals: Removals, counted: Counts, tables: LedgerTables
) -> AsyncGenerator[tuple[StoredBundle, WholeBundle | SeenLeaves], None]:
    """Yield bundles with their stored values, in order.

    Usually all values match, which is checked at once. A server reads the next values while the
    caller processes a bundle. Close the generator.

    Args:
        counted: lines are not read if some records do not have the owner of their memory, because
            they do not tell which.

    Raises:
        StorageCorrupt: the next bundle is damaged.
        KeyMissing: as `LedgerTables.require_key`.
    """
    if any(one.bundle.has_keyed_salts for one in stored):
        await tables.require_key()
    untouched = list(_untouched(stored, removals))
    has_lines = tables.has_lines and not counted.disowned
    ways = {RECORD: _BY_LINES if has_lines else _BY_ROWS, REST: _BY_ROWS, OWNER: _OWNERS}
    of_kinds = ([one for one in untouched if one.bundle.kind == kind] for kind in ways)
    all_groups = (group for bundles in of_kinds for group in _groups(bundles))
    groups = deque(sorted(all_groups, key=lambda group: group[0].first))
    used: deque[_Way] = deque()
    whole: dict[int, WholeBundle] = {}
    with closing(tables.ask(_asked(tuple(groups), ways, used, tables))) as answers:
        for one in stored:
            while groups and groups[0][0].first <= one.first:
                group, answer = groups.popleft(), next(answers)
                found = await used.popleft().whole(group, answer, tables)
                if found is None:
                    ways[RECORD] = _BY_ROWS
                    found = await _whole_by_rows(group, None, tables)
                whole |= found
            page = whole.pop(one.first, None)
            yield one, page or await seen(one.first, one.bundle.leaves(), tables)


def _asked(
    groups: Iterable[Sequence["_Untouched"]],
    ways: Mapping[str, "_Way"],
    used: "deque[_Way]",
    tables: LedgerTables,
) -> Iterator[Asked]:
    """Yield the statement for each group in the way that its kind is read by then; note the way."""
    for group in groups:
        way = ways[group[0].bundle.kind]
        used.append(way)
        yield way.ask(tables, _names_in(group))


class _Untouched(NamedTuple):
    """A bundle without removed leaves: its place, the bundle, and the names of its leaves."""

    first: int
    bundle: Bundle
    names: Sequence[str]


def _untouched(stored: Sequence[StoredBundle], removals: Removals) -> Iterator[_Untouched]:
    for first, _, _, bundle in stored:
        try:
            leaf_names = bundle.leaf_names()
        except StorageCorrupt:
            continue  # raised again when it is its turn
        names = [name for name in leaf_names if name is not None]
        if len(names) == len(leaf_names) and not removals.touch(first, first + bundle.size):
            yield _Untouched(first, bundle, names)


async def _whole_by_lines(
    group: Sequence[_Untouched], asked: Answer, tables: LedgerTables
) -> dict[int, WholeBundle] | None:
    """Return the bundles whose records all match, by place.

    None if some records are missing, or far from the others in the order of recording. Then many
    processes recorded at the same time, and the next ones are likely to be far from each other too.
    """
    there = lines_of(await asked, _names_in(group))
    if there is None:
        return None
    whole: dict[int, WholeBundle] = {}
    begin = 0
    for first, bundle, names in group:
        part = slice(begin, begin + len(names))
        if bundle.holds_lines(there.lines[part], tables.key):
            whole[first] = WholeBundle(first, names, RECORD, there.positions[part])
        begin = part.stop
    return whole


async def _whole_by_rows(
    group: Sequence[_Untouched], asked: Answer | None, tables: LedgerTables
) -> dict[int, WholeBundle]:
    """Return the bundles whose records all match, by place."""
    whole: dict[int, WholeBundle] = {}
    names_in_group, begin = _names_in(group), 0
    rows = await tables.record_rows(names_in_group, asked)
    all_there = rows.of(names_in_group)
    for first, bundle, names in group:
        end = begin + len(names)
        there = rows.of(names) if all_there is None else all_there.part(begin, end)
        begin = end
        if there is not None and all(there.have_owner) and bundle.holds(there.values, tables.key):
            positions = there.positions if bundle.kind == RECORD else ()
            whole[first] = WholeBundle(first, names, bundle.kind, positions)
    return whole


async def _whole_of_owners(
    group: Sequence[_Untouched], asked: Answer, tables: LedgerTables
) -> dict[int, WholeBundle]:
    """Return the bundles whose owners all match, by place."""
    whole: dict[int, WholeBundle] = {}
    there = await tables.owner_rows(asked)
    for first, bundle, names in group:
        rows = [there[name] for name in names if name in there]
        if len(rows) == len(names) and bundle.holds(rows, tables.key):
            whole[first] = WholeBundle(first, names, OWNER, ())
    return whole


class _Way(NamedTuple):
    """How stored values are read: the statement for names, and the comparison of its answer.

    It returns None if the records have to be read by rows.
    """

    ask: Callable[[LedgerTables, Sequence[str]], Asked]
    whole: Callable[
        [Sequence[_Untouched], Answer, LedgerTables], Awaitable[dict[int, WholeBundle] | None]
    ]


_BY_LINES: Final = _Way(LedgerTables.for_lines, _whole_by_lines)
_BY_ROWS: Final = _Way(LedgerTables.for_rows, _whole_by_rows)
_OWNERS: Final = _Way(LedgerTables.for_owners, _whole_of_owners)


def _groups(bundles: Sequence[_Untouched]) -> Iterator[Sequence[_Untouched]]:
    """Yield bundles whose names one statement takes: a batch of one record is a bundle of its own.

    At least one bundle, and no more names than in a large one.
    """
    group: list[_Untouched] = []
    count = characters = 0
    for one in bundles:
        count += len(one.names)
        characters += len(one.bundle.names)
        if group and (count > MOST_LEAVES or characters > MOST_CHARACTERS):
            yield group
            group, count, characters = [], len(one.names), len(one.bundle.names)
        group.append(one)
    if group:
        yield group


def _names_in(group: Sequence[_Untouched]) -> list[str]:
    return [name for one in group for name in one.names]


async def seen(first: int, leaves: Sequence[Leaf], tables: LedgerTables) -> SeenLeaves:
    """Return leaves from a place on, with the stored values."""
    ids = _names(leaves, RECORD, REST)
    owned = _names(leaves, OWNER)
    logged = _names(leaves, BEGUN, ENDED)
    records = await tables.records(ids) if ids else {}
    owners = await _owner_rows(owned, tables) if owned else {}
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


async def _owner_rows(names: Sequence[str], tables: LedgerTables) -> dict[str, Sequence[Any]]:
    with closing(tables.ask([tables.for_owners(names)])) as answers:
        return await tables.owner_rows(next(answers))


def _values(
    kind: str,
    name: str,
    records: Mapping[str, StoredRecord],
    owners: Mapping[str, Sequence[Any]],
) -> Sequence[Any] | None:
    """Return the stored values of a leaf; None if they are not stored."""
    if kind == OWNER:
        return owners.get(name)
    if kind in (RECORD, REST):
        stored = records.get(name)
        return stored.values if stored is not None and stored.has_owner else None
    return None


def _names(leaves: Sequence[Leaf], *kinds: str) -> list[str]:
    return [leaf.name for leaf in leaves if leaf.kind in kinds and leaf.name is not None]
