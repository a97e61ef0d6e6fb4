"""Asks for the records of a filter, page by page."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.cursors import Cursor
from async_history._core.filters import Filter
from async_history._core.records import HistoryRecord
from async_history._core.rows import Row
from async_history._core.validation import check_count, shown
from async_history._core.yielding import after_record

PAGE_SIZE = 500
"""Default records of a page: about a millisecond of the event loop's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some records in order, and the cursor that continues after them."""

    records: Sequence[HistoryRecord]
    """The page's records, up to `page_size`."""
    cursor: str | None
    """What `query_history(after=…)` takes to continue.

    That of the last page continues with what is recorded later. It is None only where nothing was
    ever there to continue after.
    """


@dataclass(frozen=True, slots=True)
class PageRead:
    """What a backend found: matching records, the last place it looked at, and whether it ended.

    `rest` returns the next page, of up to as many records as it is given, where that page was
    read already.
    """

    records: Sequence[HistoryRecord]
    place: Cursor | None
    is_last: bool
    rest: "Callable[[int], Awaitable[PageRead]] | None" = None


@dataclass(frozen=True, slots=True)
class RowsRead:
    """What a backend found in the order of recording: ten columns each, as `row_of` a record."""

    rows: Sequence[Row]
    place: Cursor | None
    is_last: bool


def cut(
    rows: Sequence[Any],
    record_from: Callable[[Any], HistoryRecord],
    position_of: Callable[[Any], int],
    is_last: bool,
    start: int,
    limit: int,
) -> PageRead:
    """Return rows from `start` as a page of up to `limit` records, and what gives the next page.

    A page that is not full is read again when its turn comes: more may be there by then.
    """
    end = start + limit
    part = rows[start:end]
    records = [record_from(row) for row in part]
    place = Cursor(position_of(part[-1]), records[-1].id) if records else None
    if len(rows) - end < limit:
        return PageRead(records, place, is_last=is_last and len(part) == len(rows) < limit)

    async def rest(size: int) -> PageRead:
        return cut(rows, record_from, position_of, is_last, end, size)

    return PageRead(records, place, is_last=False, rest=rest)


_MOST_PAGES_AHEAD: Final = 32

ReadPage = Callable[[Filter, Cursor | None, int, int], Awaitable[PageRead]]
"""Read a page of a filter after a place, of up to so many records; and how many rows at once."""


class HistoryQuery:
    """Records that match a filter: iterate over them, or over their pages.

    No connection is held between pages, so a slow consumer holds nothing up. Records that are added
    meanwhile are seen if they come after the page being read.
    """

    def __init__(
        self,
        read_page: ReadPage,
        wanted: Filter,
        after: Cursor | None,
        limit: int | None,
        page_size: int,
    ) -> None:
        self._read_page = read_page
        self._filter = wanted
        self._after = after
        self._limit = limit
        self._page_size = page_size
        # To find the next records of several memories all of these are looked up each time: the
        # more there are, the more of their records are read at once.
        named = len(wanted.memory_ids or ())
        self._most_ahead = max(page_size * _MOST_PAGES_AHEAD, named) if named > 1 else page_size

    def __repr__(self) -> str:
        asked = {name: getattr(self._filter, name) for name in self._filter.__slots__}
        asked |= {name: dict(asked[name]) or None for name in ("owner", "cause")}
        asked |= {"after": self._after and str(self._after), "limit": self._limit}
        said = [f"{name}={shown(value)}" for name, value in asked.items() if value is not None]
        return f"<HistoryQuery {' '.join(said)}>"

    async def __aiter__(self) -> AsyncIterator[HistoryRecord]:
        async for page in self.pages():
            for index, record in enumerate(page.records):
                yield record
                await after_record(index)

    async def pages(self) -> AsyncIterator[Page]:
        """Yield pages of up to `page_size` records, and of no more than `limit` in all.

        Raises:
            CursorGone: the record after which to continue is no longer there.
        """
        place = self._after
        rest: Callable[[int], Awaitable[PageRead]] | None = None
        ahead = self._page_size
        left: float = math.inf if self._limit is None else self._limit
        while left:
            size = int(min(self._page_size, left))
            if rest is not None:
                read = await rest(size)
            else:
                read = await self._read_page(self._filter, place, size, int(min(ahead, left)))
                ahead = min(2 * ahead, self._most_ahead)
            rest = read.rest
            place = read.place or place
            left -= len(read.records)
            cursor = None if place is None else str(place)
            yield Page(records=read.records, cursor=cursor)
            if read.is_last:
                return


def new_query(
    read_page: ReadPage, wanted: Filter, *, after: str | None, limit: int | None, page_size: int
) -> HistoryQuery:
    """Check where a query begins and how it is paged.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    check_count("page_size", page_size, least=1)
    if limit is not None:
        check_count("limit", limit)
    place = None if after is None else Cursor.parse(after)
    return HistoryQuery(read_page, wanted, place, limit, page_size)
