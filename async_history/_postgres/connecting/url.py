"""Parsing of PostgreSQL URLs in the forms of asyncpg, libpq, SQLAlchemy, Prisma and providers.

Each parameter of the query is either understood or refused by name, because asyncpg would send an
unknown one to the server as a setting. Messages contain only the user, the hosts and the database
of a URL. Any other part may belong to a password that was not percent-encoded.
"""

import re
from typing import Final
from urllib.parse import unquote, unquote_plus

from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.connecting.url_query import ENCODE_ADVICE, UrlQuery, parse_host
from async_history.errors import InvalidInput

SCHEMES: Final = frozenset(
    (
        *("postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"),
        *("postgresql+psycopg", "postgres+asyncpg", "postgres+psycopg2", "postgres+psycopg"),
        *("postgresql+psycopg_async", "postgres+psycopg_async"),
    )
)


def server_url(url: object) -> ServerUrl:
    """Parse a PostgreSQL URL.

    Raises:
        InvalidInput: the URL can't be used. The message contains no part that may be secret.
    """
    if not isinstance(url, str):
        raise InvalidInput(f"a server's URL must be text, not {type(url).__name__}")
    scheme, _, rest = str.__str__(url).partition("://")  # of a (str, Enum) its text
    if scheme.lower() not in SCHEMES:
        raise InvalidInput("a server's URL is postgresql://user:password@host:5432/database")
    if re.search(r"[\s\0]", rest):
        raise InvalidInput(f"the URL has a blank or a line's end in it; {ENCODE_ADVICE}")
    authority, path, query, is_plain = _split(rest)
    credentials, _, hosts = authority.rpartition("@")
    user, has_password, password = credentials.partition(":")
    asked = UrlQuery(is_plain)
    for piece in filter(None, query.split("&")):
        name, equals, value = piece.partition("=")
        if not equals:
            raise InvalidInput(f"the URL's query has a part without a value; {ENCODE_ADVICE}")
        asked.take(unquote_plus(name), unquote_plus(value))
    asked.once("user", unquote(user))
    asked.once("password", unquote(password) if has_password else "")
    asked.once("dbname", unquote(path))
    if hosts:
        asked.once("host", ",".join(parse_host(unquote(host)) for host in hosts.split(",")))
    return asked.understood()


def _split(rest: str) -> tuple[str, str, str, bool]:
    """Return a URL's authority, path and query, and whether its query has no @."""
    cut = re.match(r"([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?(#.*)?", rest)
    if cut is None or cut[4] is not None:
        raise InvalidInput(f"the URL has a # in it; {ENCODE_ADVICE}")
    authority, path, query = cut[1], cut[2] or "", cut[3] or ""
    if "@" in path or ("@" in query and "@" not in authority):
        raise InvalidInput(f"the URL has an @ after its first / or ?; {ENCODE_ADVICE}")
    return authority, path, query, "@" not in query
