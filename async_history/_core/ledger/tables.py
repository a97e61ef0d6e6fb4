"""The ledger's tables inside a transaction, the same for every database.

A batch's leaves are written with the batch, without a place. The next process that needs the tree
assigns their places, in commit order, under a lock. On most databases no writer waits for it.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Sequence,
)
from typing import Any, Final, TypeVar

from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.ledger.asked import Answer, Asked, Run, ask_ahead
from async_history._core.ledger.entries import joined
from async_history._core.ledger.leaves import OWNER, RECORD, REST, Bundle, Leaf, rewritten
from async_history._core.ledger.placing import key_of, named_as, placed
from async_history._core.ledger.statements import LedgerStatements
from async_history._core.ledger.stored import (
    BYTES,
    Counts,
    RecordRows,
    StoredBundle,
    StoredOperation,
    StoredRecord,
    bundle_of,
    record_values,
    stored_bundle,
    stored_owner,
)
from async_history._core.ledger.tiles import Tile, grown, last_tiles, roots_from, tiles_of
from async_history._core.ledger.tree import Range
from async_history._core.records.owners import Owner, owner_from_text
from async_history._core.records.rows import ReadRows, Row
from async_history.errors import KeyMissing, StorageCorrupt

T = TypeVar("T")

_PLACED_AT_ONCE: Final = 8_192
"""Leaves to which one transaction assigns places, in some 30 ms."""
_BUNDLES_AT_ONCE: Final = 256
_ALL: Final = (1 << 31) - 1
_LINES_EACH: Final = 2
"""Lines that are read at most for each record: those of other leaves may be between them."""
_BEGUN: Final = 8
"""Columns of an operation that are known when it begins."""
READ_AT_ONCE: Final = 16_384
"""Leaves that are read at once, in about 100 ms, and at most 511 more. A store in memory writes
nothing meanwhile."""

OpenRows = Callable[[ReadRows], Awaitable[Sequence[Row]]]
"""A function that reads rows and returns them with texts in clear; a row that does not open, as
stored."""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class LedgerTables:
    """The ledger's tables, read and written with a database's statements.

    Args:
        run: runs one statement. If anything is written, all run in one transaction.
        open_rows: decrypts the rows of an encrypted store.

    Attributes:
        key: the key of the salts; None if the store is not encrypted.
    """

    def __init__(
        self, statements: LedgerStatements, run: Run, open_rows: OpenRows, key: bytes | None
    ) -> None:
        self._sql = statements
        self._run = run
        self._open_rows = open_rows
        self.key: Final = key

    # Reading

    async def require_key(self) -> None:
        """Check that texts and keyed salts can be opened.

        Raises:
            KeyMissing: the store was opened without keys, and has been encrypted since.
        """
        if self.key is not None:
            return
        if self._sql.has_key_tables is not None:
            ((has_key_tables,),) = await self._run(self._sql.has_key_tables)
            if not has_key_tables:
                return
        ((is_encrypted,),) = await self._run(self._sql.is_encrypted)
        if is_encrypted:
            raise KeyMissing("", f"the history {OPEN_WITH_KEYS}")

    async def size(self) -> int:
        """Return the number of leaves with a place.

        Raises:
            StorageCorrupt: the last bundle is damaged: it would be a negative number.
        """
        ((size,),) = await self._run(self._sql.size)
        if int(size) < 0:
            raise StorageCorrupt("the last leaves of the ledger are damaged")
        return int(size)

    async def counted_size(self) -> int:
        """Return the size, after comparing it with the number of leaves if that can be counted.

        Raises:
            StorageCorrupt: as `size`, or they differ.
        """
        size = await self.size()
        if self._sql.leaf_count is not None:
            ((count,),) = await self._run(self._sql.leaf_count)
            if count != size:
                raise StorageCorrupt(
                    f"the ledger should have {size:,} leaves, and has {count:,}: verify it"
                )
        return size

    async def checked_size(self) -> int:
        """Return the size, after reading all leaves.

        Raises:
            StorageCorrupt: as `size`, or leaves are missing, or do not have the form of leaves.
        """
        size = await self.size()
        async for _ in self._whole(size):
            pass
        return size

    async def bundles(self, first: int) -> list[StoredBundle]:
        """Return the next bundles from a place on, which is the first place of one."""
        rows = await self._run(self._sql.bundles, first, first + READ_AT_ONCE)
        return [stored_bundle(row) for row in rows]

    async def entries(self) -> list[StoredBundle]:
        """Return all entries, in order."""
        return [stored_bundle(row) for row in await self._run(self._sql.entries)]

    async def tiles(self, wanted: Collection[Tile]) -> dict[Tile, bytes]:
        """Return those of these tiles that exist."""
        if not wanted:
            return {}
        rows = await self._run(self._sql.tiles, _json(sorted(wanted)))
        return {
            (level, number): bytes(hashes)
            for level, number, hashes in rows
            if isinstance(hashes, BYTES)  # else it is as if it were missing
        }

    async def roots(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the roots of ranges of the tree.

        Raises:
            StorageCorrupt: tiles are missing or damaged.
        """
        tiles = await self.tiles(tiles_of(ranges))
        try:
            return roots_from(ranges, tiles)
        except (KeyError, IndexError) as error:
            raise StorageCorrupt("the ledger's tree is damaged: verify it") from error

    async def places(self, kind: str, names: Iterable[str]) -> list[int]:
        """Return the places that leaves with these names may have."""
        keys = [key_of(kind, name) for name in names]
        return [place for _, place in await self._run(self._sql.names, _json(keys))]

    async def leaves(self, places: Iterable[int]) -> dict[int, Leaf]:
        """Return the leaves at some places, by place; missing ones are left out."""
        asked = sorted(set(places))
        if not asked:
            return {}
        found: dict[int, Leaf] = {}
        for stored in await self.bundles_at(asked):
            first, size = stored.first, stored.bundle.size
            places = asked[bisect_left(asked, first) : bisect_left(asked, first + size)]
            leaves = stored.bundle.leaves_at(place - first for place in places)
            found.update(zip(places, leaves, strict=True))
        return found

    async def bundles_at(self, places: Sequence[int]) -> list[StoredBundle]:
        """Return the bundles with these places."""
        return [
            stored_bundle(row) for row in await self._run(self._sql.bundles_at, _json(list(places)))
        ]

    async def leaves_of(self, kind: str, names: Iterable[str]) -> dict[int, Leaf]:
        """Return the leaves with these names, in order. RECORD includes rests of erased records."""
        wanted = set(names)
        found = await self.leaves(await self.places(kind, wanted))
        return {
            place: leaf
            for place, leaf in found.items()
            if named_as(leaf.kind) == kind and leaf.name in wanted
        }

    async def records(self, ids: Sequence[str]) -> dict[str, StoredRecord]:
        """Return those of these records that exist, by id.

        Raises:
            KeyMissing: as `require_key`: their texts can't be opened.
        """
        rows = await self.record_rows(ids)
        if rows.values:
            await self.require_key()
        return {
            values[0]: StoredRecord(position, bool(has_owner), record_values(values))
            for position, has_owner, values in zip(*rows, strict=True)
        }

    def ask(self, asked: Iterable[Asked]) -> Generator[Answer, None, None]:
        """Yield the answer to each of `for_rows`, `for_lines` or `for_owners`."""
        return ask_ahead(self._run, asked)

    def for_rows(self, ids: Sequence[str]) -> Asked:
        """Return the statement for the argument of `record_rows`."""
        return self._sql.records, _json(ids)

    def for_lines(self, ids: Sequence[str]) -> Asked:
        """Return the statement for the argument of `lines_of`."""
        return self._sql.lines, ids[0], ids[-1], _LINES_EACH * len(ids)

    def for_owners(self, memory_ids: Sequence[str]) -> Asked:
        """Return the statement for the argument of `owner_rows`."""
        return self._sql.owners, _json(memory_ids)

    @property
    def has_lines(self) -> bool:
        """Whether the database makes the lines of leaves: those of an encrypted store it can't."""
        return self._sql.lines is not None and self.key is None

    async def record_rows(self, ids: Sequence[str], asked: Answer | None = None) -> RecordRows:
        """Return the rows of those of these records that exist.

        Args:
            ids: of the records.
            asked: the answer of `ask` for them, if it was called.
        """
        rows: Sequence[Sequence[Any]] = ()

        async def read() -> list[Row]:
            nonlocal rows, asked
            rows, asked = await (asked or self._run(self._sql.records, _json(ids))), None
            return [tuple(row[2:]) for row in rows]

        values = await self._open_rows(read)
        return RecordRows([row[0] for row in rows], [row[1] for row in rows], values)

    async def ids_there(self, ids: Sequence[str]) -> list[str]:
        """Return the id of each record that has one of these ids. No text is decrypted."""
        return [row[2] for row in await self._run(self._sql.records, _json(ids))]

    async def operations(self, ids: Collection[str]) -> dict[str, StoredOperation]:
        """Return those of these operations that are in the log, by id."""
        rows = await self._run(self._sql.operations, _json(list(ids)))
        return {
            row[0]: StoredOperation(row[:_BEGUN], (row[0], *row[_BEGUN:]) if row[_BEGUN] else None)
            for row in map(tuple, rows)
        }

    async def operations_of(self, actor_id: str) -> list[str]:
        """Return the ids of an actor's operations."""
        return [row[0] for row in await self._run(self._sql.operations_of, actor_id)]

    async def owners(self, memory_ids: Collection[str]) -> dict[str, Owner]:
        """Return the owners of these memories, where they have one."""
        rows = await self._run(self._sql.owners, _json(list(memory_ids)))
        found = {memory_id: owner_from_text(text) for memory_id, text in rows}
        return {memory_id: owner for memory_id, owner in found.items() if owner is not None}

    async def owner_rows(self, asked: Answer) -> dict[str, Sequence[Any]]:
        """Return the values, as `stored_owner` does, of the owners that `ask` asked for, by memory.

        Memories without an owner are left out.
        """
        rows = [stored_owner(memory_id, text) for memory_id, text in await asked]
        return {row[0]: row for row in rows if any(row[1:])}

    async def memories(self, memory_ids: Collection[str]) -> set[str]:
        """Return those of these memories that have a record."""
        rows = await self._run(self._sql.memories, _json(list(memory_ids)))
        return {memory_id for (memory_id,) in rows}

    async def counts(self) -> Counts:
        """Return what verification compares with the number of leaves that it has found."""
        if self._sql.scan is not None:
            await self._run(self._sql.scan)
        ((records,),) = await self._run(self._sql.record_count)
        ((owners, *disowned),) = await self._run(self._sql.owner_counts)
        ((begun, ended),) = await self._run(self._sql.operation_counts)
        return Counts(int(records), int(owners), sum(map(int, disowned)), int(begun), int(ended))

    async def waiting(self) -> Counter[str]:
        """Return the number of leaves without a place, by kind."""
        kinds: Counter[str] = Counter()
        for _, kind, size, *_ in await self._run(self._sql.waiting, _ALL, _ALL):
            kinds[kind] += int(size)
        return kinds

    async def record_ids(self, first: int, limit: int) -> list[tuple[int, Any]]:
        """Return position and id of the next records from a position on."""
        return [(row[0], row[1]) for row in await self._run(self._sql.record_ids, first, limit)]

    # Writing

    async def append(self, bundle: Bundle) -> None:
        """Write leaves, whose places are assigned later."""
        await self._run(self._sql.append, *bundle)

    async def grow(self) -> bool:
        """Assign places to the next leaves; return whether more are waiting."""
        if self._sql.lock is not None:
            await self._run(self._sql.lock)
        rows = await self._run(self._sql.waiting, _BUNDLES_AT_ONCE, _PLACED_AT_ONCE)
        if not rows:
            return False
        size = await self.size()
        last = await self.tiles(last_tiles(size))
        places, names, hashes = placed(((row[0], bundle_of(row[1:])) for row in rows), size)
        await self._run(self._sql.place, _json(places))
        await self._run(self._sql.write_names, _json(names))
        for (level, number), tile in grown(size, last, b"".join(hashes)).items():
            await self._run(self._sql.write_tile, level, number, tile)
        return len(rows) == _BUNDLES_AT_ONCE or len(hashes) >= _PLACED_AT_ONCE

    async def grow_completely(self) -> int:
        """Assign places to all leaves; return the number of leaves."""
        while await self.grow():
            pass
        return await self.size()

    async def rewrite(
        self, stored: StoredBundle, at: Collection[int], *, keeps_names: bool
    ) -> None:
        """Remove the salts, and optionally the names, of some leaves of a bundle."""
        first, bundle = stored.first, stored.bundle
        if not keeps_names:
            names = bundle.leaf_names()
            named = [(place, names[place]) for place in at]
            keys = [(key_of(bundle.kind, n), first + place) for place, n in named if n is not None]
            await self._run(self._sql.remove_names, _json(keys))
        new = rewritten(bundle, at, keeps_names=keeps_names)
        await self._run(self._sql.rewrite, new.hashes, new.names, first)

    async def rewrite_all(self) -> list[Range]:
        """Remove the salts and names of all leaves of records and owners; return their places.

        Raises:
            StorageCorrupt: leaves are missing, or do not have the form of leaves.
        """
        size = await self.counted_size()
        if self._sql.rewrite_all is not None:
            rows = await self._run(self._sql.rewrite_all)
            return joined(sorted((first, first + held) for first, held in rows))
        places: list[Range] = []
        async for stored in self._whole(size):
            if stored.bundle.kind in (RECORD, REST, OWNER):
                await self.rewrite(stored, range(stored.bundle.size), keeps_names=False)
                places.append((stored.first, stored.first + stored.bundle.size))
        return joined(places)

    async def _whole(self, size: int) -> AsyncIterator[StoredBundle]:
        """Yield the bundles of the first `size` leaves, in order.

        Raises:
            StorageCorrupt: the next one is missing, or does not have the form of leaves.
        """
        place = 0
        while place < size:
            begin = place
            for stored in await self.bundles(place):
                if stored.first != place:
                    break  # the next page begins here
                place += len(stored.bundle.leaf_names())
                yield stored
            if place == begin:
                raise StorageCorrupt(
                    f"leaves of the ledger from {place:,} on are missing: verify it"
                )
