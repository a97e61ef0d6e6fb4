"""Queries read in parts, to bound the texts in memory. Parts grow as long as texts are short."""

from collections.abc import AsyncIterator
from typing import Any, Final

from async_history._core.manager import HistoryManager
from async_history._core.query import Page
from async_history._core.records import HistoryRecord
from async_history.web._reach import ViewLimits

_FIRST: Final = 2
_GROWTH: Final = 2


async def parts(
    history: HistoryManager, limits: ViewLimits, *, after: str | None, most: int, **wanted: Any
) -> AsyncIterator[Page]:
    """Yield the records of a query in order, as pages of up to `limits.part` records.

    A part is as large as `limits.page_chars` allows, if all its texts were as long as the longest
    one of the part before.

    Args:
        history: an open manager.
        limits: the size of parts.
        after: the cursor after which to begin.
        most: most records of all parts together.
        wanted: the other arguments of `query_history`, without its limits.
    """
    size, fitting = _FIRST, limits.part
    while size := min(size, fitting, most):
        query = history.query_history(after=after, limit=size, page_size=size, **wanted)
        count = longest = 0
        async for page in query.pages():
            yield page
            after = page.cursor
            count += len(page.records)
            longest = max([longest, *map(text_chars, page.records)])
        if count < size:
            return
        most -= size
        fitting = min(limits.part, max(1, limits.page_chars // max(longest, 1)))
        size *= _GROWTH


def text_chars(record: HistoryRecord) -> int:
    """Return how many characters a record's texts have."""
    return len(record.old_memory or "") + len(record.new_memory or "")
