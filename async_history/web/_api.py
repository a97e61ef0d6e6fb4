"""The routes of the JSON API, and one that answers as mem0's server does."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from async_history._core.reading.query import Page
from async_history.errors import InvalidInput
from async_history.web._calls import CALLS, FOLLOWED, Call
from async_history.web._feed import Feed
from async_history.web._json import as_json
from async_history.web._openapi import description
from async_history.web._values import read_object, read_query
from async_history.web._view import View

API_PATH: Final = "/api/"
FOLLOW_PATH: Final = API_PATH + "follow"
HISTORY_PATH: Final = "/memories/{memory_id:path}/history"


def api_routes(feed: Feed) -> list[BaseRoute]:
    """Return the routes of the API.

    Args:
        feed: the live feed, for `follow`.
    """

    async def follow(request: Request) -> Response:
        asked = read_query(FOLLOWED, request.query_params.multi_items())
        last = request.headers.get("last-event-id")
        if last:
            asked["after"] = last
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return await feed.stream(request.state.view, asked)

    return [
        *map(_route, CALLS),
        Route(FOLLOW_PATH, follow, methods=["GET"]),
        Route(API_PATH + "openapi.json", _description, methods=["GET"]),
        _history_route(),
    ]


def _history_route() -> Route:
    route = Route(HISTORY_PATH, _history_as_mem0_answers, methods=["GET"])
    # A memory's id may contain line breaks, which a path of Starlette does not match.
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
    return route


def _route(call: Call) -> Route:
    async def answer(request: Request) -> Response:
        if call.changes:
            read_query((), request.query_params.multi_items())
            asked = read_object(call.parameters, await _object_in(request))
        else:
            asked = read_query(call.parameters, request.query_params.multi_items())
        return JSONResponse(as_json(await call.run(request.state.view, **asked)))

    return Route(API_PATH + call.name, answer, methods=["POST" if call.changes else "GET"])


async def _object_in(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise InvalidInput("the request must be a JSON object, in UTF-8") from None


async def _description(request: Request) -> Response:
    return JSONResponse(description(request.scope.get("root_path", "")))


async def _history_as_mem0_answers(request: Request) -> Response:
    """Answer as mem0's server does: all records, or none (mem0ai 2.2, `server/main.py`)."""
    view: View = request.state.view
    memory_id = request.path_params["memory_id"]
    first = await view.records(memory_id=memory_id, order="oldest")
    return StreamingResponse(_array(view, memory_id, first), media_type="application/json")


async def _array(view: View, memory_id: str, page: Page) -> AsyncIterator[str]:
    comma = "["
    while page.records:
        for record in page.records:
            yield comma + json.dumps(record.as_dict(), ensure_ascii=False)
            comma = ","
        page = await view.records(memory_id=memory_id, order="oldest", after=page.cursor)
    yield "[]" if comma == "[" else "]"
