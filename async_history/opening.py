"""From a URL to a manager. Knows the spellings of URLs, and imports a backend only to open it."""

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Unpack, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from async_history.errors import InvalidInput
from async_history.manager import HistoryManager
from async_history.options import HistoryOptions
from async_history.records import plain
from async_history.validation import check_option_names

_SQLITE = ("async_history.backends.sqlite", "SQLiteHistoryManager")
_NULL = ("async_history.backends.null", "NullHistoryManager")
_POSTGRES = ("async_history.backends.postgres", "PostgresHistoryManager")
_POSTGRES_SCHEMES = (
    *("postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"),
    *("postgresql+psycopg", "postgres+asyncpg", "postgres+psycopg2"),
)

POSTGRES_SCHEMA: Final = "async_history"
"""A schema of our own, because hosts such as Supabase publish `public` over HTTP."""

_SPELLINGS = (
    "sqlite:///relative.db, sqlite:////absolute.db, a path, memory://, null:// or postgresql://…"
)

_Arguments = tuple[Path | str | None, ...]


def open_history(url: str | os.PathLike[str], **options: Unpack[HistoryOptions]) -> HistoryManager:
    """Return the manager of a history store, ready to be opened by `async with` or `await`.

        async with open_history("sqlite:///history.db") as history: ...
        history = await open_history("memory://")

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or a bare path: a SQLite file;
            `memory://` or `sqlite://`: SQLite in memory, gone when closed; `null://`: history is
            forgotten; `postgresql://…`: a PostgreSQL server, as asyncpg takes it, and
            `?schema=`, `?statement_cache_size=0`. SQLAlchemy's spellings such as
            `sqlite+aiosqlite://` and `postgresql+asyncpg://` are accepted too.
        options: the backend's keyword arguments, such as `create`, `migrate`, `durability`,
            `queue_records`, `queue_timeout_s`; see `SQLiteHistoryManager` and
            `PostgresHistoryManager`.

    Raises:
        InvalidInput: no backend answers to the URL, or an option is unknown or can't be used.
    """
    (module, name), arguments, from_url = _backend(url)
    manager_type = getattr(import_module(module), name)
    check_option_names(manager_type, options)
    return cast(HistoryManager, manager_type(*arguments, **{**from_url, **options}))


def sqlite_file(url: str | os.PathLike[str]) -> Path | None:
    """Return the SQLite file that a URL names, None where it names no file.

    Raises:
        InvalidInput: no backend answers to the URL.
    """
    backend, arguments, _ = _backend(url)
    return cast(Path | None, arguments[0]) if backend is _SQLITE else None


def postgres_schema(url: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the server's URL and the schema that a PostgreSQL URL names, None for others.

    Raises:
        InvalidInput: no backend answers to the URL.
    """
    backend, arguments, options = _backend(url)
    if backend is not _POSTGRES:
        return None
    return cast(str, arguments[0]), options.get("schema", POSTGRES_SCHEMA)


def without_secrets(text: str) -> str:
    """Return a text with the passwords of the URLs in it blotted out."""
    text = re.sub(r"(://[^\s/@:]*):.*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*pass\w*=)[^&\s'\"]*", r"\1***", text)


def _backend(
    url: str | os.PathLike[str],
) -> tuple[tuple[str, str], _Arguments, dict[str, Any]]:
    """Return the backend that a URL names, its arguments, and the options that the URL gives."""
    if not isinstance(url, str | os.PathLike):
        raise InvalidInput(f"a history's URL must be text or a path, not {type(url).__name__}")
    text = plain(os.fspath(url))
    if text == ":memory:":
        return _SQLITE, (None,), {}
    if "://" not in text:
        if not text or "\0" in text:
            raise InvalidInput(f"{text!r} is no file name; use {_SPELLINGS}")
        return _SQLITE, (Path(text),), {}
    scheme = text.partition("://")[0].lower()
    parts = urlsplit(text)
    if scheme in _POSTGRES_SCHEMES:
        return _POSTGRES, *_postgres_arguments(parts)
    if parts.query or parts.fragment:
        raise InvalidInput(
            f"{without_secrets(text)!r} has a query or fragment, which nothing here reads; pass "
            "options as keywords"
        )
    if scheme == "null":
        return _NULL, (), {}
    if scheme == "memory":
        return _SQLITE, (None,), {}
    if scheme in ("sqlite", "sqlite+aiosqlite"):
        if parts.netloc:
            raise InvalidInput(
                f"{without_secrets(text)!r} names a host; a file is sqlite:///relative.db or "
                "sqlite:////absolute.db"
            )
        path = unquote(parts.path)[1:]
        return _SQLITE, (Path(path) if path and path != ":memory:" else None,), {}
    raise InvalidInput(f"no backend for {scheme!r} URLs; use {_SPELLINGS}")


def _postgres_arguments(parts: SplitResult) -> tuple[_Arguments, dict[str, Any]]:
    """Return the URL as asyncpg takes it, and the options that are ours."""
    options: dict[str, Any] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "schema":
            options["schema"] = value
        elif name == "statement_cache_size":
            if value != "0":
                raise InvalidInput(f"statement_cache_size in a URL can be 0 only, not {value!r}")
            options["statement_cache_size"] = 0
        else:
            theirs.append((name, value))
    # Not urlunsplit: without a host it leaves out the slashes that asyncpg wants.
    query = f"?{urlencode(theirs)}" if theirs else ""
    return (f"postgresql://{parts.netloc}{parts.path}{query}",), options
