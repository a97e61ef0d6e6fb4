"""The HTML pages that show the history."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from async_history._core.reading.query import Page
from async_history._core.records.records import HistoryRecord
from async_history.errors import InvalidInput
from async_history.web import _plots
from async_history.web._changes import change_routes
from async_history.web._fields import Fields
from async_history.web._reach import OwnerFilter
from async_history.web._show import show
from async_history.web._view import View

TIMELINE_SIZE: Final = 20
"""Versions of a memory on a page. Each may be compared with the one before."""
_FOUND: Final = 50
_RECENT_PAGES: Final = 5
_RECENT_PAGE: Final = 200
_ACTORS: Final = 12
_LIVE_FIRST: Final = 20
_PLACES: Final = 1_000
_LAST_VERSION: Final = 10**9


def page_routes() -> list[BaseRoute]:
    """Return the routes of the pages. Each finds the caller's `View` as `request.state.view`."""
    routes = [Route(path, _answering(page), methods=["GET"]) for path, page in _PAGES.items()]
    return [*routes, *change_routes()]


def _answering(
    page: Callable[[Request, View, Fields], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await page(request, request.state.view, Fields(request.query_params))

    return answer


async def _memories(request: Request, view: View, asked: Fields) -> Response:
    found = await view.memories(after=asked.text("after"), **asked.owner())
    owners = {one.owner: None for one in found.records if one.owner is not None}
    return show(request, "memories.html", found=found, asked=asked.as_dict(), owners=list(owners))


async def _memory(request: Request, view: View, asked: Fields) -> Response:
    memory_id = asked.required("memory_id")
    version = asked.number("version", least=1, most=_LAST_VERSION)
    after = asked.text("after")
    found, newest = await _versions(view, memory_id, after, version)
    return show(
        request,
        "memory.html",
        memory_id=memory_id,
        found=found,
        newest=newest,
        after=after,
        is_first=after is None,
        latest=await view.latest(memory_id),
    )


async def _versions(
    view: View, memory_id: str, after: str | None, version: int | None
) -> tuple[Page, int]:
    """Return some of a memory's records, newest first, and the version of the first one.

    Args:
        view: the caller's view.
        memory_id: the memory.
        after: the cursor after which to begin.
        version: the version after that cursor. Without a cursor, versions are counted.
    """
    while True:
        before = await view.count_history(memory_id=memory_id)
        found = await view.get_history(
            memory_id, order="newest", after=after, page_size=TIMELINE_SIZE
        )
        if after is not None:
            return found, version or before
        if before == await view.count_history(memory_id=memory_id):
            return found, before


async def _diff(request: Request, view: View, asked: Fields) -> Response:
    memory_id = asked.required("memory_id")
    start = asked.number("start", least=1, most=_LAST_VERSION)
    end = asked.number("end", least=1, most=_LAST_VERSION)
    if start is None or end is None:
        raise InvalidInput("start and end must be versions of the memory")
    found = await view.diff(memory_id, start, end)
    return show(request, "diff.html", memory_id=memory_id, found=found, start=start, end=end)


async def _at(request: Request, view: View, asked: Fields) -> Response:
    now = datetime.now(UTC)
    owner = asked.owner()
    begin = await _first_time(view, owner)
    place = asked.number("place", least=0, most=_PLACES)
    if place is not None and begin is not None:
        when = begin + (now - begin) * place / _PLACES
    else:
        when = asked.instant("when") or now
    return show(
        request,
        "at.html",
        found=await view.memories_at(when, cause=asked.cause(), after=asked.text("after"), **owner),
        asked=asked.as_dict(),
        when=when,
        begin=begin,
        now=now,
        place=_place(begin, when, now),
    )


async def _first_time(view: View, owner: OwnerFilter) -> datetime | None:
    first = await view.records(order="oldest", page_size=1, **owner)
    return first.records[0].occurred_at if first.records else None


def _place(begin: datetime | None, when: datetime, now: datetime) -> int:
    """Return the position of the slider, from the first record to now."""
    if begin is None or begin >= now:
        return _PLACES
    return round(_PLACES * min(max((when - begin) / (now - begin), 0.0), 1.0))


async def _search(request: Request, view: View, asked: Fields) -> Response:
    found = await view.query_history(after=asked.text("after"), page_size=_FOUND, **asked.records())
    is_full = len(found.records) == _FOUND
    return show(request, "search.html", found=found, is_full=is_full, asked=asked.as_dict())


async def _live(request: Request, view: View, asked: Fields) -> Response:
    owner, memory_id = asked.owner(), asked.text("memory_id")
    cursor = await view.end_cursor()
    found = await view.records(page_size=_LIVE_FIRST, memory_id=memory_id, **owner)
    return show(
        request,
        "live.html",
        found=found,
        asked=asked.as_dict(),
        followed={**owner, "memory_id": memory_id, "after": cursor},
    )


async def _stats(request: Request, view: View, asked: Fields) -> Response:
    recent = await _recent(view, asked.owner())
    return show(
        request,
        "stats.html",
        stats=None if view.is_limited else await view.stats(),
        asked=asked.as_dict(),
        recent=recent,
        most=_RECENT_PAGES * _RECENT_PAGE,
        timeline=_plots.timeline(recent),
        by_event=_plots.by_event(recent),
        by_actor=_plots.by_actor(recent, _ACTORS),
        plots=_plots,
    )


async def _recent(view: View, owner: OwnerFilter) -> list[HistoryRecord]:
    """Return the newest records for the plots; fewer where texts are long."""
    found: list[HistoryRecord] = []
    after = None
    for _ in range(_RECENT_PAGES):
        page = await view.records(after=after, page_size=_RECENT_PAGE, **owner)
        found += page.records
        after = page.cursor
        if len(page.records) < _RECENT_PAGE:
            break
    return found


async def _operations(request: Request, view: View, asked: Fields) -> Response:
    found = await view.operations(after=asked.text("after"))
    return show(request, "operations.html", found=found, after=asked.text("after"))


async def _text(_: Request, view: View, asked: Fields) -> Response:
    """Return the whole old or new text of a record, as plain text."""
    memory_id, record_id = asked.required("memory_id"), asked.required("record_id")
    which = asked.required("which")
    if which not in ("old_memory", "new_memory"):
        raise InvalidInput("which must be old_memory or new_memory")
    after = asked.text("after")
    for _page in range(_RECENT_PAGES):
        page = await view.get_history(memory_id, order="newest", after=after)
        for record in page.records:
            if record.id == record_id:
                return PlainTextResponse(getattr(record, which) or "")
        after = page.cursor
        if not page.records:
            break
    raise InvalidInput("the record is not here: open its memory, and the text from there")


_PAGES: Final[dict[str, Any]] = {
    "/": _memories,
    "/memory": _memory,
    "/diff": _diff,
    "/at": _at,
    "/search": _search,
    "/live": _live,
    "/stats": _stats,
    "/operations": _operations,
    "/text": _text,
}
