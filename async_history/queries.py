"""Asking for records page by page: the filter, the cursor, and the query that walks.

Lives here: what can be asked and how pages follow each other, for every backend alike. Not here:
how a backend finds the rows of one page.
"""

import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from async_history.errors import InvalidInput
from async_history.records import Event, HistoryRecord, check_text

Order = Literal["oldest", "newest"]

PAGE_SIZE = 500
"""Default records of a page: about a millisecond of the event loop's time."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a query asks for; None asks for everything. Times are aware instants."""

    memory_id: str | None
    actor_id: str | None
    role: str | None
    event: Event | None
    since: datetime | None
    until: datetime | None
    order: Order

    def admits_time(self, moment: datetime | None) -> bool:
        """Tell whether an instant lies in [since, until)."""
        if self.since is None and self.until is None:
            return True
        if moment is None:
            return False
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until
        )


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the order of records: behind the record `id`, which stands at `position`."""

    position: int
    id: str

    def __str__(self) -> str:
        text = json.dumps([self.position, self.id], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read a cursor back from its text.

        Raises:
            InvalidInput: it is not the cursor of a page.
        """
        try:
            position, record_id = json.loads(
                base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            )
            if type(position) is int and type(record_id) is str:
                return cls(position, record_id)
        except (ValueError, TypeError, binascii.Error):
            pass
        raise InvalidInput(f"{text!r} is not a cursor; use the `cursor` of a page as it came")


@dataclass(frozen=True, slots=True)
class Page:
    """Some records in order, and the cursor that continues behind them.

    The cursor of the last page continues with what is recorded later. It is None only where
    nothing was ever there to stand behind.
    """

    records: Sequence[HistoryRecord]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class PageRead:
    """What a backend found: matching records, the last place it looked at, and whether it ended."""

    records: Sequence[HistoryRecord]
    place: Cursor | None
    is_last: bool


ReadPage = Callable[[Filter, Cursor | None, int], Awaitable[PageRead]]


class HistoryQuery:
    """Records that match a filter: iterate over them, or over their pages.

    No connection is held between pages, so a slow consumer costs nobody anything. Records added
    meanwhile are seen if they come behind the page being read.
    """

    def __init__(
        self, read_page: ReadPage, wanted: Filter, after: Cursor | None, page_size: int
    ) -> None:
        self._read_page = read_page
        self._filter = wanted
        self._after = after
        self._page_size = page_size

    async def __aiter__(self) -> AsyncIterator[HistoryRecord]:
        async for page in self.pages():
            for record in page.records:
                yield record

    async def pages(self) -> AsyncIterator[Page]:
        """Yield pages of up to `page_size` records.

        Raises:
            CursorGone: the record behind which to continue is no longer there.
        """
        place = self._after
        while True:
            read = await self._read_page(self._filter, place, self._page_size)
            place = read.place or place
            yield Page(read.records, str(place) if place is not None else None)
            if read.is_last:
                return


def _is_aware(moment: object) -> bool:
    return isinstance(moment, datetime) and moment.tzinfo is not None


def new_query(
    read_page: ReadPage,
    *,
    memory_id: str | None,
    actor_id: str | None,
    role: str | None,
    event: Event | str | None,
    since: datetime | None,
    until: datetime | None,
    order: Order,
    after: str | None,
    page_size: int,
) -> HistoryQuery:
    """Check a query's arguments.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    for name, text in (("memory_id", memory_id), ("actor_id", actor_id), ("role", role)):
        if text is not None:
            check_text(name, text)
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and not _is_aware(moment):
            raise InvalidInput(f"{name} must be a datetime with a time zone, not {moment!r}")
    if event is not None and event not in list(Event):
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {event!r}")
    if order not in ("oldest", "newest"):
        raise InvalidInput(f"order must be 'oldest' or 'newest' (first), not {order!r}")
    if type(page_size) is not int or page_size < 1:
        raise InvalidInput(f"page_size must be a positive whole number, not {page_size!r}")
    wanted = Filter(
        memory_id, actor_id, role, None if event is None else Event(event), since, until, order
    )
    return HistoryQuery(
        read_page, wanted, None if after is None else Cursor.parse(after), page_size
    )
