"""Pages of other sites that may read: CORS (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from async_history.errors import InvalidInput

_PORTS: Final = {"http": 80, "https": 443}


def check_origins(origins: Sequence[str]) -> Sequence[str]:
    """Return the given origins.

    Raises:
        InvalidInput: one is not an origin as browsers write it.
    """
    for origin in origins:
        if not _is_origin(origin):
            raise InvalidInput(
                f"{origin!r} is not an origin: give a scheme, a host and a port, as in "
                "https://dashboard.example or http://localhost:3000"
            )
    return origins


def _is_origin(given: str) -> bool:
    """Return whether a browser would send this in `Origin`: without the scheme's usual port."""
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _PORTS or not parts.hostname or port in (0, _PORTS[parts.scheme]):
        return False
    is_plain = given == f"{parts.scheme}://{parts.netloc}".lower()
    return is_plain and given.isascii() and not set(given) & set("@* ")


def cross_origin_reads(origins: Sequence[str]) -> Sequence[Middleware]:
    """Return middleware that lets pages of these origins read, with a token that they send.

    Browsers send no cookie of this page from there. `Guard` refuses changes from there.
    """
    if not origins:
        return ()
    return (
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET",),
            allow_headers=("authorization",),
        ),
    )
