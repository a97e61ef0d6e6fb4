"""What PostgreSQL's errors mean, in one place: what is typed how, what may work later.

Lives here: the classification of driver and network errors. Not here: what is done about them.
"""

import ssl
from typing import Final

import asyncpg

from async_history.errors import (
    StorageCorrupt,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
    StorageUnreachable,
)

DriverError = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)
"""What a call of asyncpg may raise (a TimeoutError is an OSError)."""

_GONE: Final = "cannot be reached, or went away; check that it runs and accepts connections"
_NO_TLS: Final = "rejected SSL upgrade"
"""asyncpg's words for a server without TLS, which are all that tells it."""
_TLS: Final = (
    "can't be trusted, or has no TLS: check sslmode, and sslrootcert, whose file names the "
    "authorities that may vouch for it"
)
_BY_STATE: Final[dict[str, tuple[type[StorageError], str]]] = {
    "08": (StorageUnreachable, _GONE),
    "25006": (
        StorageReadOnly,
        "may not be written; name the primary, or all hosts and target_session_attrs=read-write",
    ),
    "26": (StorageError, "lost a prepared statement, as behind a pooler that takes none"),
    "28": (StorageDenied, "refuses this role; check its name, password and pg_hba.conf"),
    "3D": (StorageMissing, "does not have this database"),
    "3F": (StorageMissing, "has lost the history's schema; run `async-history migrate`"),
    "40": (StorageLocked, "could not serialize this beside other transactions; try again"),
    "42501": (StorageDenied, "does not grant this role the right; grant it (README, rights)"),
    "42P01": (StorageMissing, "has lost the history's tables; run `async-history migrate`"),
    "53100": (StorageFull, "has no room left; free some and try again"),
    "53": (StorageUnreachable, "has no resources left; raise its limits or connect less"),
    "55": (StorageLocked, "is locked by another transaction; try again"),
    "57P": (StorageUnreachable, "is stopping or starting; try again"),
    "58": (StorageError, "had an I/O error"),
    "XX001": (StorageCorrupt, "has damaged data where it was touched"),
    "XX002": (StorageCorrupt, "has a damaged index where it was touched; REINDEX it"),
}
"""By SQLSTATE, the longest prefix that fits (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

_DIED: Final = ("08", "57P")
_LATER: Final = ("25006", "40", "53", "55P03", "57014")
_NOT_LATER: Final = ("53100",)
_REFUSED: Final = ("22", "23", "44", "54", "P0001")
_REFUSING: Final = ("exec_stmt_raise", "ExecWithCheckOptions")
"""The server's functions that run an owner's RAISE, which may give any SQLSTATE, and that check a
row against the policies of its table. An error's words depend on the server's language, this does
not."""
_OF_ALL: Final = ("25006", "3D", "3F", "42501", "42P01", "53100")
_OUR_KEYS: Final = ("history_pkey", "messages_pkey")


def _state(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


def storage_error(error: BaseException, where: str) -> StorageError:
    """Return the typed error for a driver's error; `where` names the server, without secrets."""
    state = _state(error)
    for length in range(len(state), 1, -1):
        if state[:length] in _BY_STATE:
            kind, advice = _BY_STATE[state[:length]]
            return kind(f"{where} {advice} ({error})")
    if isinstance(error, ssl.SSLError) or _NO_TLS in str(error):
        return StorageDenied(f"{where} {_TLS} ({error})")
    if is_connection_lost(error):
        reason = str(error) or type(error).__name__
        return StorageUnreachable(f"{where} {_GONE} ({reason})")
    return StorageError(f"{where} failed ({error})")


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the connection is gone, and with it what became of the statement."""
    if isinstance(error, asyncpg.PostgresError):
        # An ERROR leaves the connection as it is, whatever state a trigger gives it.
        return _state(error).startswith(_DIED) and error.severity_en != "ERROR"
    return isinstance(error, DriverError)


def may_work_later(error: BaseException) -> bool:
    """Return whether nothing was written and the same may work soon: a deadlock, a failover."""
    state = _state(error)
    return _came_meanwhile(error) or (state.startswith(_LATER) and not state.startswith(_NOT_LATER))


def _came_meanwhile(error: BaseException) -> bool:
    """Return whether somebody wrote an id between our look for it and our write.

    As an earlier try of ours does, whose commit took longer than its connection lasted.
    """
    if not isinstance(error, asyncpg.UniqueViolationError):
        return False
    return (error.constraint_name or "").startswith(_OUR_KEYS)  # a shard's has a number behind


def is_refusal(error: asyncpg.PostgresError) -> bool:
    """Return whether a rule of the database refuses what was written, not who writes or where."""
    if error.server_source_function in _REFUSING and not may_work_later(error):
        return True
    return _state(error).startswith(_REFUSED)


def concerns_all(error: asyncpg.PostgresError) -> bool:
    """Return whether whatever is written would fail like this: no room, no right, no table.

    Where code of the owner's ran into it, such as a trigger, it is not certain.
    """
    return _state(error).startswith(_OF_ALL) and not is_refusal(error) and error.context is None
