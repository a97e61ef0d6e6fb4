"""The query of a PostgreSQL URL, parameter by parameter."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from async_history._core.options import HistoryOptions
from async_history._postgres.connecting.server_url import ServerUrl
from async_history.errors import InvalidInput

ENCODE_ADVICE: Final = (
    "percent-encode the user name and the password: # is %23, / is %2F, ? is %3F, @ is %40, "
    "[ is %5B (urllib.parse.quote(password, safe='') does it)"
)
_MOST_PORT: Final = 65_535
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:\[\]@]*)(?::(\d{1,5}))?")
_TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FOR_ASYNCPG: Final = frozenset(
    (
        *("passfile", "service", "krbsrvname", "gsslib", "sslmode", "sslcert", "sslkey"),
        *("sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "target_session_attrs"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    )
)
_SERVER_SETTINGS: Final = frozenset(
    (
        *("application_name", "options", "search_path", "timezone", "datestyle", "intervalstyle"),
        *("extra_float_digits", "role", "jit", "work_mem", "synchronous_commit"),
        *("statement_timeout", "lock_timeout", "transaction_timeout", "idle_session_timeout"),
        *("idle_in_transaction_session_timeout", "default_transaction_isolation"),
        *("default_transaction_read_only", "log_min_messages", "client_min_messages"),
        *("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"),
    )
)
"""Settings of the server that programs commonly set in a URL. Settings of extensions have a dot in
their name; any other can be set by `options=-c name=value`."""
_WITHOUT_MEANING: Final = frozenset(
    (
        *("supa", "workaround", "uselibpqcompat"),  # marks of Vercel's and node-postgres's
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        *("tcp_user_timeout", "sslcompression", "sslsni", "load_balance_hosts", "gssdelegation"),
    )
)
"""Ignored parameters: libpq's options of sockets (`retry_timeout_s` limits each statement here),
marks of the URL's origin, and what asyncpg always does."""
_HARMLESS: Final[Mapping[str, tuple[str, ...]]] = {
    "gssencmode": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "channel_binding": ("disable", "prefer"),
}
"""Values that ask only for what is always the case."""
_ADVICE: Final[Mapping[str, str]] = {
    "gssencmode": "asyncpg has no GSSAPI encryption; leave it out, and ask for TLS by sslmode",
    "client_encoding": "text is UTF-8 here; leave it out",
    "require_auth": "asyncpg can't refuse a way of signing in; leave it out",
    "requirepeer": "asyncpg can't ask whose server it is; use sslmode=verify-full instead",
    "hostaddr": "name the address as the host",
    "replication": "a history needs an ordinary connection; leave it out",
    "command_timeout": "how long a statement may take is the option retry_timeout_s",
    "socket_timeout": "how long a statement may take is the option retry_timeout_s",
    "max_idle_connection_lifetime": "it is the option connection_idle_s",
    "max_connection_lifetime": "it is the option connection_lifetime_s",
    "currentSchema": "where the tables are is schema=",
    "sslaccept": "ask for TLS by sslmode=require or sslmode=verify-full",
}


def parse_host(text: str) -> str:
    """Return a host with its port, if it has one, in asyncpg's form for a query."""
    if text.startswith("/"):
        return text  # a socket's directory
    match = _HOST.fullmatch(text)
    if match is None or not text:
        raise InvalidInput(
            "the URL's host can't be read: it is a name or an address, and perhaps :5432, several "
            f"with a comma between two; {ENCODE_ADVICE}"
        )
    host, port = match[1] or "localhost", match[2]
    return host if port is None else f"{host}:{_port(port)}"


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_PORT:
        raise InvalidInput(f"a port of the URL must be a number from 1 to {_MOST_PORT}")
    return int(text)


class UrlQuery:
    """The settings of a URL, collected parameter by parameter."""

    def __init__(self, is_plain: bool) -> None:
        self._is_plain = is_plain
        self._names: dict[str, str] = {}
        self._parameters: dict[str, str] = {}
        self._options: dict[str, Any] = {}
        self._is_verified = False

    def once(self, name: str, value: str) -> None:
        """Set a value that the part before the query may also set."""
        if value and self._names.setdefault(name, value) != value:
            raise InvalidInput(f"the URL says its {name} twice, each time otherwise")

    def take(self, name: str, value: str) -> None:
        """Apply a parameter, or refuse it by name."""
        setting = name.lower()
        if name in ("host", "port"):
            known = self._names.get(name)
            self._names[name] = value if known is None else f"{known},{value}"
        elif name in ("user", "password", "dbname", "database"):
            self.once("dbname" if name == "database" else name, value)
        elif not value or name in _WITHOUT_MEANING or value.lower() in _HARMLESS.get(name, ()):
            self._require_known(name)
        elif name in _MEANINGS:
            _MEANINGS[name](self, name, value)
        elif name in _FOR_ASYNCPG:
            self._parameters[name] = value
        elif name == "fallback_application_name":
            self._parameters.setdefault("application_name", value)
        elif setting in _SERVER_SETTINGS or re.fullmatch(r"[a-z_]\w*\.\w+", setting, re.ASCII):
            self._parameters[setting] = value
        else:
            raise self._unknown(name)

    def _require_known(self, name: str) -> None:
        """Refuse an unknown parameter that has no value."""
        known = (*_FOR_ASYNCPG, *_SERVER_SETTINGS, *_WITHOUT_MEANING, *_HARMLESS, *_MEANINGS)
        if name not in known and name != "fallback_application_name":
            raise self._unknown(name)

    def _unknown(self, name: str) -> InvalidInput:
        if not self._is_plain or not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
            return InvalidInput(
                f"the URL's query has a parameter that is not known; {ENCODE_ADVICE}"
            )
        advice = f"leave it out; a setting of the server's is given as options=-c {name}=…"
        if name in HistoryOptions.__annotations__:
            advice = f"give it as an option, open_history(url, {name}=…)"
        advice = _ADVICE.get(name, advice)
        return InvalidInput(f"the URL's parameter {name} can't be used here: {advice}")

    # The meanings of parameters

    def set_schema(self, name: str, value: str) -> None:
        self._options[name] = value

    def set_no_cache(self, name: str, value: str) -> None:
        """Apply the cache size of asyncpg, Prisma, or SQLAlchemy: only 0 is allowed."""
        if value != "0":
            raise InvalidInput(f"the URL's {name} can be 0 only: keep no prepared statement")
        self._options["statement_cache_size"] = 0

    def set_pooler(self, name: str, value: str) -> None:
        """Apply Prisma's flag for a pooler in transaction mode: keep no prepared statements."""
        if _flag(name, value):
            self._options["statement_cache_size"] = 0

    def set_pool_size(self, name: str, value: str) -> None:
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise InvalidInput(f"the URL's {name} must be a whole number")
        self._options["pool_size"] = int(value)

    def set_wait(self, name: str, value: str) -> None:
        """Apply the timeout for a connection; 0 means the default."""
        seconds = _seconds(name, value)
        if seconds:
            self._options["acquire_timeout_s"] = max(
                seconds, self._options.get("acquire_timeout_s", 0)
            )

    def set_tls(self, name: str, value: str) -> None:
        """Apply `ssl`, as SQLAlchemy (for asyncpg) and node-postgres write it."""
        if value.lower() in ("true", "1"):
            self._is_verified = True
        else:
            others = {"false": "disable", "0": "disable", "no-verify": "require"}
            self.set_tls_mode(name, others.get(value.lower(), value))

    def set_tls_mode(self, name: str, value: str) -> None:
        mode = value.replace("_", "-")
        if mode not in _TLS_MODES:
            raise InvalidInput(f"the URL's {name} must be one of {', '.join(_TLS_MODES)}")
        if self._parameters.setdefault("sslmode", mode) != mode:
            raise InvalidInput("the URL says twice, each time otherwise, whether to use TLS")

    def set_authorities(self, name: str, value: str) -> None:
        if value == "system":
            self._is_verified = True
        else:
            self._parameters[name] = value

    def set_channel_binding(self, name: str, value: str) -> None:
        """Verify the server's certificate instead of binding to it, which asyncpg can't do."""
        if value != "require":
            raise InvalidInput(f"the URL's {name} must be disable, prefer or require")
        self._is_verified = True

    def understood(self) -> ServerUrl:
        """Return the URL with all parameters applied."""
        hosts = [parse_host(host) for host in filter(None, self._names.get("host", "").split(","))]
        ports = list(map(_port, filter(None, self._names.get("port", "").split(","))))
        if len(ports) == 1:
            ports *= max(len(hosts), 1)
        if ports and len(ports) != max(len(hosts), 1):
            raise InvalidInput(f"the URL names {len(hosts)} hosts and {len(ports)} ports")
        parameters = dict(self._parameters)
        if self._is_verified and parameters.pop("sslmode", None) == "disable":
            raise InvalidInput("the URL asks for a server that proves who it is, and for no TLS")
        is_verified = self._is_verified
        if is_verified and parameters.keys() & {"sslrootcert", "sslcert"}:
            parameters["sslmode"], is_verified = "verify-full", False
        return ServerUrl(
            self._names.get("user"),
            self._names.get("password"),
            self._names.get("dbname"),
            hosts,
            ports,
            parameters,
            is_verified,
            self._options,
        )


_MEANINGS: Final[Mapping[str, Callable[[UrlQuery, str, str], None]]] = {
    "schema": UrlQuery.set_schema,
    "table": UrlQuery.set_schema,
    "statement_cache_size": UrlQuery.set_no_cache,
    "prepared_statement_cache_size": UrlQuery.set_no_cache,
    "pgbouncer": UrlQuery.set_pooler,
    "connection_limit": UrlQuery.set_pool_size,
    "pool_size": UrlQuery.set_pool_size,
    "connect_timeout": UrlQuery.set_wait,
    "pool_timeout": UrlQuery.set_wait,
    "timeout": UrlQuery.set_wait,
    "ssl": UrlQuery.set_tls,
    "sslmode": UrlQuery.set_tls_mode,
    "sslrootcert": UrlQuery.set_authorities,
    "channel_binding": UrlQuery.set_channel_binding,
}


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise InvalidInput(f"the URL's {name} must be true or false")
    return value.lower() in ("true", "1")


def _seconds(name: str, value: str) -> float:
    """Return a number of seconds; 0 means unlimited, as in libpq."""
    if not re.fullmatch(r"-1|\d{1,9}(\.\d+)?", value, re.ASCII):
        raise InvalidInput(f"the URL's {name} must be a number of seconds")
    return max(float(value), 0)
