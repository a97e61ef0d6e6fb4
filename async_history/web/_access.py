"""Authorization: an `Access` for each request, from a token or from the application's own rules."""

import hmac
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from async_history._core.records.owners import Owner, new_owner
from async_history.errors import InvalidInput

SESSION_COOKIE: Final = "async_history_session"
SESSION_S: Final = 12 * 3600
"""How long a browser stays signed in."""
SHORTEST_TOKEN: Final = 16
"""Fewest and most characters of a token. A short token can be guessed."""
LONGEST_TOKEN: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rights of one caller of the page or its API.

    Raises:
        InvalidInput: the owner has no scope, so no memory would match.
    """

    owner: Owner | None = None
    """Limits the caller to memories that have all scopes of this owner. None allows all memories,
    and the store's statistics, warnings and operations."""
    write: bool = False
    """Whether the caller may restore, roll back, undo and erase. The page must also have
    `write=True`."""
    actor_id: str | None = None
    """The caller's name, recorded as the actor of the caller's changes."""

    def __post_init__(self) -> None:
        if self.owner is not None and new_owner(self.owner) is None:
            raise InvalidInput(
                "the owner of an Access has no scope: leave it out for all memories, or refuse the "
                "caller"
            )


Authorize = Callable[[Request], Access | Awaitable[Access | None] | None]
"""Returns the rights of a request's caller, or None to refuse the request."""


async def access_of(authorize: Authorize, request: Request) -> Access:
    """Return the rights of a request's caller.

    Raises:
        HTTPException: the caller is refused: 403, or what `authorize` raised.
    """
    try:
        found = authorize(request)
        access = await found if inspect.isawaitable(found) else found
    except PermissionError as error:
        raise HTTPException(403, "you may not see this history") from error
    if access is None:
        raise HTTPException(403, "you may not see this history")
    if not isinstance(access, Access):
        raise TypeError(f"authorize must return an Access or None, not {type(access).__name__}")
    return access


class TokenAccess:
    """Authorization by one token, in the header `Authorization: Bearer` or given in a form.

    The form sets a cookie that expires. The cookie proves that the browser had the token, but does
    not contain it. A new token ends all sessions.

    Args:
        token: 16 to 1,024 printable ASCII characters without spaces.
        access: the rights of callers who have the token.

    Raises:
        InvalidInput: the token is shorter or longer, or has other characters.
    """

    def __init__(self, token: str, access: Access) -> None:
        is_plain = token.isascii() and token.isprintable() and " " not in token
        if not is_plain or not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
            raise InvalidInput(
                f"a token must have {SHORTEST_TOKEN} to {LONGEST_TOKEN:,} printable ASCII "
                "characters without spaces, such as `openssl rand -hex 32` makes"
            )
        self._token = token.encode()
        self._access = access

    def __call__(self, request: Request) -> Access | None:
        """Return the access of a request; see `Authorize`.

        Raises:
            HTTPException: 401, the request has neither the token nor a session.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme:
            is_known = scheme.lower() == "bearer" and self.is_token(given.strip())
        else:
            is_known = self._is_session(request.cookies.get(SESSION_COOKIE, ""))
        if not is_known:
            raise HTTPException(
                401, "a token is needed: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
            )
        return self._access

    def is_token(self, given: str) -> bool:
        """Return whether this is the token. The time taken does not depend on the text given."""
        return hmac.compare_digest(_digest(given.encode()), _digest(self._token))

    def new_session(self) -> str:
        """Return the value of a cookie that starts a session."""
        return self._session(int(time.time()) + SESSION_S)

    def _session(self, expires: int) -> str:
        proof = hmac.new(self._token, f"session until {expires}".encode(), sha256).hexdigest()
        return f"{expires}.{proof}"

    def _is_session(self, given: str) -> bool:
        expires, _, _ = given.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= _TIME_DIGITS):
            return False
        is_genuine = hmac.compare_digest(given.encode(), self._session(int(expires)).encode())
        return is_genuine and int(expires) > time.time()


_TIME_DIGITS: Final = 12


def _digest(value: bytes) -> bytes:
    return sha256(value).digest()
