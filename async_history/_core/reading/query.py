"""Queries: the records of a filter, page by page."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from async_history._core.concurrency.yielding import after_record
from async_history._core.reading.cursors import Cursor, id_text
from async_history._core.reading.filters import Filter, Order
from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import Row
from async_history._core.validation import check_count, shown

PAGE_SIZE = 500
"""Default number of records per page: about a millisecond of the event loop's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some records in order, and the cursor that continues after them."""

    records: Sequence[HistoryRecord]
    """The page's records, up to `page_size`."""
    cursor: str | None
    """The cursor for `query_history(after=…)`.

    The last page's cursor continues with later records. It is None only if there has never been a
    record.
    """
    is_last: bool = False
    """Whether it is known that nothing more matched when this page was read."""


@dataclass(frozen=True, slots=True)
class PageRead:
    """A backend's page: matching records, the cursor after them, and whether it is the last page.

    If more was read, `rest` returns the next page, of up to the given number of records.
    """

    records: Sequence[HistoryRecord]
    cursor: Cursor | None
    is_last: bool
    rest: "Callable[[int], Awaitable[PageRead]] | None" = None


@dataclass(frozen=True, slots=True)
class RowsRead:
    """A backend's rows in the order of recording: ten columns each, as of `row_of`."""

    rows: Sequence[Row]
    cursor: Cursor | None
    is_last: bool


def cut(
    rows: Sequence[Any],
    record_from: Callable[[Any], HistoryRecord],
    position_of: Callable[[Any], int],
    is_last: bool,
    start: int,
    limit: int,
) -> PageRead:
    """Return rows from `start` as a page of up to `limit` records, with `rest` for the next page.

    A page that is not full is read again when it is needed: there may be more records by then.
    """
    end = start + limit
    part = rows[start:end]
    records = [record_from(row) for row in part]
    cursor = Cursor(position_of(part[-1]), id_text(records[-1].id)) if records else None
    if len(rows) - end < limit:
        return PageRead(records, cursor, is_last=is_last and len(part) == len(rows) < limit)

    async def rest(size: int) -> PageRead:
        return cut(rows, record_from, position_of, is_last, end, size)

    return PageRead(records, cursor, is_last=False, rest=rest)


_MOST_PAGES_AHEAD: Final = 32

ReadPage = Callable[[Filter, Cursor | None, int, int], Awaitable[PageRead]]
"""Reads a page after a cursor: up to so many records, and up to so many rows at once."""
NextCursor = Callable[[int, Order], Awaitable[Cursor | None]]
"""Returns the first record at a position or beyond it, in an order; None if there is none."""
_LOWEST: Final = -(1 << 63)
_HIGHEST: Final = (1 << 63) - 1


def bounded_reads(read_page: ReadPage, next_cursor: NextCursor, scan_size: int) -> ReadPage:
    """Return a `read_page` that looks at up to about `scan_size` records for each page.

    A page that has fewer matches than asked for ends at the last record that was looked at.
    """

    async def read(wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        order = wanted.order
        is_oldest = order == "oldest"
        begin = after or await next_cursor(_LOWEST if is_oldest else _HIGHEST, order)
        if begin is None:
            return PageRead([], None, is_last=True)
        if is_oldest:
            through = min(begin.position + scan_size, _HIGHEST)
        else:
            through = max(begin.position - scan_size, _LOWEST)
        end = await next_cursor(through, order)
        if end is None or end.position == begin.position:
            return await read_page(wanted, after, limit, ahead)
        bounded = replace(wanted, through=end.position)
        return _through(end, await read_page(bounded, after, limit, ahead))

    return read


def _through(end: Cursor, found: PageRead) -> PageRead:
    """Return a page of the records through a position, which more may follow."""
    if found.is_last:
        return replace(found, cursor=end, is_last=False)
    read_rest = found.rest
    if read_rest is None:
        return found

    async def rest(size: int) -> PageRead:
        return _through(end, await read_rest(size))

    return replace(found, rest=rest)


class HistoryQuery:
    """Records that match a filter. Iterate over them, or over their pages.

    No connection is held between pages, so a slow consumer does not block others. Records added
    during the iteration are included if they come after the current page.
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
        # Each read looks up all of the memories. So the more memories there are, the more of their
        # records are read at once.
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
        """Yield pages of up to `page_size` records, and at most `limit` records in total.

        Raises:
            CursorGone: the cursor's record is no longer there.
        """
        after = self._after
        rest: Callable[[int], Awaitable[PageRead]] | None = None
        ahead = self._page_size
        left: float = math.inf if self._limit is None else self._limit
        while left:
            size = int(min(self._page_size, left))
            if rest is not None:
                read = await rest(size)
            else:
                read = await self._read_page(self._filter, after, size, int(min(ahead, left)))
                ahead = min(2 * ahead, self._most_ahead)
            rest = read.rest
            after = read.cursor or after
            left -= len(read.records)
            cursor = None if after is None else str(after)
            yield Page(records=read.records, cursor=cursor, is_last=read.is_last)
            if read.is_last:
                return


def new_query(
    read_page: ReadPage,
    next_cursor: NextCursor,
    wanted: Filter,
    *,
    after: str | None,
    limit: int | None,
    page_size: int,
    scan_size: int | None,
) -> HistoryQuery:
    """Check the cursor and the paging of a query.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    check_count("page_size", page_size, least=1)
    if limit is not None:
        check_count("limit", limit)
    if scan_size is not None:
        check_count("scan_size", scan_size, least=1)
        read_page = bounded_reads(read_page, next_cursor, scan_size)
    begin = None if after is None else Cursor.parse(after)
    return HistoryQuery(read_page, wanted, begin, limit, page_size)


async def memories_of(queries: Iterable[HistoryQuery]) -> list[str]:
    """Return the distinct memories of the queries' records. Only ids are kept."""
    found: dict[str, None] = {}
    for query in queries:
        async for page in query.pages():
            found.update((record.memory_id, None) for record in page.records)
    return list(found)
