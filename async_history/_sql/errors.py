"""Typed errors for the errors of SQLAlchemy's drivers, and which of them may be retried.

An error is identified by the database's own number (MySQL and MariaDB), by its SQLSTATE
(PostgreSQL), by SQLite's code, or else by its class in SQLAlchemy.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from async_history._core.recorded_texts import UNDECODABLE, hide_texts
from async_history._sql.tables import TABLES
from async_history.errors import (
    StorageCorrupt,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
    StorageRefused,
    StorageUnreachable,
)

DriverError = (SQLAlchemyError, OSError, EOFError)
"""The errors that a call may raise (a TimeoutError is an OSError)."""


class RowsLeftOut(Exception):
    """A trigger or rule in the database left out rows without an error."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    """The meaning of an error: its type, what to do, and whether a retry may succeed."""

    kind: type[StorageError]
    advice: str
    is_passing: bool = False
    is_lost: bool = False


_GONE: Final = _Meaning(
    StorageUnreachable,
    "cannot be reached, or went away; check that it runs and accepts connections",
    is_passing=True,
    is_lost=True,
)
_TOO_LONG: Final = _Meaning(
    StorageUnreachable,
    "stopped a statement that took too long; look for locks, slow triggers and its load",
    is_passing=True,
    is_lost=True,
)
"""Its outcome may be unknown, as of one whose connection was lost."""
_BUSY: Final = _Meaning(
    StorageUnreachable,
    "has no connection left; raise its limits or connect less",
    is_passing=True,
)
_DENIED: Final = _Meaning(StorageDenied, "refuses this user; check its name, password and rights")
_LOCKED: Final = _Meaning(
    StorageLocked, "has it locked by another transaction; try again", is_passing=True
)
_DEADLOCK: Final = _Meaning(
    StorageLocked, "could not serialize this with other transactions; try again", is_passing=True
)
_NO_DATABASE: Final = _Meaning(StorageMissing, "does not have this database")
_NO_TABLE: Final = _Meaning(
    StorageMissing, "has lost the history's tables; `async-history migrate` names them"
)
_FULL: Final = _Meaning(StorageFull, "has no free space left; free some and try again")
_READ_ONLY: Final = _Meaning(
    StorageReadOnly, "may not be written; name the primary", is_passing=True
)
_TOO_LARGE: Final = _Meaning(
    StorageRefused, "does not take so large a text; raise its max_allowed_packet"
)
_REFUSED: Final = _Meaning(StorageRefused, "refused this: a constraint or a trigger")
_TAKEN: Final = _Meaning(
    StorageLocked, "has got this id from another transaction meanwhile; try again", is_passing=True
)
_CORRUPT: Final = _Meaning(StorageCorrupt, "has damaged data where it was touched")
_OTHER: Final = _Meaning(StorageError, "failed")
_POOLED: Final = _Meaning(
    StorageError,
    "is behind a pooler, whose sessions lack prepared statements, or have another client's; name "
    "the server itself, or give the engine prepared_statement_cache_size=0 and a "
    "prepared_statement_name_func for asyncpg",
)
_IO: Final = _Meaning(StorageError, "failed", is_lost=True)
"""A commit that ends in it may take effect: SQLite's log may have the transaction (see
`async_history._sqlite.connecting.errors.is_commit_unknown`), or MySQL's engine without its log."""

_DUPLICATES: Final = (1062, 1586)
"""MySQL's numbers of a row whose key exists."""
_BY_NUMBER: Final[dict[int, _Meaning]] = {
    **dict.fromkeys((1205, 3572, 1412), _LOCKED),
    **dict.fromkeys((1213, 1020, 3101), _DEADLOCK),
    **dict.fromkeys((1040, 1203, 1226), _BUSY),
    **dict.fromkeys(
        (1053, 1077, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 4031), _GONE
    ),
    **dict.fromkeys((2002, 2003, 2006, 2013, 2014, 2045, 2055), _GONE),
    **dict.fromkeys((3032, 3168, 3169), _GONE),
    **dict.fromkeys((1969, 3024), _TOO_LONG),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1370, 1410, 1698, 2059, 3118), _DENIED),
    **dict.fromkeys((1820, 1862, 3159, 4151), _DENIED),
    **dict.fromkeys((1049,), _NO_DATABASE),
    **dict.fromkeys((1146, 1054), _NO_TABLE),
    **dict.fromkeys((1021, 1114, 1030, 1041), _FULL),
    **dict.fromkeys((1026, 1180), _IO),
    **dict.fromkeys((1290, 1792, 1836, 1874), _READ_ONLY),
    **dict.fromkeys((1153, 1301), _TOO_LARGE),
    **dict.fromkeys(
        (*_DUPLICATES, 1644, 1048, 1216, 1217, 1451, 1452, 3819, 4025, 1406, 1264, 1366), _REFUSED
    ),
    **dict.fromkeys((1034, 1035, 1194, 1712), _CORRUPT),
}
"""For MySQL and MariaDB: see https://mariadb.com/kb/en/mariadb-error-code-reference/ and
https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html."""

_BY_STATE: Final[dict[str, _Meaning]] = {
    "08": _GONE,
    "57P": _GONE,
    "57014": _TOO_LONG,
    "40": _DEADLOCK,
    "55P03": _LOCKED,
    "53": _BUSY,
    "53100": _FULL,
    "28": _DENIED,
    "42501": _DENIED,
    "3D": _NO_DATABASE,
    "42P01": _NO_TABLE,
    "3F": _NO_TABLE,
    "25006": _READ_ONLY,
    **dict.fromkeys(("26000", "42P05"), _POOLED),
    "22": _REFUSED,
    "23": _REFUSED,
    "44": _REFUSED,
    "P0001": _REFUSED,
    "XX001": _CORRUPT,
    "XX002": _CORRUPT,
}
"""For PostgreSQL and others, by the longest matching prefix."""

_BY_SQLITE: Final[dict[str, _Meaning]] = {
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR": _IO,
    "SQLITE_READONLY": _Meaning(StorageReadOnly, "may not be written"),
    "SQLITE_CANTOPEN": _Meaning(StorageMissing, "can't be opened"),
    "SQLITE_CORRUPT": _CORRUPT,
    "SQLITE_NOTADB": _CORRUPT,
    "SQLITE_CONSTRAINT": _REFUSED,
}
"""For SQLite, by the longest matching prefix of the code's name."""


_KEY: Final = re.compile(r".*'([^']+)'", re.DOTALL)
"""The key in a message of MySQL or MariaDB: the last quoted word, in any language."""
_COLUMNS: Final = re.compile(r"UNIQUE constraint failed: (.*)")
"""The columns in a message of SQLite, which does not name the key."""
_PRIMARY: Final = "PRIMARY"
"""Each primary key's name on MySQL and MariaDB. MySQL puts the table's name before it."""


def _names_of_keys(table: Table) -> Iterator[str]:
    """Yield the names of a table's unique keys in the databases' errors."""
    indexes = [index for index in table.indexes if index.unique]
    for columns in (table.primary_key.columns, *(index.columns for index in indexes)):
        yield ", ".join(f"{table.name}.{column.name}" for column in columns)
    yield from (f"{table.name}_pkey", f"{table.name}.{_PRIMARY}")
    for index in indexes:
        yield from (str(index.name), f"{table.name}.{index.name}")


_OUR_KEYS: Final = {
    _PRIMARY,
    *(
        name
        for metadata in (TABLES.metadata, TABLES.ledger_metadata)
        for table in metadata.tables.values()
        for name in _names_of_keys(table)
    ),
}


def is_not_utf8(error: BaseException) -> bool:
    """Return whether SQLite's driver met a text that is not UTF-8. Its error has no code."""
    return isinstance(error, OperationalError) and str(error.orig).startswith(UNDECODABLE)


def storage_error(error: BaseException, where: str) -> StorageError:
    """Return the typed error for a driver's error; `where` names the server, without secrets.

    The driver's error, which becomes the cause, no longer shows recorded texts.
    """
    hide_texts(error)
    if is_not_utf8(error):
        return StorageCorrupt(f"{where} has a text that is not UTF-8: `check` names its record")
    meaning = _meaning(error)
    cause = error.orig if isinstance(error, DBAPIError) else error
    return meaning.kind(f"{where} {meaning.advice} ({str(cause) or type(error).__name__})")


def _meaning(error: BaseException) -> _Meaning:
    if isinstance(error, PoolTimeoutError):
        return _Meaning(StorageUnreachable, "gave no connection in time", is_passing=True)
    original = error.orig if isinstance(error, DBAPIError) else error
    if _violated_key(original) in _OUR_KEYS:
        return _TAKEN
    known = _known(original)
    if known is not None:
        return known
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return _GONE
        if isinstance(error, IntegrityError):
            return _REFUSED
        if not isinstance(error, InterfaceError | OperationalError):
            return _OTHER
    return _GONE if _is_of_transport(original) else _OTHER


def _is_of_transport(error: object) -> bool:
    causes: list[Any] = [error, getattr(error, "__cause__", None)]
    return any(isinstance(cause, OSError | EOFError) for cause in causes)


def _violated_key(original: Any) -> str | None:
    """Return the name of the unique key that a row violates; None for another error.

    Another transaction may write one of ours between a look-up and a write. A key that the
    database's owner has added or renamed refuses the row.
    """
    for one in (original, original.__cause__):
        name = getattr(getattr(one, "diag", one), "constraint_name", None)  # psycopg's, asyncpg's
        if isinstance(name, str):
            return name
    if not original.args:
        return None
    is_of_mysql = original.args[0] in _DUPLICATES
    found = (_KEY if is_of_mysql else _COLUMNS).match(str(original.args[-1]))
    return None if found is None else found[1]


def _known(original: Any) -> _Meaning | None:
    """Return the meaning of a database's own code, if a driver's error has one.

    MySQL's number is looked up first, because different errors share an SQLSTATE.
    """
    arguments = () if isinstance(original, OSError) else getattr(original, "args", ())
    if arguments and isinstance(arguments[0], int) and arguments[0] in _BY_NUMBER:
        return _BY_NUMBER[arguments[0]]
    for one in (original, getattr(original, "__cause__", None)):
        state = getattr(one, "sqlstate", None)
        if isinstance(state, str):
            found = _longest(state, _BY_STATE)
            if found is not None:
                return found
        name = getattr(one, "sqlite_errorname", None)
        if isinstance(name, str):
            return _longest(name, _BY_SQLITE)
    return None


def _longest(text: str, meanings: dict[str, _Meaning]) -> _Meaning | None:
    for length in range(len(text), 1, -1):
        if text[:length] in meanings:
            return meanings[text[:length]]
    return None


def package_missing(error: RuntimeError, where: str) -> StorageError | None:
    """Return the error for a driver that lacks a package to authenticate; None for another error.

    Such a RuntimeError is asyncmy's and aiomysql's.
    """
    if "package is required" not in str(error):
        return None
    return StorageError(f"{where} authenticates in a way that needs a package: {error}; install it")


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the connection was lost, so that the statement may have taken effect."""
    return _meaning(error).is_lost or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def may_work_later(error: BaseException) -> bool:
    """Return whether a retry may succeed: after a deadlock, a lock, a restart of the server."""
    return _meaning(error).is_passing


def took_too_long(error: BaseException | None) -> bool:
    """Return whether the server ended a statement for its time, or we gave up waiting for it."""
    if isinstance(error, TimeoutError):
        return error.errno is None  # with a number it is the network's: the connection is lost
    return error is not None and _meaning(error) is _TOO_LONG


def may_be_of_some_rows(error: BaseException) -> bool:
    """Return whether an error may be due to some rows, which could be written later.

    They wait for a lock, are part of a deadlock, or have a trigger that takes long.
    """
    meaning = _meaning(error)
    return meaning is _TOO_LONG or (meaning.is_passing and not is_connection_lost(error))


def is_full(error: BaseException) -> bool:
    """Return whether the server has no free connection now."""
    return _meaning(error) is _BUSY


def is_outside_transaction(error: BaseException) -> bool:
    """Return whether PostgreSQL refused a savepoint because its connection is in autocommit."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) == "25P01"


def is_refusal(error: BaseException) -> bool:
    """Return whether the database refused the rows, not the connection or the statement."""
    if is_not_utf8(error):  # of a stored row that was read, not of one to be written
        return False
    return _meaning(error).kind is StorageRefused or (
        isinstance(error, DBAPIError) and _meaning(error) is _OTHER
    )


def refused(error: DBAPIError | RowsLeftOut, where: str) -> StorageRefused:
    """Return the error for a submission whose rows the database refused."""
    if isinstance(error, RowsLeftOut):
        return StorageRefused(f"the database at {where} refused this: {error}")
    return StorageRefused(str(storage_error(error, where)))
