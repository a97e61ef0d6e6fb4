"""Records as rows of text, as JSON, and back."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from async_history._core.records.json_object import (
    JsonObject,
    json_from_text,
    json_object,
    json_text,
)
from async_history._core.records.owners import Owner, new_owner, owner_from_text, owner_text
from async_history._core.records.recording import new_cause
from async_history._core.records.records import (
    COLUMNS,
    DETAILS,
    HistoryRecord,
    columns_of,
    known_event,
)

Row = tuple[Any, ...]
"""A record's ten columns; then its owner, context and cause as JSON text, or None."""
ReadRows = Callable[[], Awaitable[Sequence[Row]]]


def details_of(record: HistoryRecord) -> tuple[str | None, str | None, str | None]:
    """Return a record's owner, context and cause as JSON text."""
    return owner_text(record.owner), json_text(record.context), json_text(record.cause)


def row_of(record: HistoryRecord) -> Row:
    """Return the row of a record."""
    return *columns_of(record), *details_of(record)


def fields_of(record: HistoryRecord) -> dict[str, Any]:
    """Return a record for JSON: mem0's mapping, and owner, context and cause, if known, as
    mappings.
    """
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
        known_event(event) or event,
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
    """Return a record's owner, context and cause from JSON texts."""
    return owner_from_text(owner), json_from_text(context), json_from_text(cause)


ROW_FIELDS: Final = (*COLUMNS, *DETAILS)
"""The names of a row's values."""
