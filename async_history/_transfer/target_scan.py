"""Scans a target for the records of a source, in order.

An owner is given once, by any record of a memory, and holds for all of them. So a row without an
owner is equal to one with its memory's owner. If only the target's row has none, a later row must
give it: see `check_owners`.
"""

from collections.abc import Sequence
from typing import Final

from async_history._core.manager import HistoryManager
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.records.owners import owner_text
from async_history._core.records.rows import ROW_FIELDS, Row
from async_history.errors import CopyMismatch

_MEMORY: Final = ROW_FIELDS.index("memory_id")
_OWNER: Final = ROW_FIELDS.index("owner")
ADVICE: Final = "copy into an empty history instead; nothing was removed from this one"
"""What to do about a target that differs."""


class TargetScan:
    """A scan of the target's records, in order, without those that are not in the source."""

    def __init__(self, target: HistoryManager, compared: int) -> None:
        self._target = target
        self._compared = compared
        self._page: Sequence[Row] = ()
        self._at = 0
        self._before_page: Cursor | None = None
        self._after: Cursor | None = None
        self._rewind_to: tuple[Cursor | None, str | None] = (None, None)
        self._out_of_order: str | None = None
        self._without_owner: dict[str, Row] = {}

    async def match(self, wanted: Sequence[Row]) -> list[Row]:
        """Scan until these rows are found, or to the current end; return those that were found.

        A returned row has its owner, also where only the source's or only the target's has it.
        Stops before a row that is out of order: see `check_order`.

        Raises:
            CopyMismatch: a row has other content in the target.
        """
        found: list[Row] = []
        self._out_of_order = None
        newest: int | None = None
        while len(found) < len(wanted) and self._out_of_order is None:
            if self._at == len(self._page):
                # Other programs may write faster than this reads.
                newest = newest or await self._target.store.primary_reader.newest()
                if newest is None or (self._after and self._after.position >= newest):
                    break
                if not await self._next_page():
                    break
            end = self._at + min(len(wanted) - len(found), len(self._page) - self._at)
            part = self._page[self._at : end]
            if part == wanted[len(found) : len(found) + len(part)]:
                found += part
                self._at = end
                self._rewind_to = (self._before_page, part[-1][0])
            else:
                self._match_one_by_one(wanted, found)
        return found

    def _match_one_by_one(self, wanted: Sequence[Row], found: list[Row]) -> None:
        to_come = {row[0] for row in wanted[len(found) :]}
        while len(found) < len(wanted) and self._at < len(self._page):
            row = self._page[self._at]
            if row[0] == wanted[len(found)][0]:
                found.append(self._same(row, wanted[len(found)]))
                self._rewind_to = (self._before_page, row[0])
            elif row[0] in to_come:
                self._out_of_order = row[0]
                break
            self._at += 1

    def _same(self, there: Row, here: Row) -> Row:
        """Return a row that source and target have, with the owner of either.

        Raises:
            CopyMismatch: another value differs, or both have an owner and these differ.
        """
        if there == here:
            return there
        owner = here[_OWNER] if there[_OWNER] is None else there[_OWNER]
        row = _with_owner(here, owner) if here[_OWNER] is None else here
        for name, ours, theirs in zip(ROW_FIELDS, _with_owner(there, owner), row, strict=True):
            if ours != theirs:
                raise _other_value(there, name)
        if there[_OWNER] is None and owner is not None:
            self._without_owner[row[_MEMORY]] = row
        return row

    async def check_owners(self) -> None:
        """Check that all memories now have the owners that were missing in the target.

        Raises:
            CopyMismatch: one has none.
        """
        reader = self._target.store.primary_reader
        for memory_id, row in self._without_owner.items():
            of_memory = Filter(memory_ids=(memory_id,))
            page = await reader.page(of_memory, None, 1, 1)
            if [owner_text(record.owner) for record in page.records] != [row[_OWNER]]:
                raise _other_value(row, "owner")

    def check_order(self, missed: Sequence[Row]) -> None:
        """Check that no row that `match` did not find is before the first of them.

        Raises:
            CopyMismatch: one is.
        """
        if self._out_of_order is not None:
            raise CopyMismatch(
                f"the target has the record {self._out_of_order} in another place than the source: "
                f"{missed[0][0]} is not before it; {ADVICE}"
            )

    async def _next_page(self) -> bool:
        """Read the next page; return whether there is one."""
        read = await self._target.store.primary_reader.rows(self._after, self._compared)
        self._before_page, self._after = self._after, read.cursor or self._after
        self._page = read.rows
        self._at = 0
        return bool(self._page)

    async def rewind(self) -> None:
        """Go back to the row after the last one that matched, and read again from there."""
        self._after, record_id = self._rewind_to
        self._page, self._at = [], 0
        while record_id is not None:
            if not await self._next_page():
                raise CopyMismatch(f"the record {record_id} was removed from the target meanwhile")
            ids = [row[0] for row in self._page]
            if record_id in ids:
                self._at = ids.index(record_id) + 1
                return


def _with_owner(row: Row, owner: str | None) -> Row:
    return *row[:_OWNER], owner, *row[_OWNER + 1 :]


def _other_value(row: Row, name: str) -> CopyMismatch:
    return CopyMismatch(f"the record {row[0]} has another {name} in the target; {ADVICE}")
