# mypy: disable-error-code=import-untyped
"""Typed errors for the errors of PostgreSQL and asyncpg, and which of them may be retried."""

import re
import ssl
from dataclasses import dataclass
from typing import Final

import asyncpg

from async_history._core.recorded_texts import hide_texts
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

DriverError = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)
"""The errors that a call of asyncpg may raise (a TimeoutError is an OSError)."""

_GONE: Final = "cannot be reached, or went away; check that it runs and accepts connections"
_DENIED: Final = "refuses this role; check its name, password and pg_hba.conf"
_REFUSES: Final = "has a constraint, trigger or policy that refuses this"
_NO_TLS: Final = "rejected SSL upgrade"
"""asyncpg's message for a server without TLS; nothing else identifies that error."""
_TLS: Final = (
    "can't be trusted, or has no TLS: check sslmode, and sslrootcert, whose file names the "
    "authorities that may vouch for it"
)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """The meaning of an error: its type, what to do, and whether a retry may succeed."""

    kind: type[StorageError]
    advice: str
    is_passing: bool = False


_BY_STATE: Final[dict[str, _Meaning]] = {
    "08": _Meaning(StorageUnreachable, _GONE),
    "0P": _Meaning(StorageDenied, _DENIED),
    "21000": _Meaning(
        StorageCorrupt,
        "has several rows in owners_state, which has one; delete those that are not the backup's",
    ),
    "25006": _Meaning(
        StorageReadOnly,
        "may not be written; name the primary, or all hosts and target_session_attrs=read-write, "
        "or turn default_transaction_read_only off, which hosts turn on if the disk is full",
        is_passing=True,
    ),
    "25P03": _Meaning(StorageUnreachable, "closed a connection that was idle in a transaction"),
    "25P04": _Meaning(StorageUnreachable, "closed a connection by its transaction_timeout"),
    "26": _Meaning(
        StorageError,
        "lost a prepared statement, as after DISCARD ALL, or behind a pooler that takes none",
        is_passing=True,
    ),
    "23": _Meaning(StorageRefused, _REFUSES),
    "28": _Meaning(StorageDenied, _DENIED),
    "3D": _Meaning(StorageMissing, "does not have this database"),
    "3F": _Meaning(StorageMissing, "has lost the history's schema; run `async-history migrate`"),
    "40": _Meaning(
        StorageLocked,
        "could not serialize this with other transactions; try again",
        is_passing=True,
    ),
    "42501": _Meaning(
        StorageDenied,
        "does not grant this role the right; see GRANT, and the guide on PostgreSQL, Rights",
    ),
    "42703": _Meaning(
        StorageMissing,
        "has lost a column of the history's tables; `async-history migrate` names it",
    ),
    "42804": _Meaning(
        StorageError,
        "has another type for a column of the history's tables; `async-history migrate` names it",
    ),
    "42P01": _Meaning(
        StorageMissing, "has lost the history's tables; `async-history migrate` names them"
    ),
    "42P05": _Meaning(
        StorageError, "has this prepared statement already, as behind a pooler that takes none"
    ),
    "44": _Meaning(StorageRefused, _REFUSES),
    "53": _Meaning(
        StorageUnreachable,
        "has no resources left; raise its limits or connect less",
        is_passing=True,
    ),
    "53100": _Meaning(StorageFull, "has no free disk space left; free some and try again"),
    "53400": _Meaning(StorageFull, "has reached a limit of its configuration; raise it"),
    "55": _Meaning(StorageError, "has something in a state that does not allow this"),
    "55006": _Meaning(
        StorageLocked, "has something in use by another session; try again", is_passing=True
    ),
    "55P02": _Meaning(StorageError, "does not let this setting be changed; leave it out"),
    "55P03": _Meaning(
        StorageLocked, "is locked by another transaction; try again", is_passing=True
    ),
    "57014": _Meaning(
        StorageUnreachable,
        "cancelled the statement: by statement_timeout, or at another session's request",
        is_passing=True,
    ),
    "57P": _Meaning(StorageUnreachable, "is stopping or starting; try again"),
    "57P04": _Meaning(StorageMissing, "has dropped this database"),
    "57P05": _Meaning(StorageUnreachable, "closed a connection by its idle_session_timeout"),
    "58": _Meaning(StorageError, "had an I/O error"),
    "P0001": _Meaning(StorageRefused, _REFUSES),
    "XX001": _Meaning(StorageCorrupt, "has damaged data where it was touched"),
    "XX002": _Meaning(StorageCorrupt, "has a damaged index where it was touched; REINDEX it"),
}
"""Meanings by the longest matching prefix of the SQLSTATE. The codes are listed in
https://www.postgresql.org/docs/current/errcodes-appendix.html."""

_CAME_MEANWHILE: Final = _Meaning(
    StorageLocked,
    "has got this id, or this memory's owner, from another transaction meanwhile; try again, in a "
    "new transaction",
    is_passing=True,
)

_CHANGED: Final = _Meaning(
    StorageError, "has changed columns of the history's tables; try again", is_passing=True
)
"""asyncpg forgets the statement, so the next try prepares it again."""

_NUMBERING: Final = ("GetNewTransactionId", "GetNewMultiXactId")
"""The server's functions that number transactions. Near the end of the numbers they refuse every
write, with the SQLSTATE of a row that is too large."""
_WITHOUT_NUMBERS: Final = _Meaning(
    StorageReadOnly,
    "gives transactions no numbers until it is vacuumed, because it runs out of them; see "
    "https://www.postgresql.org/docs/current/routine-vacuuming.html",
    is_passing=True,
)

_PROTOCOL: Final = "08P01"
_OF_POOLERS: Final = (
    (
        re.compile(r"\b(SSL|TLS)\b|certificate"),
        _Meaning(StorageDenied, "takes connections with TLS alone; add sslmode=require"),
    ),
    (re.compile(r"no such database"), _Meaning(StorageMissing, "does not have this database")),
    (
        re.compile(r"no such user|authentication failed|not allowed|rejected|password too long"),
        _Meaning(StorageDenied, "refuses this role; check its name and password"),
    ),
    (
        re.compile(r"unsupported startup parameter"),
        _Meaning(StorageError, "is a pooler that does not take this setting; leave it out"),
    ),
)
"""Errors of a pooler that a retry does not change. PgBouncer has one SQLSTATE, protocol violation,
for nearly all errors that end a connection; its messages are never translated."""
_POOLER_FULL: Final = re.compile(r"no more connections allowed|server login has been failing")
_A_STATEMENT_EACH: Final = "not allowed in statement pooling mode"
"""The words of PgBouncer when it ends a connection. asyncpg reports them as a lost connection."""
_STATEMENT_MODE: Final = _Meaning(
    StorageError, "is a pooler in statement mode, which has no transactions; use transaction mode"
)
_OTHER: Final = _Meaning(StorageError, "failed")
_BROKEN_PROTOCOL: Final = _Meaning(StorageError, "did not understand the driver")

_DIED: Final = ("08", "57P")
_CUT_OFF_IN_TLS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_LOST: Final = re.compile(r"closed|released|cancelling")
"""asyncpg's messages for a connection that can no longer be used."""
_REFUSED: Final = ("22", "23", "44", "54", "P0001")
_REFUSING: Final = ("exec_stmt_raise", "ExecWithCheckOptions")
"""The server's functions that execute RAISE, which may have any SQLSTATE, and that check a row
against the table's policies. Their names, unlike messages, do not depend on the language."""
_OF_ALL: Final = ("25006", "3D", "3F", "42501", "42P01", "53100")
_OUR_KEYS: Final = ("history_pkey", "messages_pkey", "owners_pkey")


def _state(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


def storage_error(error: BaseException, where: str) -> StorageError:
    """Return the typed error for a driver's error; `where` names the server, without secrets.

    The driver's error, which becomes the cause, no longer shows recorded texts.
    """
    hide_texts(error)
    meaning = _meaning(error)
    return meaning.kind(f"{where} {meaning.advice} ({str(error) or type(error).__name__})")


def _meaning(error: BaseException) -> _Meaning:
    if _came_meanwhile(error):
        return _CAME_MEANWHILE
    if _is_without_numbers(error):
        return _WITHOUT_NUMBERS
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return _CHANGED
    if _A_STATEMENT_EACH in str(error):
        return _STATEMENT_MODE
    state = _state(error)
    if state == _PROTOCOL and isinstance(error, asyncpg.PostgresError):
        return _meaning_of_protocol_error(error)
    for length in range(len(state), 1, -1):
        if state[:length] in _BY_STATE:
            return _BY_STATE[state[:length]]
    if isinstance(error, asyncpg.PostgresError):
        return _OTHER
    if _NO_TLS in str(error) or (
        isinstance(error, ssl.SSLError) and not isinstance(error, _CUT_OFF_IN_TLS)
    ):
        return _Meaning(StorageDenied, _TLS)
    if isinstance(error, PermissionError):
        return _Meaning(StorageDenied, "may not be connected to from here")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return _BY_STATE["25006"]
    if is_connection_lost(error):
        return _BY_STATE["08"]
    return _OTHER


def _meaning_of_protocol_error(error: asyncpg.PostgresError) -> _Meaning:
    if not _is_fatal(error):
        return _BROKEN_PROTOCOL
    found = (meaning for words, meaning in _OF_POOLERS if words.search(str(error)))
    return next(found, _BY_STATE["08"])


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the connection was lost, so that the statement's outcome is unknown."""
    if isinstance(error, asyncpg.PostgresError):
        return _is_fatal(error)
    if isinstance(error, asyncpg.InterfaceError):
        # Others are raised before anything is sent. For pools see `is_pool_unusable`.
        return bool(_LOST.search(str(error))) and not is_pool_unusable(error)
    return isinstance(error, DriverError) and not isinstance(
        error, asyncpg.OutdatedSchemaCacheError
    )


def _is_fatal(error: asyncpg.PostgresError) -> bool:
    """Return whether the server, or the driver for it, ended the connection.

    A message of severity ERROR does not end it, whatever SQLSTATE a trigger sets.
    """
    level = error.severity_en or error.severity
    return level in ("FATAL", "PANIC") or (level != "ERROR" and _state(error).startswith(_DIED))


def is_pool_unusable(error: BaseException) -> bool:
    """Return whether a pool gives no connection because it is closed or was never opened."""
    return isinstance(error, asyncpg.InterfaceError) and str(error).startswith("pool is ")


def may_work_later(error: BaseException) -> bool:
    """Return whether nothing was written and a retry may succeed: a deadlock, a failover."""
    return _meaning(error).is_passing


def may_connect_later(error: BaseException) -> bool:
    """Return whether a failed connection attempt may succeed soon."""
    meaning = _meaning(error)
    return meaning.is_passing or meaning.kind is StorageUnreachable


def is_full(error: BaseException) -> bool:
    """Return whether a server or pooler has no free connection now."""
    if _state(error) == _PROTOCOL:
        is_ours = _meaning(error).kind is StorageUnreachable  # not a login that fails by its name
        return is_ours and bool(_POOLER_FULL.search(str(error)))
    return isinstance(error, asyncpg.TooManyConnectionsError)


def _came_meanwhile(error: BaseException) -> bool:
    """Return whether another transaction wrote an id or owner between our look-up and our write.

    It may be our own earlier try, whose commit outlived its connection.
    """
    if not isinstance(error, asyncpg.UniqueViolationError):
        return False
    return (error.constraint_name or "").startswith(_OUR_KEYS)  # a shard adds a number


def _is_without_numbers(error: BaseException) -> bool:
    return getattr(error, "server_source_function", None) in _NUMBERING


def is_refusal(error: asyncpg.PostgresError) -> bool:
    """Return whether a constraint, trigger or policy refused the rows that were written."""
    if _is_without_numbers(error):
        return False
    if error.server_source_function in _REFUSING and not may_work_later(error):
        return True
    return _state(error).startswith(_REFUSED)


def concerns_all(error: asyncpg.PostgresError) -> bool:
    """Return whether any write would fail like this: no disk space, no privilege, no table.

    False if the error came from code in the database, such as a trigger.
    """
    if _is_without_numbers(error):
        return True
    return _state(error).startswith(_OF_ALL) and not is_refusal(error) and error.context is None
