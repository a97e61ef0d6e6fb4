"""One log entry for each request: the route that was called, without its arguments or token."""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ACCESS_LOG: Final = "async_history.web.access"
_log: Final = logging.getLogger(ACCESS_LOG)


class AccessLog:
    """Middleware that logs each request: method, route, status, time and caller.

    The logger is `async_history.web.access`.

    Args:
        app: the application.
        routes: its routes.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        status = 0
        begun = perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            ms = (perf_counter() - begun) * 1_000
            host = (scope.get("client") or ("-",))[0]
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "-"
            _log.info("%s %s %s %d %.0f ms", host, method, self._path(scope), status or 500, ms)

    def _path(self, scope: Scope) -> str:
        """Return the path of a request's route, with parameter names instead of values.

        A path without a route is not logged: it may contain anything, even a token.
        """
        matching = (
            one.path
            for one in self._routes
            if isinstance(one, Route) and one.matches(scope)[0] is Match.FULL
        )
        return next(matching, "-")
