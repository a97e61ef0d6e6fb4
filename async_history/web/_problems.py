"""Errors as problem details (RFC 9457), each with its HTTP status."""

import logging
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from async_history import errors
from async_history.errors import HistoryError

_log = logging.getLogger(__name__)

PROBLEM: Final = "application/problem+json"

STATUS_OF: Final[dict[type[HistoryError], HTTPStatus]] = {
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.IdConflict: HTTPStatus.CONFLICT,
    errors.HistoryConflict: HTTPStatus.CONFLICT,
    errors.OwnerConflict: HTTPStatus.CONFLICT,
    errors.Erased: HTTPStatus.CONFLICT,
    errors.CursorGone: HTTPStatus.GONE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.HistoryClosed: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.HistoryError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each error of the library. A class that is not listed has its parent's."""


def status_of(error: HistoryError) -> HTTPStatus:
    """Return the status of an error."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def problem_of(error: HTTPException | HistoryError) -> dict[str, Any]:
    """Return an error's problem details: `type` identifies the error, `detail` says what to do.

    Messages of the store may contain paths and server names. So the answer has only the kind of a
    store's failure; the message goes to the log.
    """
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        kind, detail = status.phrase.title().replace(" ", "").replace("-", ""), error.detail
    else:
        status = status_of(error)
        kind, detail = type(error).__name__, str(error)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning("a request failed: %s: %s", kind, error)
            detail = (type(error).__doc__ or "").partition("\n")[0]
    return {
        "type": f"urn:async-history:error:{kind}",
        "title": kind,
        "status": status.value,
        "detail": detail,
    }


def problem_response(problem: dict[str, Any], headers: Any = None) -> Response:
    """Return problem details as a response."""
    return JSONResponse(problem, problem["status"], headers, media_type=PROBLEM)


def wants_page(request: Request) -> bool:
    """Return whether to answer with a page: the request asks for HTML, outside of the API."""
    path = route_path(request)
    is_api = path == "/api" or path.startswith("/api/")
    return not is_api and "text/html" in request.headers.get("accept", "")


def route_path(request: Request) -> str:
    """Return the path of a request relative to where the page is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))
