"""Scans a target for the records of a source, in order."""

from collections.abc import Sequence
from typing import Final

from async_history._core.cursors import Cursor
from async_history._core.manager import HistoryManager
from async_history._core.rows import ROW_FIELDS, Row
from async_history.errors import CopyMismatch

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

    async def match(self, wanted: Sequence[Row]) -> int:
        """Scan until these rows are found, or to the current end; return how many were found.

        Stops before a row that is out of order: see `check_order`.

        Raises:
            CopyMismatch: a row has other content in the target.
        """
        matched = 0
        self._out_of_order = None
        newest: int | None = None
        while matched < len(wanted) and self._out_of_order is None:
            if self._at == len(self._page):
                # Other programs may write faster than this reads.
                newest = newest or await self._target.store.primary_reader.newest()
                if newest is None or (self._after and self._after.position >= newest):
                    break
                if not await self._next_page():
                    break
            end = self._at + min(len(wanted) - matched, len(self._page) - self._at)
            if self._page[self._at : end] == wanted[matched : matched + end - self._at]:
                matched += end - self._at
                self._at = end
                self._rewind_to = (self._before_page, wanted[matched - 1][0])
            else:
                matched = self._match_one_by_one(wanted, matched)
        return matched

    def _match_one_by_one(self, wanted: Sequence[Row], matched: int) -> int:
        to_come = {row[0] for row in wanted[matched:]}
        while matched < len(wanted) and self._at < len(self._page):
            row = self._page[self._at]
            if row == wanted[matched]:
                matched += 1
                self._rewind_to = (self._before_page, row[0])
            elif row[0] == wanted[matched][0]:
                column = next(
                    name
                    for name, there, here in zip(ROW_FIELDS, row, wanted[matched], strict=True)
                    if there != here
                )
                raise CopyMismatch(
                    f"the record {row[0]} has another {column} in the target; {ADVICE}"
                )
            elif row[0] in to_come:
                self._out_of_order = row[0]
                break
            self._at += 1
        return matched

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
