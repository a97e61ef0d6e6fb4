"""Who may see and do what: an `Access` for each request, by a token or by the host's own rules."""

import hmac
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from async_history._core.owners import Owner, new_owner
from async_history.errors import InvalidInput

SESSION_COOKIE: Final = "async_history_session"
SESSION_S: Final = 12 * 3600
"""How long a browser stays signed in: a working day."""
SHORTEST_TOKEN: Final = 16
"""Characters of a token. One that can be guessed protects nothing."""
LONGEST_TOKEN: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one caller of the page or its API may see and do.

    Raises:
        InvalidInput: the owner has no scope, which would limit the caller to nothing.
    """

    owner: Owner | None = None
    """Only memories that have all scopes of this owner. None: all memories, and the store itself:
    its statistics, warnings and operations."""
    write: bool = False
    """Whether the caller may restore, roll back, undo and erase, if the page was made with
    `write=True`."""
    actor_id: str | None = None
    """Who the caller is: recorded as the actor of what is changed."""

    def __post_init__(self) -> None:
        if self.owner is not None and new_owner(self.owner) is None:
            raise InvalidInput(
                "the owner of an Access has no scope: leave it out for all memories, or refuse the "
                "caller"
            )


Authorize = Callable[[Request], Access | Awaitable[Access | None] | None]
"""Tells what the caller of a request may do; None refuses it."""


async def access_of(authorize: Authorize, request: Request) -> Access:
    """Return what the caller of a request may do.

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
    """Lets in who has a token: in the header `Authorization: Bearer`, or signed in by a form.

    The form sets a cookie that proves the token was known, until it expires, and is not the token.
    A new token ends all sessions.

    Args:
        token: the token: 16 to 1,024 printable ASCII characters without spaces.
        access: what its holders may do.

    Raises:
        InvalidInput: it is shorter or longer, or has other characters.
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
            HTTPException: 401, neither a token nor a session of it is there.
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
        """Return whether this is the token, in the same time whatever is given."""
        return hmac.compare_digest(_digest(given.encode()), _digest(self._token))

    def new_session(self) -> str:
        """Return the value of a cookie that lets a browser in from now on."""
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
