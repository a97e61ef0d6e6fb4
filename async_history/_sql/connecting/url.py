"""The parameters of a database's URL: TLS in the spellings of MySQL's tools, and what may be shown.

SQLAlchemy passes each parameter to the driver, and the drivers know none of these spellings.
"""

import contextlib
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy.engine import URL

from async_history._sql.dialects import MYSQL
from async_history.errors import InvalidInput

_MOST_PORT: Final = 65_535
_SHOWN: Final = "unix_socket"
"""The only parameter that is shown: it says where a server is. Others may be secret."""

_ENCRYPTED: Final = "encrypted"
_OF_AN_AUTHORITY: Final = "of an authority"
_OF_THE_HOST: Final = "of the host"
_MODES: Final[Mapping[str, str | None]] = {
    **dict.fromkeys(("disabled", "disable", "false", "0"), None),
    **dict.fromkeys(("required", "require", "true", "1", "accept-invalid-certs"), _ENCRYPTED),
    "verify-ca": _OF_AN_AUTHORITY,
    **dict.fromkeys(("verify-identity", "verify-full", "strict"), _OF_THE_HOST),
}
"""What the server must prove: only TLS, a certificate of a known authority, or also its name."""
_MODE_NAMES: Final = ("ssl-mode", "ssl_mode", "sslmode", "sslMode", "sslaccept", "ssl")
"""MySQL's clients, Azure, Aiven and DigitalOcean (`ssl-mode`), Prisma (`sslaccept`), and
node-mysql2 and PlanetScale (`ssl`, as JSON)."""
_FILES: Final = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")
_AT_LEAST: Final = ("TLSv1", "TLSv1.1", "TLSv1.2")
"""Versions that Python requires anyway."""


def shown(url: URL) -> str:
    """Return a URL for messages: without its password and parameters that may be secret."""
    query = {name: value for name, value in url.query.items() if name == _SHOWN}
    text: str = url.set(query=query).render_as_string(hide_password=True)
    return text


def driver_url(url: URL) -> tuple[URL, Mapping[str, Any]]:
    """Return a URL for its driver, and arguments to connect with.

    Raises:
        InvalidInput: a parameter can't be used. The message names it, without its value.
    """
    if url.port is not None and not 1 <= url.port <= _MOST_PORT:
        raise InvalidInput(f"the URL's port must be a number from 1 to {_MOST_PORT}")
    asked = [name for name in _MODE_NAMES if name in url.query]
    if not asked or url.get_backend_name() not in MYSQL:
        return url, {}
    if len(asked) > 1:
        raise InvalidInput(f"the URL asks for TLS by {' and '.join(asked)}: keep one of them")
    wanted = _wanted(asked[0], url.query[asked[0]])
    others = sorted(name for name in url.query if name.startswith("ssl") and name not in asked)
    if unusable := [name for name in others if wanted is None or name not in _FILES]:
        raise InvalidInput(f"the URL can't have both {asked[0]} and {unusable[0]}; keep one")
    rest = url.difference_update_query([*asked, *others])
    return rest, {} if wanted is None else {"ssl": _context(wanted, url.query)}


def _wanted(name: str, value: object) -> str | None:
    """Return what the server must prove; None without TLS."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            return _wanted_by_json(name, value)
        mode = value.lower().replace("_", "-")
        if mode in _MODES:
            return _MODES[mode]
    raise InvalidInput(
        f"the URL's {name} must be DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY (one of them: "
        "whether the server takes TLS is not tried out)"
    )


def _wanted_by_json(name: str, value: str) -> str:
    try:
        asked = json.loads(value)
    except ValueError:
        raise InvalidInput(f"the URL's {name} is not valid JSON") from None
    is_verified = asked.pop("rejectUnauthorized", True)
    least = asked.pop("minVersion", _AT_LEAST[0])
    if asked or not isinstance(is_verified, bool) or least not in _AT_LEAST:
        raise InvalidInput(
            f"the URL's {name} may have rejectUnauthorized (true or false) and minVersion "
            "(TLSv1.2), and nothing else; use ssl_ca= and ssl-mode=VERIFY_IDENTITY instead"
        )
    return _OF_THE_HOST if is_verified else _ENCRYPTED


def _context(wanted: str, query: Mapping[str, Any]) -> ssl.SSLContext:
    files = {name: query.get(name) for name in _FILES}
    try:
        context = ssl.create_default_context(cafile=files["ssl_ca"], capath=files["ssl_capath"])
        if files["ssl_cert"] is not None:
            context.load_cert_chain(files["ssl_cert"], files["ssl_key"])
    except (OSError, TypeError, ValueError) as error:  # an SSLError is an OSError
        named = ", ".join(name for name, file in files.items() if file is not None)
        raise InvalidInput(f"the files of the URL can't be used for TLS ({named})") from error
    context.check_hostname = wanted == _OF_THE_HOST
    if wanted == _ENCRYPTED:
        context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def parameters_refused(url: URL | None) -> Iterator[None]:
    """Raise `InvalidInput` if the driver does not accept a parameter of the URL.

    The driver's message may contain a value, so it is not shown.
    """
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        if url is None or not url.query:
            raise
        text = str(error)
        named = [name for name in url.query if f"'{name}'" in text] or list(url.query)
        raise InvalidInput(
            f"{shown(url)} can't be used with {' or '.join(named)} as the URL has it: see which "
            f"parameters {url.get_driver_name()} takes"
        ) from None
