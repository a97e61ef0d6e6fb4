"""The leaves that were removed by an erasure, a pruning or a reset, according to the entries."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from async_history._core.ledger.entries import removed_from
from async_history._core.ledger.tables import LedgerTables
from async_history.errors import StorageCorrupt


class Removals:
    """The removed leaves according to the entries, and how they were removed.

    Attributes:
        entries: the places of the bundles of entries.
        damaged: the places of entries that do not match their leaves, or that this library does not
            write.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, str]] = []
        self.entries: list[int] = []
        self.damaged: list[int] = []

    async def read(self, tables: LedgerTables) -> None:
        """Read all entries."""
        found: list[tuple[int, int, str]] = []
        self.damaged = []
        self.entries = []
        for stored in await tables.entries():
            place = stored.first
            self.entries.append(place)
            for leaf in stored.bundle.leaves():
                try:
                    removed = removed_from(leaf.name or "")
                except StorageCorrupt:
                    self.damaged.append(place)
                    continue
                if not leaf.holds([leaf.name]):
                    self.damaged.append(place)
                found += [(a, min(b, place), removed.how) for a, b in removed.places if a < place]
        self._ranges = _flattened(found)

    def first_since(self, earlier: "Removals") -> int | None:
        """Return the place of the first entry that removals read earlier do not have, if any."""
        return min(set(self.entries).difference(earlier.entries), default=None)

    def touch(self, first: int, end: int) -> bool:
        """Return whether a leaf of a range was removed."""
        at = bisect_right(self._ranges, (end - 1, 1 << 63, "")) - 1
        return at >= 0 and self._ranges[at][1] > first

    def at(self, place: int) -> str | None:
        """Return how the leaf at a place was removed; None if it was not."""
        at = bisect_right(self._ranges, (place, 1 << 63, "")) - 1
        if at < 0:
            return None
        first, end, how = self._ranges[at]
        return how if first <= place < end else None


def _flattened(found: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return ranges that don't overlap; where given ones overlap, the first counts."""
    bounds = sorted({bound for first, end, _ in found for bound in (first, end)})
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for order, (first, end, _) in enumerate(found):
        starts.setdefault(first, []).append(order)
        ends.setdefault(end, []).append(order)
    flat: list[tuple[int, int, str]] = []
    active: set[int] = set()
    for first, end in pairwise(bounds):
        active.difference_update(ends.get(first, ()))
        active.update(starts.get(first, ()))
        if active:
            flat.append((first, end, found[min(active)][2]))
    return flat
