"""The application: its routes and its middleware.

`Guard` checks a request and sets `request.state.access`. Then `request.state.view` is set to a
`View`. The JSON API and the pages read and change the history through this view only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from async_history._core.manager import HistoryManager
from async_history.errors import HistoryError
from async_history.web._access import Access, Authorize, TokenAccess
from async_history.web._access_log import AccessLog
from async_history.web._api import FOLLOW_PATH, api_routes
from async_history.web._error_response import SIGN_IN_PATH, error_response
from async_history.web._feed import Feed, FeedLimits
from async_history.web._origins import cross_origin_reads
from async_history.web._pages import page_routes
from async_history.web._reach import ViewLimits
from async_history.web._render import compile_templates
from async_history.web._security import Guard, RequestLimits
from async_history.web._sign_in import SignIn
from async_history.web._static_files import STATIC_PATH, static_route
from async_history.web._view import View

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WebLimits:
    """Limits on requests and answers. Not an option: only tests set them.

    Attributes:
        request: of requests.
        view: of queries and changes.
        feed: of the live feed.
    """

    request: RequestLimits = field(default_factory=RequestLimits)
    view: ViewLimits = field(default_factory=ViewLimits)
    feed: FeedLimits = field(default_factory=FeedLimits)


def history_app(
    history: HistoryManager,
    *,
    authorize: Authorize | None = None,
    write: bool = False,
) -> Starlette:
    """Return the page and its JSON API, to serve, or to mount in Starlette or FastAPI.

    Args:
        history: an open manager. The application does not close it.
        authorize: a function or a coroutine function that gets each request. It returns the
            caller's rights, or None to refuse, or raises Starlette's `HTTPException`. Without
            it, only callers on this computer are answered, and only under `localhost` or a
            loopback address.
        write: whether callers with `Access.write` may restore, roll back, undo and erase.
    """
    return new_app(history, authorize, write=write, limits=WebLimits())


def new_app(
    history: HistoryManager,
    authorize: Authorize | None,
    *,
    write: bool,
    limits: WebLimits,
    origins: Sequence[str] = (),
) -> Starlette:
    """Return the page; see `history_app`. Its `state.feed` can end the live feeds.

    Args:
        origins: other sites whose pages may read, if `authorize` admits the request.
    """
    compile_templates()
    feed = Feed(limits.feed)
    routes: list[BaseRoute] = [
        static_route(),
        *api_routes(feed),
        *page_routes(),
    ]
    if isinstance(authorize, TokenAccess):
        routes += SignIn(authorize).routes()

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException | HistoryError)  # noqa: S101 - what it is for
        return error_response(request, error)

    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: on_error, HistoryError: on_error},
        middleware=[
            Middleware(AccessLog, routes=routes),
            *cross_origin_reads(origins),
            Middleware(
                Guard,
                authorize=authorize or _loopback_only(Access(write=True)),
                public_paths=_is_public,
                endless_paths=frozenset({FOLLOW_PATH}),
                hosts=LOOPBACK_HOSTS if authorize is None else None,
                limits=limits.request,
            ),
            Middleware(_WithView, history=history, write=write, limits=limits.view),
        ],
    )
    app.state.feed = feed
    return app


class _WithView:
    """Middleware that sets `request.state.view` for each request that has an access."""

    def __init__(
        self, app: ASGIApp, *, history: HistoryManager, write: bool, limits: ViewLimits
    ) -> None:
        self._app = app
        self._history = history
        self._write = write
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = Request(scope).state if scope["type"] == "http" else None
        if state is not None and state.access is not None:
            state.view = View(self._history, state.access, write=self._write, limits=self._limits)
        await self._app(scope, receive, send)


def _is_public(path: str) -> bool:
    return path == SIGN_IN_PATH or path.startswith(STATIC_PATH)


def _loopback_only(access: Access) -> Callable[[Request], Access | None]:
    """Return an `authorize` that admits callers on this computer only."""

    def authorize(request: Request) -> Access | None:
        client = request.client
        is_here = client is None or ip_address(client.host).is_loopback
        return access if is_here else None

    return authorize
