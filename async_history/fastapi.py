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
from async_history._core.records.recording import recording
from async_history._opening import open_history
from async_history.errors import HistoryError, InvalidInput

__all__ = ["History", "RequestIds", "health_router", "history_lifespan", "history_of"]

_HEADER: Final = "X-Request-ID"
_MOST_CHARACTERS: Final = 128
"""The most characters of a proxy's id. The known formats are shorter."""


def history_lifespan(
    url: str | os.PathLike[str], **options: Unpack[HistoryOptions]
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that opens a history when the application starts, and closes it at the end.

    Closing commits the accepted records, within `close_timeout_s`. An application that opens more
    than the history has its own lifespan, which enters this one and adds to its state.

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

    In tests, `app.dependency_overrides[history_of]` replaces it.

    Args:
        connection: the request, or the WebSocket.

    Raises:
        InvalidInput: the application has no open history.
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

    The response has it in the header `X-Request-ID`. All records of the request have it, also those
    of its background tasks and of mem0's classes.

    Args:
        app: the application; `add_middleware` gives it.
        header: the header in which your proxy sends the id. It is not verified, so the proxy must
            replace the header that clients send. The request gets a new id without this argument,
            or if the header is missing or is not 1 to 128 printable ASCII characters.
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
"""`GET /health`: 200 if the history can be read and written, else 503; and the warnings' codes.

It responds within about half a second, whatever the store does.
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
