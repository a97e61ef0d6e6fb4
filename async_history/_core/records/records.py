"""History records: one change of one memory each."""

import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

from async_history._core.records.owners import Owner
from async_history._core.records.values import parse_time, plain


class Event(StrEnum):
    """The kind of a change of a memory."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


EVENTS: Final = {event.value: event for event in Event}
"""The events by their text. An existing row may have another text."""

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
"""The columns as a list in SQL and in messages."""
DETAILS: Final = ("owner", "context", "cause")
"""The fields of a record that mem0's table does not have."""


@dataclass(frozen=True, slots=True, init=False)
class HistoryRecord:
    """One change of one memory: mem0's ten columns, the memory's owner, and the cause.

    `event` is an `Event`, or another text found in an existing row. `created_at` and `updated_at`
    are ISO 8601 text, exactly as given. If neither is the time of the change, `time_before` is
    `occurred_at` of the memory's previous record. `owner` is the memory's owner, `context` its
    metadata after the change. `cause` is the reason of the change: short texts by free keys. Each
    is None if it is not known.
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
        # As dataclass would generate it, but without object.__setattr__, which takes twice as long:
        # each record is created on the event loop.
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
        """When the change occurred, aware: `created_at` of an ADD, else `updated_at`, else the time
        of the previous record. A text without an offset counts as UTC. None if none of these is a
        valid time.
        """
        text = self.created_at if self.event == Event.ADD else self.updated_at
        return (parse_time(text) if text is not None else None) or self.time_before

    @property
    def recorded_at(self) -> datetime | None:
        """When the record was created, in UTC, to the millisecond: the time in its UUIDv7.

        None if the id was given by another program.
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
    """A record under construction: the same slots, but assignable."""

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
"""Creates a record from all its fields, in their order.

It takes two fifths of the constructor's time, and all records are created on the event loop.
Without the GIL it is the constructor: changing the class of an object would stop all threads.
"""


Fields = tuple[Any, ...]
"""The arguments of `made_record`."""
MEMORY_ID: Final = COLUMNS.index("memory_id")
TIME_BEFORE: Final = len(COLUMNS)
OWNER, CONTEXT, CAUSE = range(TIME_BEFORE + 1, TIME_BEFORE + 1 + len(DETAILS))
"""Indexes of fields."""


def give_owner(record: HistoryRecord, owner: Owner) -> None:
    """Set the stored owner of its memory in a record that was not yet returned to a caller."""
    _set_owner(record, owner)


def give_text(
    record: HistoryRecord, new_memory: str | None, context: Mapping[str, Any] | None
) -> None:
    """Set the text and context in a record that was not yet returned to a caller."""
    _set_new_memory(record, new_memory)
    _set_context(record, context)


_UUID_DIGITS: Final = 32
_VERSION_DIGIT: Final = 12
_TIME_DIGITS: Final = 12

columns_of: Final[Callable[[HistoryRecord], tuple[Any, ...]]] = attrgetter(*COLUMNS)
fields_in_order: Final[Callable[[HistoryRecord], Fields]] = attrgetter(
    *COLUMNS, "time_before", *DETAILS
)


class MemoryState(NamedTuple):
    """The values of a memory's latest record that its next text depends on.

    Attributes:
        is_deleted: whether the record deletes the memory, by its event or its mark.
    """

    is_deleted: bool
    new_memory: str | None
    created_at: str | None
    context: Mapping[str, Any] | None


made_state: Final[Callable[[Sequence[Any]], MemoryState]] = partial(tuple.__new__, MemoryState)
"""Creates a state from its values, in a third less time than its class."""

Latest = HistoryRecord | MemoryState
"""A memory's latest record, or its values that decide."""
_DELETE: Final = Event.DELETE
_AS_FORMATTED: Final = re.compile(r"....-..-..T..:..:..\.(?!000000)......\+00:00")
"""The form of most valid times. `isoformat` would return them unchanged, but takes four times as
long, and classes of digits twice as long."""


def is_alive(record: Latest) -> bool:
    """Return whether a memory exists if this record is its latest."""
    if record.is_deleted:
        return False
    return isinstance(record, MemoryState) or record.event != _DELETE


def made_at(latest: Latest) -> str | None:
    """Return `created_at` for an UPDATE after a record: as in mem0, when the memory was created.

    None if the record has no time, or one that is not valid in a new record.
    """
    text = latest.created_at or ""
    made = parse_time(text)
    if made is None:
        return None
    return text if _AS_FORMATTED.fullmatch(text) else made.isoformat()


def known_event(event: object) -> Event | None:
    """Return the event of a text; None if the text is not one."""
    return EVENTS.get(event) if isinstance(event, str) else None
