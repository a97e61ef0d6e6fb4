"""Asking for records page by page: the filter, the cursor, and the query that walks."""

import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeVar, get_args

from async_history._core.recording import check_cause
from async_history._core.records import Event, HistoryRecord
from async_history._core.rows import Row
from async_history._core.validation import check_choice, check_count, shown
from async_history._core.values import check_name, check_text, in_utc, is_aware
from async_history._core.yielding import after_record
from async_history.errors import InvalidInput

T = TypeVar("T")

Order = Literal["oldest", "newest"]
"""Which record comes first."""

PAGE_SIZE = 500
"""Default records of a page: about a millisecond of the event loop's time."""


Pairs = tuple[tuple[str, str], ...]
"""Names, each with a value."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a query asks for; None asks for everything. Times are aware instants.

    `owner` has scopes of the memory's owner, and `cause` keys of the record's cause, each with the
    value that it must have.
    """

    memory_ids: tuple[str, ...] | None
    actor_id: str | None
    role: str | None
    event: Event | None
    text: str | None
    since: datetime | None
    until: datetime | None
    order: Order = "oldest"
    owner: Pairs = ()
    cause: Pairs = ()


def not_a_cursor(text: object, of: str) -> InvalidInput:
    """Return the error for a text that is not a cursor of something."""
    return InvalidInput(f"{shown(text)} is not a cursor of {of}; use its `cursor` as it came")


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """A database's cursors of followers: opaque text that begins with its kind.

    `of` says what they are cursors of, for people.
    """

    kind: str
    of: str

    def text(self, *parts: str | int | None) -> str:
        """Return a place's parts as the text that callers keep."""
        return cursor_text(self.kind, *parts)

    def place(self, text: str, read: Callable[[Sequence[str | int | None]], T | None]) -> T:
        """Return the place of a text, which `read` makes of its parts; None where it can't.

        Raises:
            InvalidInput: it is not a cursor of this kind.
        """
        kind, *parts = cursor_parts(text) or (None,)
        place = read(parts) if kind == self.kind else None
        if place is None:
            raise not_a_cursor(text, self.of)
        return place


def cursor_text(*parts: str | int | None) -> str:
    """Return a place's parts as the opaque text that callers keep."""
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def cursor_parts(text: str) -> Sequence[str | int | None]:
    """Return what `cursor_text` was given; nothing where the text can't be of its making.

    Clients hand cursors back, so a text may be anything. What is returned every database can take:
    integers of 64 bits, text without NUL or lone surrogates.
    """
    try:
        parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(parts, list) and all(map(_is_part, parts)) and cursor_text(*parts) == text:
            return parts
    except (ValueError, TypeError, RecursionError):
        pass
    return ()


def _is_part(part: object) -> bool:
    if isinstance(part, str):
        check_text("cursor", part)
    return part is None or isinstance(part, str) or is_position(part)


def is_position(value: object) -> bool:
    """Return whether a value is a whole number that a database's integer column can hold."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the order of records: after the record `id`, whose number is `position`."""

    position: int
    id: str

    def __str__(self) -> str:
        return cursor_text(self.position, self.id)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read a cursor back from its text.

        Raises:
            InvalidInput: it is not the cursor of a page.
        """
        match cursor_parts(text):
            case [int(position), str(record_id)]:
                return cls(position, record_id)
        raise not_a_cursor(text, "a page")


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
    rest: "Callable[[int], PageRead] | None" = None


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
    rest = partial(cut, rows, record_from, position_of, is_last, end)
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
        rest: Callable[[int], PageRead] | None = None
        ahead = self._page_size
        left: float = math.inf if self._limit is None else self._limit
        while left:
            size = int(min(self._page_size, left))
            if rest is not None:
                read = rest(size)
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


def new_filter(
    *,
    memory_id: str | Collection[str] | None,
    actor_id: str | None,
    role: str | None,
    event: Event | str | None,
    text: str | None,
    since: datetime | None,
    until: datetime | None,
    order: Order = "oldest",
    owner: Pairs = (),
    cause: Mapping[str, str] | None = None,
) -> Filter:
    """Check what is asked for.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and not is_aware(moment):
            raise InvalidInput(f"{name} must be a datetime with a time zone, not {moment!r}")
    if event is not None and event not in list(Event):
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {event!r}")
    check_choice("order", order, get_args(Order))
    return Filter(
        _memory_ids(memory_id),
        None if actor_id is None else check_text("actor_id", actor_id),
        None if role is None else check_text("role", role),
        None if event is None else Event(event),
        None if text is None else check_name("text", text),
        None if since is None else in_utc(since),
        None if until is None else in_utc(until),
        order,
        owner,
        cause_asked(cause),
    )


def scopes_asked(
    *, user_id: str | None, agent_id: str | None, run_id: str | None, app_id: str | None
) -> Pairs:
    """Return the scopes that a question is limited to.

    Raises:
        InvalidInput: naming the scope that can't be used.
    """
    given = (("user_id", user_id), ("agent_id", agent_id), ("run_id", run_id), ("app_id", app_id))
    return tuple((name, check_name(name, value)) for name, value in given if value is not None)


def cause_asked(cause: object) -> Pairs:
    """Return the keys of the cause that a question is limited to.

    Raises:
        InvalidInput: it is not a mapping of texts.
    """
    if cause is None:
        return ()
    if not isinstance(cause, Mapping):
        raise InvalidInput(f"cause must be a mapping of texts, not {type(cause).__name__}")
    return tuple(check_cause(key, value) for key, value in cause.items())


def has_details(record: HistoryRecord, owner: Pairs, cause: Pairs) -> bool:
    """Return whether a record's owner and cause are those of a question."""
    return all(
        record.owner is not None and getattr(record.owner, name) == value for name, value in owner
    ) and all(record.cause is not None and record.cause.get(name) == value for name, value in cause)


def _memory_ids(given: str | Collection[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str):
        return (check_text("memory_id", given),)
    if not isinstance(given, Collection):
        raise InvalidInput(f"memory_id must be text or several, not {type(given).__name__}")
    return tuple(dict.fromkeys(check_text("memory_id", memory_id) for memory_id in given))


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
