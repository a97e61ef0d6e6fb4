"""Creation of the manager for a URL. A backend is imported only when it is used."""

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Unpack, cast
from urllib.parse import quote, unquote

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions, Journal
from async_history._core.records.values import plain
from async_history._core.validation import check_option_names, file_path
from async_history._postgres.connecting.server_url import POSTGRES_SCHEMA
from async_history._postgres.connecting.url import SCHEMES, server_url
from async_history.errors import InvalidInput

_SQLITE = ("async_history.sqlite", "SQLiteHistoryManager")
_NULL = ("async_history._null", "NullHistoryManager")
_POSTGRES = ("async_history.postgres", "PostgresHistoryManager")
_SQL = ("async_history.sql", "SqlHistoryManager")
_SQL_NAMES: Final = ("mysql", "mariadb", "oracle", "mssql")
"""Databases whose URLs need not name a driver."""
_SQLITE_SCHEMES: Final = ("sqlite", "sqlite+aiosqlite")
_SPELLINGS = (
    "sqlite:///relative.db, sqlite:////absolute.db, a path, memory://, null://, postgresql://… or "
    "one of SQLAlchemy's, such as mysql+asyncmy://…"
)

_PORT = r"\d+(?:[/,?\s'\"]|$)"

_Arguments = tuple[Path | str | None, ...]


def open_history(
    url: str | os.PathLike[str] | None = None,
    *,
    engine: Any = None,
    **options: Unpack[HistoryOptions],
) -> HistoryManager:
    """Return the manager of a history store, ready to be opened by `async with` or `await`.

        async with open_history("sqlite:///history.db") as history: ...
        history = await open_history("memory://")

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or a bare path: a SQLite file,
            `?journal=delete` with a rollback journal;
            `memory://` or `sqlite://`: SQLite in memory, lost when closed; `null://`: nothing is
            kept; `postgresql://…`: a PostgreSQL server, as asyncpg, libpq, SQLAlchemy or a
            hosting provider writes it, and `?schema=`. `sqlite+aiosqlite://` and
            `postgresql+asyncpg://` are accepted too. `~` is the home folder. `mysql://…`,
            `mariadb://…`, and any other URL for which SQLAlchemy has an asyncio dialect
            (`dialect+driver://…`): a database through SQLAlchemy.
        engine: instead of a URL, the program's own SQLAlchemy `AsyncEngine`, of any database; see
            `SqlHistoryManager`.
        options: the backend's keyword arguments, such as `create`, `migrate`, `durability`,
            `queue_records`, `queue_timeout_s`; see `SQLiteHistoryManager`,
            `PostgresHistoryManager` and `SqlHistoryManager`.

    Raises:
        InvalidInput: no backend has this URL, or an option is unknown or invalid.
    """
    if engine is not None:
        if url is not None:
            raise InvalidInput("give either a url or an engine")
        manager_type = _manager_type(_SQL)
        check_option_names(manager_type, options)
        return cast(HistoryManager, manager_type(engine=engine, **options))
    if url is None:
        raise InvalidInput("name a history: a url, or an engine")
    backend, arguments = _backend(url)
    manager_type = _manager_type(backend)
    check_option_names(manager_type, options)
    return cast(HistoryManager, manager_type(*arguments, **{**file_options(url), **options}))


def _manager_type(backend: tuple[str, str]) -> Any:
    module, name = backend
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if backend is not _SQL or (error.name or "").split(".")[0] != "sqlalchemy":
            raise
        raise InvalidInput(
            "a history in this database needs SQLAlchemy: pip install 'async-history[sql]', or "
            "'async-history[mysql]' for MySQL and MariaDB"
        ) from error


def sqlite_file(url: str | os.PathLike[str]) -> Path | None:
    """Return the SQLite file that a URL names; None if it names no file.

    Raises:
        InvalidInput: no backend has this URL.
    """
    backend, arguments = _backend(url)
    return cast(Path | None, arguments[0]) if backend is _SQLITE else None


def from_any_folder(url: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a URL or path of the same history that does not depend on the working directory.

    Raises:
        InvalidInput: no backend has this URL.
        StorageMissing: it is relative to a directory that was removed.
    """
    path = sqlite_file(url)
    if path is None:
        return url
    from async_history._sqlite.connecting.errors import absolute

    path = absolute(path)
    journal = file_options(url).get("journal")
    return f"sqlite:///{quote(str(path))}?journal={journal}" if journal else path


def file_options(url: str | os.PathLike[str]) -> HistoryOptions:
    """Return the options in a SQLite file's URL, such as its journal."""
    journal = _split_options(url)[1] if isinstance(url, str) else ""
    return {"journal": cast(Journal, journal)} if journal else {}


def postgres_schema(url: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the server's URL and the schema of a PostgreSQL URL; None for other URLs.

    Raises:
        InvalidInput: no backend has this URL.
    """
    backend, arguments = _backend(url)
    if backend is not _POSTGRES:
        return None
    text = cast(str, arguments[0])
    return text, server_url(text).options.get("schema", POSTGRES_SCHEMA)


def is_server(url: str | os.PathLike[str]) -> bool:
    """Return whether a URL names a history in a database server, which others may share.

    Raises:
        InvalidInput: no backend has this URL.
    """
    return _backend(url)[0] in (_POSTGRES, _SQL)


def without_secrets(text: str) -> str:
    """Return a text with the passwords of URLs and of libpq's keywords replaced by ***."""
    # Neither the colon of a time, nor up to a later @ from a password that is *** already.
    text = re.sub(
        r"(:/+[^\s/@:]*|(?<!\b\d\d)(?<!\dT\d\d):[^\s/@:]*):(?!\*\*\*@).*@", r"\1:***@", text
    )
    text = re.sub(rf"(://[^\s/@:\[]*):(?!\*|{_PORT})\S*", r"\1:***", text)
    return re.sub(r"(\b\w*pass\w*\s*=\s*)('[^']*'|[^&\s'\"]*)", r"\1***", text)


def _backend(url: str | os.PathLike[str]) -> tuple[tuple[str, str], _Arguments]:
    """Return the backend that a URL names, and its arguments."""
    if not isinstance(url, str | os.PathLike):
        raise InvalidInput(f"a history's URL must be text or a path, not {type(url).__name__}")
    if isinstance(url, str):
        url = plain(url)
    if not isinstance(url, str) or "://" not in url:
        return _SQLITE, (None if url == ":memory:" else file_path("path", url),)
    scheme = url.partition("://")[0].lower()
    if scheme in SCHEMES:
        server_url(url)
        return _POSTGRES, (url,)
    if not re.fullmatch(r"[a-z][a-z0-9+._-]*", scheme):
        raise InvalidInput(f"the text before :// is not a URL scheme; use {_SPELLINGS}")
    if scheme in _SQL_NAMES or ("+" in scheme and scheme not in _SQLITE_SCHEMES):
        return _SQL, (url,)
    if scheme not in ("null", "memory", "sqlite", "sqlite+aiosqlite"):
        raise InvalidInput(f"no backend for {scheme!r} URLs; use {_SPELLINGS}")
    host, _, path = _split_options(url)[0].partition("://")[2].partition("/")
    if re.search("[?#]", host + path):
        raise InvalidInput(
            f"a {scheme} URL has no ? and no #, as in ?table= or ?mode=: give options as keywords, "
            "and in a file's name %3F and %23"
        )
    if host or (path and scheme in ("null", "memory")):
        raise InvalidInput(
            f"a {scheme} URL names no host; a file is sqlite:///relative.db or "
            "sqlite:////absolute.db"
        )
    if scheme == "null":
        return _NULL, ()
    path = unquote(path)
    if scheme == "memory" or path in ("", ":memory:"):
        return _SQLITE, (None,)
    return _SQLITE, (file_path("the URL's path", path),)


def _split_options(url: str) -> tuple[str, str]:
    """Return a SQLite file's URL without its query, and the journal in the query, or ""."""
    is_file = url.partition("://")[0].lower() in _SQLITE_SCHEMES
    found = re.fullmatch(r"([^?#]*)\?journal=([^?#&=]+)", plain(url)) if is_file else None
    return (found[1], found[2]) if found else (url, "")
