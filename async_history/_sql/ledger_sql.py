"""The ledger's statements through SQLAlchemy: see `LedgerStatements` for their parameters.

Each function executes one statement, or several if a list is too long for one.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from async_history._core.ledger.statements import LedgerStatements
from async_history._core.records.owners import SCOPES, owner_text
from async_history._sql.dialects import in_parts
from async_history._sql.names import key_of, keys_of, whole_names
from async_history._sql.rows import ALL_COLUMNS, columns_read, owner_of
from async_history._sql.tables import Tables
from async_history.errors import StorageCorrupt

Fetch = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""Executes a statement, with parameters or without, and returns its rows."""

_OWNER_COLUMNS: Final = ("memory_id", *SCOPES)
_COLUMNS: Final = len(ALL_COLUMNS)
_TEN: Final = slice(1, 11)
_SCOPES: Final = slice(12, 16)
_DETAILS: Final = slice(16, 18)


@lru_cache(64)
def statements_in(tables: Tables) -> LedgerStatements:
    """Return the statements of the ledger's tables."""
    leaves, tree, of_store = _LeafStatements(tables), _TreeStatements(tables), _OfStore(tables)
    return LedgerStatements(
        lock=leaves.lock,
        has_key_tables=None,
        is_encrypted=of_store.is_encrypted,
        size=leaves.size,
        append=leaves.append,
        waiting=leaves.waiting,
        place=leaves.place,
        rewrite=leaves.rewrite,
        leaf_count=None,
        rewrite_all=None,
        bundles=leaves.bundles,
        bundles_at=leaves.bundles_at,
        entries=leaves.entries,
        tiles=tree.tiles,
        write_tile=tree.write_tile,
        names=tree.names,
        write_names=tree.write_names,
        remove_names=tree.remove_names,
        records=of_store.records,
        lines=None,
        owners=of_store.owners,
        memories=of_store.memories,
        scan=None,
        record_count=of_store.record_count,
        owner_counts=of_store.owner_counts,
        record_ids=of_store.record_ids,
        operations=of_store.operations,
        operations_of=of_store.operations_of,
        operation_counts=of_store.operation_counts,
    )


class _LeafStatements:
    """The statements on the bundles of leaves."""

    def __init__(self, tables: Tables) -> None:
        ledger, state = tables.ledger, tables.state
        c = ledger.c
        parts = (c.kind, c.size, c.hashes, c.is_keyed, c.names)
        # Writers lock the row of `state`, so a new bundle comes after all bundles with a place.
        bundles = select(c.first, c.first, c.first, *parts)
        self._lock = update(state).where(state.c.id == 1).values(last=state.c.last)
        self._size = (
            select(c.first + c.size).where(c.first.is_not(None)).order_by(c.first.desc()).limit(1)
        )
        self._append = insert(ledger).inline()
        self._sizes = select(c.number, c.size).where(c.first.is_(None)).order_by(c.number)
        self._waiting = select(c.number, *parts).order_by(c.number)
        self._place = update(ledger)
        self._rewrite = update(ledger).where(c.first == bindparam("at"))
        self._bundles = bundles.order_by(c.first).where(
            c.first >= bindparam("at"), c.first < bindparam("end")
        )
        self._bundle_at = bundles.order_by(c.first.desc()).where(c.first <= bindparam("at"))
        self._entries = (
            bundles.order_by(c.first).where(c.kind == "entry").where(c.first.is_not(None))
        )
        self._columns = c

    async def lock(self, fetch: Fetch) -> Sequence[Any]:
        return await fetch(self._lock)

    async def size(self, fetch: Fetch) -> Sequence[Any]:
        return await fetch(self._size) or [(0,)]

    async def append(
        self, fetch: Fetch, kind: str, size: int, hashes: bytes, is_keyed: bool, names: str
    ) -> Sequence[Any]:
        row = {
            "kind": kind,
            "size": size,
            "hashes": hashes,
            "is_keyed": int(is_keyed),
            "names": names,
        }
        return await fetch(self._append, row)

    async def waiting(self, fetch: Fetch, most: int, enough: int) -> Sequence[Any]:
        numbers: list[int] = []
        leaves = 0
        for number, size in await fetch(self._sizes.limit(most)):
            if leaves >= enough:
                break
            numbers.append(number)
            leaves += size
        return await fetch(self._waiting.where(self._columns.number.in_(numbers)))

    async def place(self, fetch: Fetch, pairs: str) -> Sequence[Any]:
        firsts = {number: literal(first, BigInteger) for number, first in json.loads(pairs)}
        number = self._columns.number
        first = case(firsts, value=number)
        return await fetch(self._place.where(number.in_(firsts)).values(first=first))

    async def rewrite(self, fetch: Fetch, hashes: bytes, names: str, first: int) -> Sequence[Any]:
        return await fetch(self._rewrite.values(hashes=hashes, names=names), {"at": first})

    async def bundles(self, fetch: Fetch, first: int, end: int) -> Sequence[Any]:
        return await fetch(self._bundles, {"at": first, "end": end})

    async def bundles_at(self, fetch: Fetch, places: str) -> Sequence[Any]:
        found: list[Any] = []
        end = 0
        for place in sorted(json.loads(places)):
            if place < end:
                continue
            for row in await fetch(self._bundle_at.limit(1), {"at": place}):
                if not found or found[-1][0] != row[0]:
                    found.append(row)
                end = row[0] + row[4]
        return found

    async def entries(self, fetch: Fetch) -> Sequence[Any]:
        return await fetch(self._entries)


class _TreeStatements:
    """The statements on the tree's tiles, and on the names of leaves."""

    def __init__(self, tables: Tables) -> None:
        tiles, names = tables.ledger_tiles, tables.ledger_names
        self._tile_columns, self._name_columns = tiles.c, names.c
        self._tiles = select(*tiles.c)
        self._remove_tile = delete(tiles).where(
            tiles.c.level == bindparam("at_level"), tiles.c.number == bindparam("at_number")
        )
        self._add_tile = insert(tiles)
        self._names = select(*names.c)
        self._add_names = insert(names)
        self._remove_names = delete(names)

    async def tiles(self, fetch: Fetch, pairs: str) -> Sequence[Any]:
        by_level: dict[int, list[int]] = {}
        for level, number in json.loads(pairs):
            by_level.setdefault(level, []).append(number)
        c = self._tile_columns
        return [
            row
            for level, numbers in by_level.items()
            for part in in_parts(numbers)
            for row in await fetch(self._tiles.where(c.level == level, c.number.in_(part)))
        ]

    async def write_tile(
        self, fetch: Fetch, level: int, number: int, hashes: bytes
    ) -> Sequence[Any]:
        await fetch(self._remove_tile, {"at_level": level, "at_number": number})
        return await fetch(self._add_tile, {"level": level, "number": number, "hashes": hashes})

    async def names(self, fetch: Fetch, keys: str) -> Sequence[Any]:
        found: list[Any] = []
        for part in in_parts(json.loads(keys)):
            found += await fetch(self._names.where(self._name_columns.key.in_(part)))
        return found

    async def write_names(self, fetch: Fetch, pairs: str) -> Sequence[Any]:
        for part in in_parts(json.loads(pairs)):
            await fetch(self._add_names, [{"key": key, "place": place} for key, place in part])
        return ()

    async def remove_names(self, fetch: Fetch, pairs: str) -> Sequence[Any]:
        c = self._name_columns
        for part in in_parts(json.loads(pairs)):
            keys, places = zip(*part, strict=True)
            # `+ 0` keeps the place out of the look-up, which would try each key with each place.
            of_places = (c.place + 0).in_(places)
            await fetch(self._remove_names.where(c.key.in_(keys), of_places))
        return ()


class _OfStore:
    """The statements on what leaves commit to: records, owners and operations."""

    def __init__(self, tables: Tables) -> None:
        history, owners, log = tables.history, tables.owners, tables.operations
        scopes = [owners.c[name] for name in SCOPES]
        self._history, self._owner, self._log = history.c, owners.c, log.c
        self._records = select(
            *columns_read(tables), owners.c.memory_id, *scopes, owners.c.long_names
        ).select_from(history.outerjoin(owners, owners.c.memory_id == history.c.memory_id))
        self._owners = select(owners.c.memory_id, *scopes, owners.c.long_names)
        self._memories = select(history.c.memory_id).distinct()
        self._record_count = select(func.count()).select_from(history)
        is_owned = or_(*(column.is_not(None) for column in scopes))
        self._owner_count = select(func.count()).select_from(owners).where(is_owned)
        self._bare_owner_count = select(func.count(func.distinct(history.c.memory_id))).where(
            or_(*(history.c[name].is_not(None) for name in SCOPES)),
            ~exists().where(owners.c.memory_id == history.c.memory_id),
        )
        self._record_ids = (
            select(history.c.seq, history.c.id, history.c.long_names)
            .where(history.c.seq >= bindparam("first"))
            .order_by(history.c.seq)
        )
        names = ("id", "kind", "begun_at", "actor_id", "process_id", "host", "database_role")
        ends = ("arguments", "ended_at", "error", "records", "messages")
        self._operations = select(*(log.c[name] for name in (*names, *ends)))
        self._actors = select(log.c.id, log.c.actor_id).where(log.c.actor_id.is_not(None))
        self._keys = select(tables.wrapping_keys.c.id).limit(1)
        self._operation_counts = select(func.count(), func.count(log.c.ended_at)).select_from(log)

    async def is_encrypted(self, fetch: Fetch) -> Sequence[Any]:
        return [(bool(await fetch(self._keys)),)]

    async def records(self, fetch: Fetch, ids: str) -> Sequence[Any]:
        return [
            _record(row)
            for part in in_parts(keys_of(json.loads(ids)))
            for row in await fetch(self._records.where(self._history.id.in_(part)))
        ]

    async def owners(self, fetch: Fetch, memory_ids: str) -> Sequence[Any]:
        rows = [
            _whole(row[:-1], _OWNER_COLUMNS, row[-1])
            for part in in_parts(keys_of(json.loads(memory_ids)))
            for row in await fetch(self._owners.where(self._owner.memory_id.in_(part)))
        ]
        return [(row[0], owner_text(owner_of(row[1:]))) for row in rows]

    async def memories(self, fetch: Fetch, memory_ids: str) -> Sequence[Any]:
        names = {key_of(name): name for name in json.loads(memory_ids)}
        return [
            (names[key],)
            for part in in_parts(names)
            for (key,) in await fetch(self._memories.where(self._history.memory_id.in_(part)))
        ]

    async def record_count(self, fetch: Fetch) -> Sequence[Any]:
        return await fetch(self._record_count)

    async def owner_counts(self, fetch: Fetch) -> Sequence[Any]:
        ((owned,),) = await fetch(self._owner_count)
        ((bare,),) = await fetch(self._bare_owner_count)
        return [(owned + bare,)]

    async def record_ids(self, fetch: Fetch, first: int, limit: int) -> Sequence[Any]:
        rows = await fetch(self._record_ids.limit(limit), {"first": first})
        return [(seq, *_whole((key,), ("id",), stored)) for seq, key, stored in rows]

    async def operations(self, fetch: Fetch, ids: str) -> Sequence[Any]:
        return [
            row
            for part in in_parts(json.loads(ids))
            for row in await fetch(self._operations.where(self._log.id.in_(part)))
        ]

    async def operations_of(self, fetch: Fetch, actor_id: str) -> Sequence[Any]:
        # Compared here, because the database's comparison may ignore case.
        return [row[:1] for row in await fetch(self._actors) if row[1] == actor_id]

    async def operation_counts(self, fetch: Fetch) -> Sequence[Any]:
        return await fetch(self._operation_counts)


def _record(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return a record's position, whether it has its memory's owner, and the values of its leaf."""
    record = _whole(row[: _COLUMNS - 1], ALL_COLUMNS[:-1], row[_COLUMNS - 1])
    memory_id, *scopes = _whole(row[_COLUMNS:-1], _OWNER_COLUMNS, row[-1])
    has_owner = memory_id is None or scopes == list(record[_SCOPES])
    return record[0], has_owner, *record[_TEN], *record[_DETAILS]


def _whole(row: Sequence[Any], columns: Sequence[str], stored: str | None) -> Sequence[Any]:
    """Return a row with its long names. If they are damaged, return it as stored, which differs
    from what was recorded."""
    if stored is None:
        return row
    try:
        return whole_names(row, columns, stored)
    except StorageCorrupt:
        return row
