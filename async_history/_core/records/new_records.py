"""New records: every value is checked, and missing ones are filled in."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from uuid_utils import uuid7

from async_history._core.records.json_object import json_object
from async_history._core.records.owners import GivenOwner, new_owner
from async_history._core.records.recording import new_cause, surroundings, with_surroundings
from async_history._core.records.records import (
    EVENTS,
    Event,
    Fields,
    HistoryRecord,
    known_event,
    made_record,
)
from async_history._core.records.rows import ROW_FIELDS, Details
from async_history._core.records.values import (
    check_bit,
    check_name,
    check_text,
    check_time,
    now_text,
)
from async_history._core.validation import shown
from async_history.errors import InvalidInput

_ADD: Final = Event.ADD
_DELETE: Final = Event.DELETE
"""Up to Python 3.11, finding a member by its enum takes a tenth of a microsecond."""


def new_id() -> str:
    """Return a new UUIDv7: increasing ids keep the primary key's index fast."""
    return str(uuid7())


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
    """Check one new record, fill in missing values, and return all its fields in order.

    A missing `id` becomes a UUIDv7, a missing time of the change (`created_at` of an ADD, otherwise
    `updated_at`) becomes `now`, a missing `is_deleted` follows from the event. `recording`
    completes owner and cause.

    Raises:
        InvalidInput: a value is missing, has another type, or cannot be stored exactly.
    """
    change = EVENTS.get(event) if type(event) is str else known_event(event)
    if change is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {shown(event)}")
    created = None if created_at is None else check_time("created_at", created_at)
    updated = None if updated_at is None else check_time("updated_at", updated_at)
    if change is _ADD:
        created = created or now or now_text()
    else:
        updated = updated or now or now_text()
    # `check_text` and `check_name` usually return the text at once: calling them takes longer than
    # this check.
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
        change,
        created,
        updated,
        change is _DELETE if is_deleted is None else check_bit("is_deleted", is_deleted),
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
    """Return a new record with a generated id, from columns that are known to be storable.

    Texts are results of `check_text` and times of `check_time`; `is_deleted` is a bool. Only
    `memory_id`, `event`, owner, context and cause are checked. A missing time of the change becomes
    `now`. `recording` completes owner and cause.

    Raises:
        InvalidInput: `memory_id` is missing or empty, or `event` is not one.
    """
    event = known_event(columns["event"])
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


def fields_from_mapping(given: Mapping[str, Any], now: str | None = None) -> Fields:
    """Check one new record, given as a mapping as for mem0's `batch_add_history`.

    Raises:
        InvalidInput: as `new_fields`, or a key is not a field of a record.
    """
    if not given.keys() <= _FIELDS:
        unknown = min(shown(key) for key in given if key not in _FIELDS)
        known = ", ".join(ROW_FIELDS)
        raise InvalidInput(f"{unknown} is not a field of a history record; use {known}")
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
