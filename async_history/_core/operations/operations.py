"""Operations on a store other than recording, as logged: actor, times, counts and outcome."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from types import NoneType
from typing import Any, Final, Literal, NamedTuple

from async_history._core.records.new_records import new_id
from async_history._core.records.recording import surroundings
from async_history.errors import StorageCorrupt

OperationState = Literal["finished", "failed", "unfinished"]

ACTOR: Final = "actor_id"
"""The key of a cause that names the actor of an operation, if the call does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOperation:
    """One logged operation on a store, without texts and names of owners."""

    id: str
    """Its id, a UUIDv7; also the id of a `RollbackReport`, and the `erasure_id` of an
    `ErasureReport`.
    """
    kind: str
    """The kind: "reset", "prune", "erase", "restore", "rollback", "undo", "copy", "adopt",
    "migrate", "checkpoint", "verify", "encrypt", "decrypt" or "rekey".
    """
    begun_at: datetime
    """When it began: aware, in UTC."""
    ended_at: datetime | None = None
    """When it ended; None if it was interrupted or still runs."""
    error: str | None = None
    """The class of the error with which it failed; None if it did not fail."""
    actor_id: str | None = None
    """The actor: the call's `actor_id`, or else the `actor_id` of `recording(cause=…)`. None if
    none was named, or the actor has been erased since.
    """
    process_id: int | None = None
    """The id of the process; None for an erasure that an earlier version logged."""
    host: str | None = None
    """The name of the process's computer; None as for `process_id`."""
    database_role: str | None = None
    """The database's role or user; None if it has none (SQLite)."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments, as JSON values. A name that may be a person's is stored as the SHA-256 of its
    UTF-8, in hexadecimal, under a key that ends in `_sha256`.
    """
    records: int = 0
    """Number of records that were removed, were written, or lost a text or their actor."""
    messages: int = 0
    """Number of messages removed from the buffers."""

    @property
    def state(self) -> OperationState:
        """The outcome: "finished", "failed", or "unfinished" (interrupted, or still running)."""
        if self.ended_at is None:
            return "unfinished"
        return "finished" if self.error is None else "failed"


class OperationEnd(NamedTuple):
    """The outcome of an operation, with counts that are not in the log yet.

    Attributes:
        ended_at: when: aware, in UTC.
        error: the class of the error with which it failed; None if it did not fail.
    """

    operation_id: str
    ended_at: datetime
    error: str | None
    records: int
    messages: int


def new_operation(
    kind: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    actor_id: str | None = None,
    operation_id: str | None = None,
) -> StoreOperation:
    """Return an operation of this process that begins now.

    Args:
        kind: see `StoreOperation.kind`.
        arguments: without texts and names; see `hashed`.
        actor_id: the actor; if missing, the surrounding cause's `actor_id`.
        operation_id: its id; if missing, a new one.
    """
    around = surroundings()
    return StoreOperation(
        id=operation_id or new_id(),
        kind=kind,
        begun_at=datetime.now(UTC),
        actor_id=actor_of(actor_id, None if around is None else around.cause),
        process_id=_process_id(),
        host=_host(),
        arguments={} if arguments is None else arguments,
    )


def actor_of(actor_id: str | None, cause: Mapping[str, Any] | None) -> str | None:
    """Return the actor of an operation: the one given, or else the one that a cause names."""
    if actor_id is not None or cause is None:
        return actor_id
    named = cause.get(ACTOR)
    return named if isinstance(named, str) else None


@cache
def _host() -> str:
    return system_name(socket.gethostname())


@cache
def _process_id() -> int:  # it is slow in a sandbox
    return os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process_id.cache_clear)


LogEntry = tuple[str, str, str | None, str]
"""An operation's id, begun_at, actor_id, and arguments as JSON."""


class LogEntries(NamedTuple):
    """Operations to add to a log: the values that they share, and the other values of each.

    The fields are those of `StoreOperation`. Instants are text in UTC, to the microsecond.
    """

    kind: str
    ended_at: str | None
    error: str | None
    process_id: int | None
    host: str | None
    records: int
    messages: int
    each: Sequence[LogEntry]

    @property
    def ids(self) -> list[str]:
        """The operations' ids."""
        return [entry[0] for entry in self.each]

    def operations(self) -> list[StoreOperation]:
        """Return the operations."""
        return [
            StoreOperation(
                id=operation_id,
                kind=self.kind,
                begun_at=_instant(begun_at),
                ended_at=None if self.ended_at is None else _instant(self.ended_at),
                error=self.error,
                actor_id=actor_id,
                process_id=self.process_id,
                host=self.host,
                arguments=json.loads(arguments),
                records=self.records,
                messages=self.messages,
            )
            for operation_id, begun_at, actor_id, arguments in self.each
        ]


def entry_of(operation: StoreOperation) -> LogEntries:
    """Return an operation as the only one to add to a log."""
    ended_at, arguments = operation.ended_at, json.dumps(operation.arguments, ensure_ascii=False)
    return LogEntries(
        operation.kind,
        None if ended_at is None else instant_text(ended_at),
        operation.error,
        operation.process_id,
        operation.host,
        operation.records,
        operation.messages,
        [(operation.id, instant_text(operation.begun_at), operation.actor_id, arguments)],
    )


def entries_at_their_end(kind: str, each: Sequence[LogEntry], *, records: int) -> LogEntries:
    """Return operations of this process that end now.

    Args:
        records: the number of records of each.
    """
    ended_at = instant_text(datetime.now(UTC))
    return LogEntries(kind, ended_at, None, _process_id(), _host(), records, 0, each)


def at_its_end(operation: StoreOperation, records: int, messages: int) -> StoreOperation:
    """Return an operation of a single transaction, as ended by it."""
    return replace(operation, ended_at=datetime.now(UTC), records=records, messages=messages)


def system_name(name: str) -> str:
    """Return the name of a file or a computer as a text that can be stored.

    Python makes a lone surrogate of each byte that is not UTF-8; here each becomes "?".
    """
    return name.encode(errors="replace").decode()


def hashed(name: str, value: str | None) -> dict[str, str]:
    """Return the SHA-256 of an argument that names a person; empty if it was not given."""
    return {} if value is None else {f"{name}_sha256": sha256(value.encode()).hexdigest()}


def instant_text(instant: datetime) -> str:
    """Return an instant as the log has it."""
    return instant.isoformat(timespec="microseconds")


def operation_from_row(
    operation_id: str, kind: str, begun_at: str, ended_at: str | None, *others: Any
) -> StoreOperation:
    """Return an operation from the columns of the log, in order."""
    error, actor_id, process_id, host, database_role, arguments, records, messages = others
    return checked_operation(
        StoreOperation(
            id=operation_id,
            kind=kind,
            begun_at=_instant(begun_at),
            ended_at=None if ended_at is None else _instant(ended_at),
            error=error,
            actor_id=actor_id,
            process_id=process_id,
            host=host,
            database_role=database_role,
            arguments=arguments,
            records=records,
            messages=messages,
        )
    )


_OPTIONAL_TEXT: Final = (str, NoneType)
_STORED: Final = {
    "id": (str,),
    "kind": (str,),
    "error": _OPTIONAL_TEXT,
    "actor_id": _OPTIONAL_TEXT,
    "process_id": (int, NoneType),
    "host": _OPTIONAL_TEXT,
    "database_role": _OPTIONAL_TEXT,
    "arguments": (dict,),
    "records": (int,),
    "messages": (int,),
}
"""The types of a stored operation's values, except its times."""


def checked_operation(operation: StoreOperation) -> StoreOperation:
    """Return an operation that was read, if its values have their types.

    Raises:
        TypeError: another program has changed one.
    """
    for name, kinds in _STORED.items():
        value = getattr(operation, name)
        if type(value) not in kinds:
            raise TypeError(f"{name} has a {type(value).__name__}")
    return operation


@contextmanager
def readable_log() -> Iterator[None]:
    """Read rows of the log in the body.

    Raises:
        StorageCorrupt: another program has changed a row so that it can't be read.
    """
    try:
        yield
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StorageCorrupt(f"the log of operations is damaged: {error}") from error


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
