"""The checks of every request and the headers of every answer, for all routes.

The order: the headers of the answer, the host, the size and time of a request, the access of its
caller, and the origin of a request that changes something.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from async_history.errors import HistoryError
from async_history.web._access import Authorize, access_of
from async_history.web._error_response import error_response
from async_history.web._problems import route_path

_log = logging.getLogger(__name__)

CSRF_COOKIE: Final = "async_history_csrf"
CSRF_FIELD: Final = "csrf_token"

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer. With `no-referrer`, browsers would send forms with `Origin: null`."""

_SAFE: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = _SAFE | {"POST"}
_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"
_LONGEST_QUERY: Final = 16_384
_MOST_FIELDS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits on the size and time of a request. Tests give smaller ones.

    Attributes:
        body_bytes: most bytes of a body. A form or a list of memories is far smaller.
        body_timeout_s: seconds in which the body must arrive.
        read_timeout_s: seconds that a read may take. Changes are not interrupted.
    """

    body_bytes: int = 1 << 20
    body_timeout_s: float = 10.0
    read_timeout_s: float = 30.0


class Guard:
    """Middleware that applies the checks of this module.

    It sets `request.state.access` (the caller's access, None on a public path),
    `request.state.form` (the fields of a form) and `request.state.csrf_token` (the token that a
    form must contain).

    Args:
        app: the application.
        authorize: returns a caller's rights.
        public_paths: paths that need no access: the form to sign in, and its styles.
        endless_paths: paths whose answers may take longer than a read: the live feed.
        hosts: the hosts that a request may name, without ports; None: any. A page for this
            computer only must give them, because another site's name can be made to resolve to it
            (DNS rebinding).
        limits: see `RequestLimits`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Authorize,
        public_paths: Callable[[str], bool],
        endless_paths: frozenset[str],
        hosts: frozenset[str] | None,
        limits: RequestLimits,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._public_paths = public_paths
        self._endless_paths = endless_paths
        self._hosts = hosts
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = _Answer(send, request)
        try:
            receive = await self._checked(request)
            is_endless = route_path(request) in self._endless_paths
            is_bounded = request.method in _SAFE and not is_endless
            async with asyncio.timeout(self._limits.read_timeout_s if is_bounded else None):
                await self._app(scope, receive, answer.send)
        except (HTTPException, HistoryError) as error:
            if answer.has_begun:
                raise
            await error_response(request, error)(scope, receive, answer.send)
        except TimeoutError:
            if answer.has_begun:
                raise
            slow = HTTPException(504, "the history took too long; ask for less at once")
            await error_response(request, slow)(scope, receive, answer.send)
        except ClientDisconnect:
            return
        except Exception:
            if not answer.has_begun:
                fault = HTTPException(500, "the page has a fault; the server's log has more")
                await error_response(request, fault)(scope, receive, answer.send)
            raise

    async def _checked(self, request: Request) -> Receive:
        """Check a request, and return a `receive` that repeats its body.

        Raises:
            HTTPException: it is refused.
        """
        request.state.access = None  # a public path gets none
        request.state.csrf_token = request.cookies.get(CSRF_COOKIE) or secrets.token_urlsafe(32)
        request.state.form = {}
        if request.method not in _METHODS:
            raise HTTPException(405, "use GET or POST", {"Allow": "GET, HEAD, POST"})
        if len(request.scope.get("query_string", b"")) > _LONGEST_QUERY:
            raise HTTPException(414, f"the query has more than {_LONGEST_QUERY:,} bytes")
        self._check_host(request)
        body = await self._body(request)
        if not self._public_paths(route_path(request)):
            request.state.access = await access_of(self._authorize, request)
        if request.method not in _SAFE:
            _check_origin(request)
            request.state.form = _checked_form(request, body)
        return _replayed(body, request.receive)

    def _check_host(self, request: Request) -> None:
        if self._hosts is None:
            return
        host = _split(f"//{request.headers.get('host', '')}").hostname
        if host not in self._hosts:
            raise HTTPException(421, f"this page is at {' or '.join(sorted(self._hosts))} only")

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        too_large = HTTPException(413, f"a request may have {most:,} bytes")
        length = request.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, "the request did not come to its end") from None
        return bytes(body)


class _Answer:
    """An answer, sent with the common headers and the cookie of the forms."""

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._request = request
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            request = self._request
            is_page = headers.get("content-type", "").startswith("text/html")
            if is_page and CSRF_COOKIE not in request.cookies:
                headers.append("set-cookie", cookie(request, CSRF_COOKIE, request.state.csrf_token))
        await self._send(message)


def _split(url: str) -> SplitResult:
    """Return the parts of a URL in a header.

    Raises:
        HTTPException: it is not a valid URL.
    """
    try:
        return urlsplit(url)
    except ValueError:
        raise HTTPException(400, "the headers Host and Origin must name a host") from None


def cookie(request: Request, name: str, value: str, *, max_age_s: int | None = None) -> str:
    """Return a cookie for this page only, hidden from scripts."""
    parts = [f"{name}={value}", f"Path={request.scope.get('root_path') or '/'}", "HttpOnly"]
    parts.append("SameSite=Strict")
    if request.url.scheme == "https":
        parts.append("Secure")
    if max_age_s is not None:
        parts.append(f"Max-Age={max_age_s}")
    return "; ".join(parts)


def _check_origin(request: Request) -> None:
    """Refuse a change that another site's page sent.

    Browsers name the page in one or both of these headers; programs send neither.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "another site's page may not change a history")
    origin = request.headers.get("origin")
    if origin is not None and _split(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "another site's page may not change a history")


def _checked_form(request: Request, body: bytes) -> Mapping[str, str]:
    """Return the fields of a form, the last of each name; for JSON, no fields.

    Another site's page can send a form, but does not know the token. It can't send JSON: browsers
    ask the server first (CORS), and this server never allows it.

    Raises:
        HTTPException: the body is neither a form nor JSON, or the token is missing or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _JSON:
        return {}
    if kind != _FORM:
        raise HTTPException(415, f"use {_JSON}, or a form of this page ({_FORM})")
    try:
        text = body.decode("ascii")
        form = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise HTTPException(400, "the form can't be read") from None
    known = request.cookies.get(CSRF_COOKIE, "")
    given = form.pop(CSRF_FIELD, "")
    if not known or not hmac.compare_digest(known.encode(), given.encode()):
        raise HTTPException(403, "the form has expired: reload the page and send it again")
    return form


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was already read, then later messages."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
