"""Conversion of records to rows of the table, and of rows to records."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Column

from async_history._core.records.json_object import JsonObject, json_text
from async_history._core.records.owners import SCOPES, Owner, new_owner, owner_text
from async_history._core.records.records import COLUMNS, EVENTS, Event, HistoryRecord, made_record
from async_history._core.records.rows import Row
from async_history._core.records.values import parse_time, plain
from async_history._core.writing.erased_names import from_microseconds, microseconds
from async_history._sql.names import NAMES, all_are_keys, key_of, long_names, whole_names
from async_history._sql.tables import Tables
from async_history.errors import InvalidInput, StorageCorrupt

PLAIN_COLUMNS: Final = ("seq", *COLUMNS, "occurred_at")
"""The columns of a record without details."""
ALL_COLUMNS: Final = (*PLAIN_COLUMNS, *SCOPES, "context", "cause", "long_names")
_EVENT_BITS: Final = {Event.ADD: 1, Event.UPDATE: 2, Event.DELETE: 4}
OTHER_EVENT: Final = 8


def event_bit(event: str) -> int:
    """Return the bit of an event in `spans.events`."""
    return _EVENT_BITS.get(event, OTHER_EVENT)  # type: ignore[call-overload,no-any-return]


def columns_read(tables: Tables) -> list[Column[Any]]:
    """Return the columns for `record_from_row`."""
    return [tables.history.c[name] for name in ALL_COLUMNS]


def instant_of(record: HistoryRecord) -> int | None:
    """Return when a record occurred, in microseconds since 1970."""
    text = record.created_at if record.event == Event.ADD else record.updated_at
    instant = None if text is None else _instant(text)
    if instant is None and record.time_before is not None:
        return microseconds(record.time_before)
    return instant


@lru_cache(1_024)
def _instant(text: str) -> int | None:
    """Return the instant of a time's text. It is cached: a batch has few different times."""
    moment = parse_time(text)
    return None if moment is None else microseconds(moment)


def texts_of(record: HistoryRecord) -> list[str]:
    """Return the texts of a record that may be long."""
    texts = (
        record.old_memory,
        record.new_memory,
        json_text(record.context),
        json_text(record.cause),
    )
    return [text for text in texts if text is not None]


def are_plain(records: Sequence[HistoryRecord]) -> bool:
    """Return whether records need only the plain columns: no details, no long names."""
    names: list[str] = []
    for record in records:
        if record.owner is not None or record.context is not None or record.cause is not None:
            return False
        names += (record.id, record.memory_id, record.event)
        if record.actor_id is not None:
            names.append(record.actor_id)
        if record.role is not None:
            names.append(record.role)
    return all_are_keys(names)


def plain_row(seq: int, record: HistoryRecord, instant: int | None) -> tuple[Any, ...]:
    """Return the row of `PLAIN_COLUMNS` of a record that needs only them: see `are_plain`."""
    return (
        seq,
        record.id,
        record.memory_id,
        record.old_memory,
        record.new_memory,
        plain(record.event),
        record.created_at,
        record.updated_at,
        1 if record.is_deleted else 0,
        record.actor_id,
        record.role,
        instant,
    )


def _key(name: str | None) -> str | None:
    return None if name is None else key_of(name)


def full_row(seq: int, record: HistoryRecord, instant: int | None) -> tuple[Any, ...]:
    """Return the row of `ALL_COLUMNS` of a record."""
    names = {
        "id": record.id,
        "memory_id": record.memory_id,
        "event": plain(record.event),
        "actor_id": record.actor_id,
        "role": record.role,
        **scopes_of(record.owner),
    }
    keys = {name: _key(value) for name, value in names.items()}
    return (
        seq,
        keys["id"],
        keys["memory_id"],
        record.old_memory,
        record.new_memory,
        keys["event"],
        record.created_at,
        record.updated_at,
        1 if record.is_deleted else 0,
        keys["actor_id"],
        keys["role"],
        instant,
        *(keys[name] for name in SCOPES),
        json_text(record.context),
        json_text(record.cause),
        long_names(names),
    )


def values_of(record: HistoryRecord, instant: int | None) -> dict[str, Any]:
    """Return the values of a record's columns, without its number."""
    return dict(zip(ALL_COLUMNS[1:], full_row(0, record, instant)[1:], strict=True))


def scopes_of(owner: Owner | None) -> dict[str, str | None]:
    """Return an owner's scopes by name; a missing one is None."""
    return {name: getattr(owner, name, None) for name in SCOPES}


def owner_of(scopes: Sequence[str | None]) -> Owner | None:
    """Return the owner with these scopes, in their order; None if all are missing.

    Raises:
        StorageCorrupt: another program stored a scope that is not one.
    """
    return None if not any(scopes) else _owner(*scopes)


@lru_cache(16_384)
def _owner(*scopes: str | None) -> Owner | None:
    try:
        return new_owner(dict(zip(SCOPES, scopes, strict=True)))
    except InvalidInput as error:
        raise StorageCorrupt(f"an owner can't be read: {error}") from error


def owner_row(memory_id: str, owner: Owner) -> dict[str, Any]:
    """Return the row of `owners` of a memory."""
    names = {"memory_id": memory_id, **scopes_of(owner)}
    keys = {name: _key(value) for name, value in names.items()}
    return {**keys, "long_names": long_names(names)}


def names_from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's values by column, with whole names."""
    values = dict(row)
    stored = values.pop("long_names")
    if stored is None:
        return values
    columns = [name for name in values if name in NAMES]
    whole = whole_names([values[name] for name in columns], columns, stored)
    return values | dict(zip(columns, whole, strict=True))


def record_from_row(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row of `ALL_COLUMNS`."""
    if row[-1] is not None:
        row = whole_names(row, ALL_COLUMNS, row[-1])
    event = row[5]
    own = row[6] if event == Event.ADD else row[7]
    instant = row[11]
    before: datetime | None = None
    if instant is not None and (own is None or parse_time(own) is None):
        before = _moment(instant)
    return made_record(
        row[1],
        row[2],
        row[3],
        row[4],
        EVENTS.get(event, event),
        row[6],
        row[7],
        bool(row[8]),
        row[9],
        row[10],
        before,
        owner_of(row[12:16]),
        None if row[16] is None else JsonObject(row[16]),
        None if row[17] is None else JsonObject(row[17]),
    )


def _moment(instant: int) -> datetime | None:
    try:
        return from_microseconds(instant)
    except OverflowError:  # within a day of the first or last datetime
        return None
    except TypeError as error:  # SQLite stores any value in any column
        raise StorageCorrupt("occurred_at of a record is not a number: `check` names it") from error


def row_from(row: Sequence[Any]) -> Row:
    """Return the `row_of` a record from its row of `ALL_COLUMNS`."""
    if row[-1] is not None:
        row = whole_names(row, ALL_COLUMNS, row[-1])
    return *row[1:8], bool(row[8]), row[9], row[10], owner_text(owner_of(row[12:16])), *row[16:18]
