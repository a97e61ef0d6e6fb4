"""Queries read in parts, to bound the texts in memory. Parts grow as long as texts are short."""

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import repeat
from time import monotonic
from typing import Any, Final

from async_history._core.manager import HistoryManager
from async_history._core.reading.query import Page
from async_history._core.records.records import HistoryRecord
from async_history.web._reach import ViewLimits

_FIRST: Final = 2
_GROWTH: Final = 2
_SCAN_GROWTH: Final = 8


async def parts(
    history: HistoryManager,
    limits: ViewLimits,
    *,
    after: str | None,
    most: int,
    scan_sizes: Iterable[int | None] = repeat(None),
    **wanted: Any,
) -> AsyncIterator[Page]:
    """Yield the records of a query in order, as pages of up to `limits.part` records.

    A part is as large as `limits.page_chars` allows, if all its texts were as long as the longest
    one of the last part that had any.

    Args:
        history: an open manager.
        limits: the size of parts.
        after: the cursor after which to begin.
        most: most records of all parts together.
        scan_sizes: for each part, the `scan_size` of its query. With the last one the parts end.
        wanted: the other arguments of `query_history`, without its limits.
    """
    size, fitting = _FIRST, limits.part
    for scan_size in scan_sizes:
        size = min(size, fitting, most)
        if not size:
            return
        query = history.query_history(
            after=after, limit=size, page_size=size, scan_size=scan_size, **wanted
        )
        page = await anext(query.pages())
        yield page
        if page.is_last:
            return
        after = page.cursor
        most -= len(page.records)
        if page.records:
            longest = max(map(text_chars, page.records))
            fitting = min(limits.part, max(1, limits.page_chars // max(longest, 1)))
            size *= _GROWTH


def scan_sizes(limits: ViewLimits) -> Iterator[int]:
    """Yield how many records the next read of a search may look at, until its time is over.

    They grow as long as the reads are fast: an index may find the few matches among very many. A
    read gets half of the time that is left, because the next records may take longer.
    """
    begun = read = monotonic()
    size = limits.scan_first
    while True:
        yield size
        now = monotonic()
        left_s = begun + limits.search_s - now
        if left_s <= 0:
            return
        fitting = int(size * left_s / 2 / max(now - read, 1e-6))
        size = max(limits.scan_first, min(size * _SCAN_GROWTH, fitting))
        read = now


def text_chars(record: HistoryRecord) -> int:
    """Return how many characters a record's texts have."""
    return len(record.old_memory or "") + len(record.new_memory or "")
