"""What is stored: events, history records and messages, each checked before it is queued."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

from uuid_utils import uuid7

from async_history.errors import InvalidInput


class Event(StrEnum):
    """What happened to a memory."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


EVENTS: Final = {event.value: event for event in Event}
"""Each event by its text. An existing row may have another text."""

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


@dataclass(frozen=True, slots=True, init=False)
class HistoryRecord:
    """One change of one memory: mem0's ten columns.

    `event` is an `Event`, or the text found in an existing row when it is none of them.
    `created_at` and `updated_at` are ISO 8601 text, exactly as they were given.
    `time_before` is set where neither says when the change happened: `occurred_at` of the memory's
    record before this one.
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

    @property
    def occurred_at(self) -> datetime | None:
        """When the change happened, aware: `created_at` of an ADD, else `updated_at`, else the
        time of the record before it. A text without an offset counts as UTC. None where none of
        these can be read as a time.
        """
        text = self.created_at if self.event == Event.ADD else self.updated_at
        return (parse_time(text) if text is not None else None) or self.time_before

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
) = (getattr(HistoryRecord, name).__set__ for name in (*COLUMNS, "time_before"))


Row = tuple[Any, ...]
"""A record's ten columns."""
row_of: Final[Callable[[HistoryRecord], Row]] = attrgetter(*COLUMNS)


def record_of(row: Row) -> HistoryRecord:
    """Return the record of a row, whose event may be plain text."""
    record_id, memory_id, old_memory, new_memory, event, *others = row
    return HistoryRecord(
        record_id, memory_id, old_memory, new_memory, _known_event(event) or event, *others
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a session scope's rolling buffer. `created_at` is ISO 8601 text, UTC.

    `is_json` says that `content` is JSON of something that is not text, as its writer said.
    """

    role: str | None
    content: str | None
    name: str | None = None
    created_at: str | None = None
    is_json: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return exactly the mapping that mem0's `get_last_messages` returns for this message."""
        return {
            "role": self.role,
            "content": self.content,
            "name": self.name,
            "created_at": self.created_at,
        }


def new_id() -> str:
    """Return a fresh UUIDv7: ids that grow keep the primary key's index fast (TRAPS, drivers)."""
    return str(uuid7())


_JSON_ID: Final = "json-"
"""What the id of a message begins with whose content is JSON: mem0's table has no column for it."""


def new_message_id(message: Message) -> str:
    """Return a fresh id that keeps whether the message's content is JSON."""
    return f"{_JSON_ID}{new_id()}" if message.is_json else new_id()


def message_from_row(row: Sequence[Any]) -> Message:
    """Return the message of a row: id, role, content, name, created_at."""
    message_id, role, content, name, created_at = row
    return Message(role, content, name, created_at, str(message_id).startswith(_JSON_ID))


def parse_time(text: str) -> datetime | None:
    """Return the aware instant an ISO 8601 text names (UTC where it has no offset), or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_alive(record: HistoryRecord) -> bool:
    """Return whether a memory exists once this record is its latest."""
    return record.event != Event.DELETE and not record.is_deleted


def made_at(latest: HistoryRecord) -> str | None:
    """Return `created_at` of an UPDATE that follows a record, as mem0 has it: the memory's own.

    None where that one has no time, or one that a new record may not have.
    """
    made = parse_time(latest.created_at or "")
    return None if made is None else made.isoformat()


def is_aware(moment: object) -> bool:
    """Return whether something is a datetime that names an instant."""
    return isinstance(moment, datetime) and moment.utcoffset() is not None


def in_utc(moment: datetime) -> datetime:
    """Return the same instant in UTC: databases do not take all of the offsets that Python has.

    Within a day of the first or last that UTC has it may have none: then it is returned as it is.
    """
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return moment


def now_text() -> str:
    """Return this moment in UTC as ISO 8601 text, to the microsecond.

    Every record needs one: all but the fraction is kept for a second, which takes a third of the
    time of `datetime.isoformat`.
    """
    global _this_second
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    known, text = _this_second
    if second != known:
        text = datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")
        _this_second = (second, text)
    return f"{text}.{nanoseconds // 1000:06d}+00:00"


_this_second = (0, "1970-01-01T00:00:00")


def new_record(
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
) -> HistoryRecord:
    """Check one new record and fill in what is missing.

    A missing `id` becomes a UUIDv7, a missing time of the change (`created_at` of an ADD,
    `updated_at` else) becomes `now`, a missing `is_deleted` follows from the event.

    Raises:
        InvalidInput: a value is missing, of another type, or holds what the store could not give
            back exactly.
    """
    known_event = _known_event(event)
    if known_event is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {_shown(event)}")
    created = None if created_at is None else check_time("created_at", created_at)
    updated = None if updated_at is None else check_time("updated_at", updated_at)
    if known_event is Event.ADD:
        created = created or now or now_text()
    else:
        updated = updated or now or now_text()
    return HistoryRecord(
        new_id() if id is None else check_name("id", id),
        check_name("memory_id", memory_id),
        None if old_memory is None else check_text("old_memory", old_memory),
        None if new_memory is None else check_text("new_memory", new_memory),
        known_event,
        created,
        updated,
        known_event is Event.DELETE if is_deleted is None else _flag("is_deleted", is_deleted),
        None if actor_id is None else check_text("actor_id", actor_id),
        None if role is None else check_text("role", role),
    )


def storable_record(columns: Mapping[str, Any], now: str) -> HistoryRecord:
    """Return a new record, under an id of ours, of columns that are known to be storable.

    Texts are as `check_text` returns them and times as `check_time`; `is_deleted` is a bool. What
    may be wrong still is what names the change. A missing time of it becomes `now`.

    Raises:
        InvalidInput: `memory_id` is missing or empty, or `event` is not one.
    """
    event = _known_event(columns["event"])
    if event is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {_shown(columns['event'])}")
    memory_id = columns["memory_id"]
    if not memory_id:
        problem = "is missing" if memory_id is None else "must not be empty"
        raise InvalidInput(f"memory_id {problem}")
    created, updated = columns["created_at"], columns["updated_at"]
    is_add = event is Event.ADD
    return HistoryRecord(
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
    )


def _known_event(event: object) -> Event | None:
    return EVENTS.get(event) if isinstance(event, str) else None


def plain(text: Any) -> Any:
    """Return a text as `str` itself, anything else as it is.

    `str()` of a member of an enum of texts is its name. Its text, which it is equal to and which a
    driver stores, is its value.
    """
    return str.__str__(text) if isinstance(text, str) else text


def record_from_mapping(given: Mapping[str, Any], now: str | None = None) -> HistoryRecord:
    """Check one new record given by column name, as mem0's `batch_add_history` takes them.

    Raises:
        InvalidInput: as `new_record`, or a key is not a column.
    """
    if not given.keys() <= _COLUMN_SET:
        unknown = sorted(set(map(str, given)) - _COLUMN_SET)
        raise InvalidInput(f"{unknown[0]!r} is not a column of a history record; use {COLUMN_LIST}")
    get = given.get
    for name in ("memory_id", "event"):
        if get(name) is None:
            raise InvalidInput(f"{name} is missing")
    return new_record(
        given["memory_id"],
        get("old_memory"),
        get("new_memory"),
        given["event"],
        get("created_at"),
        get("updated_at"),
        get("is_deleted"),
        get("actor_id"),
        get("role"),
        get("id"),
        now,
    )


_COLUMN_SET: Final = frozenset(COLUMNS)


def check_text(name: str, value: object) -> str:
    """Return `value` if every store can hold it unchanged.

    Raises:
        InvalidInput: it is not text, or has a NUL or a lone surrogate.
    """
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidInput(f"{name} holds a NUL character, which databases cut text at; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{name} holds a lone surrogate at position {error.start}, which is not a character; "
            "replace it"
        ) from error
    return str.__str__(value)


def check_name(name: str, value: object) -> str:
    """Return `value` if it is text that can name something: as `check_text`, and not empty."""
    text = check_text(name, value)
    if not text:
        raise InvalidInput(f"{name} must not be empty")
    return text


def check_time(name: str, value: object) -> str:
    """Return a time as text, exactly as given.

    Raises:
        InvalidInput: it is not a datetime or an ISO 8601 text.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    text = check_text(name, value)
    if parse_time(text) is None or "-" not in text:
        raise InvalidInput(
            f"{name} must be a datetime or an ISO 8601 text like 2026-11-20T09:41:15+00:00, "
            f"not {_shown(text)}"
        )
    return text


def _flag(name: str, value: object) -> bool:
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise InvalidInput(f"{name} must be a bool, 0 or 1, not {_shown(value)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


_SHOWN_CHARACTERS: Final = 60
