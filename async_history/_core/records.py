"""History records: what a change consists of, checked before it is queued."""

import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

from uuid_utils import uuid7

from async_history._core.json_object import JsonObject, json_from_text, json_object, json_text
from async_history._core.owners import GivenOwner, Owner, new_owner, owner_from_text, owner_text
from async_history._core.recording import new_cause, surroundings, with_surroundings
from async_history._core.validation import shown
from async_history._core.values import (
    check_bit,
    check_name,
    check_text,
    check_time,
    now_text,
    parse_time,
    plain,
)
from async_history.errors import InvalidInput


class Event(StrEnum):
    """What happened to a memory."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


EVENTS: Final = {event.value: event for event in Event}
"""Each event by its text. An existing row may have another text."""
_ADD: Final = Event.ADD
_DELETE: Final = Event.DELETE
"""Up to Python 3.11 it takes a tenth of a microsecond to find a member by its enum."""

COLUMNS: Final = (
    "id",
    "memory_id",
    "old_memory",
    "new_memory",
    "event",
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
)
"""mem0's ten columns, in its order (mem0ai 0.1.100 to 2.2, `memory/storage.py`)."""
COLUMN_LIST: Final = ", ".join(COLUMNS)
"""The same as SQL, and for people."""
DETAILS: Final = ("owner", "context", "cause")
"""What a record has besides, and mem0's table has not."""


@dataclass(frozen=True, slots=True, init=False)
class HistoryRecord:
    """One change of one memory: mem0's ten columns, and whose it is and why it was made.

    `event` is an `Event`, or the text found in an existing row when it is none of them.
    `created_at` and `updated_at` are ISO 8601 text, exactly as they were given.
    `time_before` is set where neither says when the change happened: `occurred_at` of the memory's
    record before this one. `owner` is the memory's. `context` is its metadata after the change, and
    `cause` says why it was made: short texts by free keys. Each is None where it is not known.
    """

    id: str
    memory_id: str
    old_memory: str | None
    new_memory: str | None
    event: Event | str
    created_at: str | None = None
    updated_at: str | None = None
    is_deleted: bool = False
    actor_id: str | None = None
    role: str | None = None
    time_before: datetime | None = field(default=None, compare=False, repr=False)
    owner: Owner | None = field(default=None, compare=False)
    context: Mapping[str, Any] | None = None
    cause: Mapping[str, Any] | None = None

    def __init__(
        self,
        id: str,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: Event | str,
        created_at: str | None = None,
        updated_at: str | None = None,
        is_deleted: bool = False,
        actor_id: str | None = None,
        role: str | None = None,
        time_before: datetime | None = None,
        owner: Owner | None = None,
        context: Mapping[str, Any] | None = None,
        cause: Mapping[str, Any] | None = None,
    ) -> None:
        # As dataclass would write it, but for object.__setattr__, which takes twice as long: each
        # record is made on the event loop.
        _set_id(self, id)
        _set_memory_id(self, memory_id)
        _set_old_memory(self, old_memory)
        _set_new_memory(self, new_memory)
        _set_event(self, event)
        _set_created_at(self, created_at)
        _set_updated_at(self, updated_at)
        _set_is_deleted(self, is_deleted)
        _set_actor_id(self, actor_id)
        _set_role(self, role)
        _set_time_before(self, time_before)
        _set_owner(self, owner)
        _set_context(self, context)
        _set_cause(self, cause)

    @property
    def occurred_at(self) -> datetime | None:
        """When the change happened, aware: `created_at` of an ADD, else `updated_at`, else the
        time of the record before it. A text without an offset counts as UTC. None where none of
        these can be read as a time.
        """
        text = self.created_at if self.event == Event.ADD else self.updated_at
        return (parse_time(text) if text is not None else None) or self.time_before

    @property
    def recorded_at(self) -> datetime | None:
        """When the record was made, in UTC, to the millisecond: it is in an id of ours (UUIDv7).

        None where another program gave the id.
        """
        digits = self.id.replace("-", "")
        if len(digits) != _UUID_DIGITS or digits[_VERSION_DIGIT] != "7":
            return None
        try:
            return datetime.fromtimestamp(int(digits[:_TIME_DIGITS], 16) / 1000, UTC)
        except (ValueError, OverflowError):
            return None

    def as_dict(self) -> dict[str, Any]:
        """Return exactly the mapping that mem0's `get_history` returns for this record."""
        return {
            "id": self.id,
            "memory_id": self.memory_id,
            "old_memory": self.old_memory,
            "new_memory": self.new_memory,
            "event": plain(self.event),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "is_deleted": self.is_deleted,
            "actor_id": self.actor_id,
            "role": self.role,
        }


(
    _set_id,
    _set_memory_id,
    _set_old_memory,
    _set_new_memory,
    _set_event,
    _set_created_at,
    _set_updated_at,
    _set_is_deleted,
    _set_actor_id,
    _set_role,
    _set_time_before,
    _set_owner,
    _set_context,
    _set_cause,
) = (getattr(HistoryRecord, name).__set__ for name in (*COLUMNS, "time_before", *DETAILS))


class _Draft:
    """A record that is being made: the same slots, and they can be assigned."""

    __slots__ = (*COLUMNS, "time_before", *DETAILS)


def _made_record(
    id: str,
    memory_id: str,
    old_memory: str | None,
    new_memory: str | None,
    event: Event | str,
    created_at: str | None,
    updated_at: str | None,
    is_deleted: bool,
    actor_id: str | None,
    role: str | None,
    time_before: datetime | None,
    owner: Owner | None,
    context: Mapping[str, Any] | None,
    cause: Mapping[str, Any] | None,
) -> HistoryRecord:
    draft: Any = _Draft()
    draft.id = id
    draft.memory_id = memory_id
    draft.old_memory = old_memory
    draft.new_memory = new_memory
    draft.event = event
    draft.created_at = created_at
    draft.updated_at = updated_at
    draft.is_deleted = is_deleted
    draft.actor_id = actor_id
    draft.role = role
    draft.time_before = time_before
    draft.owner = owner
    draft.context = context
    draft.cause = cause
    draft.__class__ = HistoryRecord
    return draft  # type: ignore[no-any-return]


made_record: Final[Callable[..., HistoryRecord]] = (
    HistoryRecord if sysconfig.get_config_var("Py_GIL_DISABLED") else _made_record
)
"""Make a record of all its fields, in their order.

It takes two fifths of the constructor's time, and each record that is written or read is made on
the event loop. Without the GIL, to change an object's class stops all threads.
"""


Fields = tuple[Any, ...]
"""The arguments of `made_record`. Unlike a record, a tuple of texts costs the garbage collector
nothing."""
MEMORY_ID: Final = COLUMNS.index("memory_id")
OWNER, CONTEXT, CAUSE = range(len(COLUMNS) + 1, len(COLUMNS) + 1 + len(DETAILS))
"""Places among the fields."""


def give_owner(record: HistoryRecord, owner: Owner) -> None:
    """Set the owner of a record that no caller has seen yet: its memory's, as the store has it."""
    _set_owner(record, owner)


_UUID_DIGITS: Final = 32
_VERSION_DIGIT: Final = 12
_TIME_DIGITS: Final = 12

Row = tuple[Any, ...]
"""A record's ten columns; then its owner, context and cause as JSON text, or None."""
columns_of: Final[Callable[[HistoryRecord], tuple[Any, ...]]] = attrgetter(*COLUMNS)


fields_in_order: Final[Callable[[HistoryRecord], Fields]] = attrgetter(
    *COLUMNS, "time_before", *DETAILS
)


def details_of(record: HistoryRecord) -> tuple[str | None, str | None, str | None]:
    """Return a record's owner, context and cause as JSON text."""
    return owner_text(record.owner), json_text(record.context), json_text(record.cause)


def row_of(record: HistoryRecord) -> Row:
    """Return the row of a record."""
    return *columns_of(record), *details_of(record)


def fields_of(record: HistoryRecord) -> dict[str, Any]:
    """Return a record as JSON has it: mem0's mapping, and what is known besides, as mappings."""
    fields = record.as_dict()
    if record.owner is not None:
        fields["owner"] = record.owner.as_dict()
    if record.context is not None:
        fields["context"] = dict(record.context)
    if record.cause is not None:
        fields["cause"] = dict(record.cause)
    return fields


def record_of(row: Row) -> HistoryRecord:
    """Return the record of a row, whose event may be plain text."""
    record_id, memory_id, old, new, event, created, updated, is_deleted, actor_id, role = row[:10]
    return HistoryRecord(
        record_id,
        memory_id,
        old,
        new,
        _known_event(event) or event,
        created,
        updated,
        is_deleted,
        actor_id,
        role,
        None,
        *details_from(*row[10:]),
    )


def details_given(owner: Any, context: Any, cause: Any) -> tuple[str | None, ...]:
    """Check owner, context and cause, each a mapping or None; return them as JSON text.

    Raises:
        InvalidInput: naming the one that can't be used.
    """
    return (
        None if owner is None else owner_text(new_owner(owner)),
        None if context is None else json_text(json_object("context", context)),
        None if cause is None else json_text(new_cause(cause)),
    )


Details = tuple[Owner | None, JsonObject | None, JsonObject | None]
"""A record's owner, context and cause."""


def details_from(owner: str | None, context: str | None, cause: str | None) -> Details:
    """Return what a record has besides its columns, from JSON texts."""
    return owner_from_text(owner), json_from_text(context), json_from_text(cause)


ROW_FIELDS: Final = (*COLUMNS, *DETAILS)
"""The names of a row's values."""


def new_id() -> str:
    """Return a fresh UUIDv7: ids that grow keep the primary key's index fast (TRAPS, drivers)."""
    return str(uuid7())


def is_alive(record: HistoryRecord) -> bool:
    """Return whether a memory exists once this record is its latest."""
    return record.event != Event.DELETE and not record.is_deleted


def made_at(latest: HistoryRecord) -> str | None:
    """Return `created_at` of an UPDATE that follows a record, as mem0 has it: the memory's own.

    None where that one has no time, or one that a new record may not have.
    """
    made = parse_time(latest.created_at or "")
    return None if made is None else made.isoformat()


def new_fields(
    memory_id: str,
    old_memory: str | None,
    new_memory: str | None,
    event: Event | str,
    created_at: datetime | str | None = None,
    updated_at: datetime | str | None = None,
    is_deleted: bool | int | None = None,
    actor_id: str | None = None,
    role: str | None = None,
    id: str | None = None,
    now: str | None = None,
    owner: GivenOwner | None = None,
    context: Mapping[str, Any] | None = None,
    cause: Mapping[str, str] | None = None,
) -> Fields:
    """Check one new record, fill in what is missing, and return all its fields in their order.

    A missing `id` becomes a UUIDv7, a missing time of the change (`created_at` of an ADD,
    `updated_at` else) becomes `now`, a missing `is_deleted` follows from the event. Owner and cause
    are completed by those of `recording`.

    Raises:
        InvalidInput: a value is missing, of another type, or holds what the store could not give
            back exactly.
    """
    known_event = EVENTS.get(event) if type(event) is str else _known_event(event)
    if known_event is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {shown(event)}")
    created = None if created_at is None else check_time("created_at", created_at)
    updated = None if updated_at is None else check_time("updated_at", updated_at)
    if known_event is _ADD:
        created = created or now or now_text()
    else:
        updated = updated or now or now_text()
    # Texts are as a rule what `check_text` and `check_name` return at once: to call them takes
    # longer than to look.
    if not (type(memory_id) is str and memory_id and memory_id.isascii() and "\0" not in memory_id):
        memory_id = check_name("memory_id", memory_id)
    if old_memory is not None and not (
        type(old_memory) is str and old_memory.isascii() and "\0" not in old_memory
    ):
        old_memory = check_text("old_memory", old_memory)
    if new_memory is not None and not (
        type(new_memory) is str and new_memory.isascii() and "\0" not in new_memory
    ):
        new_memory = check_text("new_memory", new_memory)
    if owner is context is cause is None and surroundings() is None:
        whose = what = why = None
    else:
        whose, what, why = _new_details(owner, context, cause)
    return (
        str(uuid7()) if id is None else check_name("id", id),
        memory_id,
        old_memory,
        new_memory,
        known_event,
        created,
        updated,
        known_event is _DELETE if is_deleted is None else check_bit("is_deleted", is_deleted),
        None if actor_id is None else check_text("actor_id", actor_id),
        None if role is None else check_text("role", role),
        None,
        whose,
        what,
        why,
    )


def _new_details(
    owner: GivenOwner | None,
    context: Mapping[str, Any] | None,
    cause: Mapping[str, str] | None,
) -> Details:
    whose, why = with_surroundings(
        None if owner is None else new_owner(owner), None if cause is None else new_cause(cause)
    )
    return whose, None if context is None else json_object("context", context), why


def storable_record(columns: Mapping[str, Any], now: str) -> HistoryRecord:
    """Return a new record, under an id of ours, of columns that are known to be storable.

    Texts are as `check_text` returns them and times as `check_time`; `is_deleted` is a bool. What
    may be wrong still is what names the change. A missing time of it becomes `now`. Owner, context
    and cause, where they are given, are checked; `recording` completes them.

    Raises:
        InvalidInput: `memory_id` is missing or empty, or `event` is not one.
    """
    event = _known_event(columns["event"])
    if event is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {shown(columns['event'])}")
    memory_id = columns["memory_id"]
    if not memory_id:
        problem = "is missing" if memory_id is None else "must not be empty"
        raise InvalidInput(f"memory_id {problem}")
    created, updated = columns["created_at"], columns["updated_at"]
    is_add = event is Event.ADD
    return made_record(
        new_id(),
        memory_id,
        columns["old_memory"],
        columns["new_memory"],
        event,
        created or (now if is_add else None),
        updated or (None if is_add else now),
        columns["is_deleted"],
        columns["actor_id"],
        columns["role"],
        None,
        *_new_details(columns.get("owner"), columns.get("context"), columns.get("cause")),
    )


def _known_event(event: object) -> Event | None:
    return EVENTS.get(event) if isinstance(event, str) else None


def fields_from_mapping(given: Mapping[str, Any], now: str | None = None) -> Fields:
    """Check one new record given by column name, as mem0's `batch_add_history` takes them.

    Raises:
        InvalidInput: as `new_fields`, or a key is not a field of a record.
    """
    if not given.keys() <= _FIELDS:
        unknown = sorted(set(map(str, given)) - _FIELDS)
        known = ", ".join(ROW_FIELDS)
        raise InvalidInput(f"{unknown[0]!r} is not a field of a history record; use {known}")
    get = given.get
    memory_id, event = get("memory_id"), get("event")
    if memory_id is None or event is None:
        raise InvalidInput(f"{'memory_id' if memory_id is None else 'event'} is missing")
    return new_fields(
        memory_id,
        get("old_memory"),
        get("new_memory"),
        event,
        get("created_at"),
        get("updated_at"),
        get("is_deleted"),
        get("actor_id"),
        get("role"),
        get("id"),
        now,
        get("owner"),
        get("context"),
        get("cause"),
    )


def record_from_mapping(given: Mapping[str, Any], now: str | None = None) -> HistoryRecord:
    """Return the record of `fields_from_mapping`."""
    return made_record(*fields_from_mapping(given, now))


_FIELDS: Final = frozenset(ROW_FIELDS)
