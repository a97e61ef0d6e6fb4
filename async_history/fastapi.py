"""The history of a FastAPI application. It needs the extra `fastapi`.

app = FastAPI(lifespan=history_lifespan("history.db"))
app.add_middleware(RequestIds)
app.include_router(health_router)

@app.get("/memories/{memory_id}")
async def memory(memory_id: str, history: History) -> ...
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Final, Unpack
from uuid import uuid4

from fastapi import APIRouter, Depends, FastAPI, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.public import show_as
from async_history._core.recording import recording
from async_history._opening import open_history
from async_history.errors import HistoryError, InvalidInput

__all__ = ["History", "RequestIds", "health_router", "history_lifespan", "history_of"]

_HEADER: Final = "X-Request-ID"
_MOST_CHARACTERS: Final = 128
"""Of a proxy's id: longer than any that is in use."""


def history_lifespan(
    url: str | os.PathLike[str], **options: Unpack[HistoryOptions]
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan, which opens a history as the application starts and closes it at the end.

    Closing lets the history commit what it accepted, within `close_timeout_s`. The lifespan of an
    application that has more to open enters this one and adds to its state.

    Args:
        url, options: as `open_history` takes them.

    Returns:
        For `FastAPI(lifespan=…)`. Its state has the manager as `history`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_history(url, **options) as history:
            yield {"history": history}

    return lifespan


async def history_of(connection: HTTPConnection) -> HistoryManager:
    """Return the history of a request's or a WebSocket's application.

    `app.dependency_overrides[history_of]` puts another one in its place, in tests.

    Args:
        connection: the request, or the WebSocket.

    Raises:
        InvalidInput: the application has none.
    """
    history = getattr(connection.state, "history", None)
    if not isinstance(history, HistoryManager):
        raise InvalidInput(
            "the application has no open history: make it by FastAPI(lifespan=history_lifespan("
            "url)), and if its own lifespan enters that one, yield its state too"
        )
    return history


History = Annotated[HistoryManager, Depends(history_of)]
"""The type of an argument that is the application's history."""


class RequestIds:
    """Middleware that gives each request an id: its records have it as the cause `request_id`.

    The answer names it in the header `X-Request-ID`. All that records inside has it: the request,
    its background tasks, mem0's classes.

    Args:
        app: the application; `add_middleware` gives it.
        header: the header in which a proxy of yours says the id. It is taken as it comes, so the
            proxy must replace what clients send. Without it, or where it is missing or is not 1 to
            128 printable ASCII characters, the request gets a new one.
    """

    def __init__(self, app: ASGIApp, *, header: str | None = None) -> None:
        self._app = app
        self._header = header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = self._id_of(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        with recording(cause={"request_id": request_id}):
            await self._app(scope, receive, send_with_id)

    def _id_of(self, scope: Scope) -> str:
        given = Headers(scope=scope).get(self._header, "") if self._header else ""
        is_usable = len(given) <= _MOST_CHARACTERS and given.isascii() and given.isprintable()
        return given if given and is_usable else uuid4().hex


health_router: Final = APIRouter()
"""`GET /health`: 200 where the history can be read and written, else 503; and its warnings' codes.

It answers within about half a second, whatever the store does.
"""


@health_router.get("/health", summary="Health")
async def health(history: History, response: Response) -> dict[str, Any]:
    stats = await history.stats()
    warnings = [{"code": one.code, "severity": one.severity} for one in stats.warnings]
    try:
        history.require_writable()
        error = None
    except HistoryError as refused:
        error = type(refused).__name__
    if error is None and any(one.code == "store-unreachable" for one in stats.warnings):
        error = "StorageUnreachable"
    if error is not None:
        response.status_code = 503
    return {"status": "ok" if error is None else "failing", "error": error, "warnings": warnings}


show_as(__name__, ("RequestIds", "history_lifespan", "history_of"), globals())
