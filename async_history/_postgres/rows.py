"""Conversion of PostgreSQL's rows to records, and of records to arguments."""

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import MAXYEAR, datetime
from secrets import token_hex
from typing import Any, Final

from async_history._core.encryption.sealed_records import SealedTexts
from async_history._core.records.json_object import JsonObject
from async_history._core.records.owners import owner_text
from async_history._core.records.records import (
    COLUMN_LIST,
    COLUMNS,
    EVENTS,
    TIME_BEFORE,
    Event,
    Fields,
    HistoryRecord,
    made_record,
)
from async_history._core.records.rows import Row
from async_history._core.records.values import in_utc, parse_time
from async_history._postgres.detail_columns import SCOPE_LIST, owner_of

Fetch = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""A function that runs one SELECT with its arguments."""

_OWN_TIME: Final = "CASE event WHEN 'ADD' THEN created_at ELSE updated_at END"
RECORD_COLUMNS: Final = (
    f"{COLUMN_LIST}, CASE WHEN {_OWN_TIME} LIKE '____-__-__T__:__:__.______+00:00' THEN NULL"
    " WHEN occurred_at >= '0001-01-01T00:00:00+00:00'::pg_catalog.timestamptz"
    " AND occurred_at < '10000-01-01T00:00:00+00:00'::pg_catalog.timestamptz THEN occurred_at END,"
    f" {SCOPE_LIST}, context, cause"
)
"""The columns for `record_from_row`: mem0's ten, the instant, the owner's scopes, context and
cause. The instant is NULL if the record's own time has our format, because decoding it would take a
third of the time of all others. It is also NULL if a datetime in UTC can't hold it."""
RECORD_NULLS: Final = (
    *("NULL",) * COLUMNS.index("is_deleted"),
    "NULL::pg_catalog.bool",
    *("NULL",) * 2,
    "NULL::pg_catalog.timestamptz",
    *("NULL",) * 6,
)
"""One NULL for each of `RECORD_COLUMNS`."""
ROW_COLUMNS: Final = f"{COLUMN_LIST}, {SCOPE_LIST}, context, cause"
"""The columns for `row_from`."""


def values_of(fields: Fields) -> tuple[Any, ...]:
    """Return a record's ten columns, then its instant in the format of `joined_columns`."""
    return *fields[:_MORE], _instant_text(fields)


def encodable_values_of(fields: Fields) -> tuple[Any, ...] | None:
    """Return a record's ten columns, then its instant; None if the driver can't encode that."""
    instant = _instant(fields)
    if instant is not None and not 1 < instant.year < MAXYEAR:  # it may not exist in UTC
        return None
    return *fields[:_MORE], instant


def joined_columns(
    fields: Sequence[Fields], texts: SealedTexts | None, *more: Sequence[str | None]
) -> tuple[str | None, ...]:
    """Return the `joined_texts` of records' columns, their instants, and `more`.

    Their texts are sealed if `texts` has them.

    Instants are ISO 8601 text, with an offset that servers accept: the driver can't encode all of
    Python's in UTC.
    """
    columns: list[Any] = list(zip(*fields, strict=True))[:_MORE]
    if texts is not None:
        columns[_OLD], columns[_NEW] = texts.old_memory, texts.new_memory
    columns[_IS_DELETED] = ["t" if is_deleted else "f" for is_deleted in columns[_IS_DELETED]]
    return joined_texts([*columns, _instants(fields), *more])


def joined_texts(columns: Sequence[Sequence[str | None]]) -> tuple[str | None, ...]:
    """Return columns, each as one text, and then a separator and a null.

    `string_to_array(column, separator, null)` returns a column, after one extra first element
    (without it, an empty text would give an empty array). A column without any text is None.
    Arrays would take asyncpg ten times as long: it checks whether each None and bool in them is a
    container.
    """
    separator, null = "\x1f", "\x1e"
    while any(_contains(column, separator, null) for column in columns):
        separator, null = f"\x1f{token_hex(8)}", f"\x1e{token_hex(8)}"
    return *[_joined(column, separator, null) for column in columns], separator, null


def _contains(column: Sequence[str | None], separator: str, null: str) -> bool:
    """Return whether a column's texts contain the separator or the null."""
    # Joining first takes half the time of counting: a search for one character is fast.
    try:
        texts = "".join(column)  # type: ignore[arg-type]
    except TypeError:
        texts = "".join([text for text in column if text is not None])
    return separator in texts or null in texts


def _joined(column: Sequence[str | None], separator: str, null: str) -> str | None:
    """Return a column as one text; None if it has no text."""
    try:
        return separator + separator.join(column) if column else None  # type: ignore[arg-type]
    except TypeError:  # sooner than by counting the values that are None
        if column.count(None) == len(column):
            return None
        return separator + separator.join([null if text is None else text for text in column])


NAMES: Final = "pg_catalog.string_to_array($1::pg_catalog.text, $2::pg_catalog.text)"
"""SQL for an array of names. Its parameters are `joined_names`."""


def joined_names(names: Sequence[str]) -> tuple[str, str]:
    """Return one or more names as one text, and their separator: see `joined_texts`."""
    text, separator, _ = joined_texts([names])
    assert text is not None  # noqa: S101 - there is a name
    assert separator is not None  # noqa: S101
    return text.removeprefix(separator), separator


def _instants(fields: Sequence[Fields]) -> Sequence[str | None]:
    """Return the instants of records as text. Only times in another format than ours are parsed."""
    add = Event.ADD
    texts = [one[_CREATED_AT] if one[_EVENT] is add else one[_UPDATED_AT] for one in fields]
    ours = [text for text in texts if text is not None and len(text) == _WIDTH]
    if not _are_times("".join(ours)):
        ours = []
    if len(ours) == len(texts):
        return texts
    known = set(ours)
    return [
        text if text in known else _instant_text(one)
        for text, one in zip(texts, fields, strict=True)
    ]


def _instant(fields: Fields) -> datetime | None:
    """Return a record's `occurred_at`, without creating the record."""
    text = fields[_CREATED_AT] if fields[_EVENT] == Event.ADD else fields[_UPDATED_AT]
    instant = None if text is None else parse_time(text)
    return fields[TIME_BEFORE] if instant is None else instant


def _instant_text(fields: Fields) -> str | None:
    instant = _instant(fields)
    return None if instant is None else in_utc(instant).isoformat()


_OLD, _NEW, _EVENT, _CREATED_AT, _UPDATED_AT, _IS_DELETED = map(
    COLUMNS.index,
    ("old_memory", "new_memory", "event", "created_at", "updated_at", "is_deleted"),
)
_MORE: Final = len(COLUMNS)
"""The index of the first value after mem0's columns, in fields and in rows."""
_MINUTES: Final = r":[0-5]\d:[0-5]\d\.\d{6}[+-](?:0\d|1[0-4]):[0-5]\d"
"""Servers accept offsets of less than 16 hours, Python of less than 24."""
_OF_AN_HOUR: Final = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d){_MINUTES}(?:\1{_MINUTES})*", re.ASCII)
_OF_ANY_DAY: Final = re.compile(
    rf"""(?:
        (?!0000)\d{{4}}-
        (?: (?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8]) | (?:0[13-9]|1[0-2])-(?:29|30)
            | (?:0[13578]|1[02])-31 )
        T(?:[01]\d|2[0-3]){_MINUTES}
    )*""",
    re.ASCII | re.VERBOSE,
)


def _are_times(written: str) -> bool:
    """Return whether all of the concatenated times are valid and in our format.

    Nearly all are, and then need no parsing. A batch's times are mostly within one hour.
    """
    hour = _OF_AN_HOUR.fullmatch(written)
    if hour is not None:
        return parse_time(f"{hour[1]}:00") is not None
    return _OF_ANY_DAY.fullmatch(written) is not None


_WIDTH: Final = len("2026-11-20T09:41:15.250000+00:00")


def record_from_row(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row of `RECORD_COLUMNS`."""
    event = row[4]
    instant, user_id, agent_id, run_id, app_id, context, cause = row[10:]
    if instant is not None:
        own = row[5] if event == Event.ADD else row[6]
        if own is not None and parse_time(own) is not None:
            instant = None  # its own time, not the previous record's
    return made_record(
        row[0],
        row[1],
        row[2],
        row[3],
        EVENTS.get(event, event),
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        instant,
        owner_of(user_id, agent_id, run_id, app_id),
        None if context is None else JsonObject(context),
        None if cause is None else JsonObject(cause),
    )


def row_from(row: Sequence[Any]) -> Row:
    """Return the `row_of` a record from its row of `ROW_COLUMNS`."""
    return *row[:_MORE], owner_text(owner_of(*row[_MORE : _MORE + 4])), row[-2], row[-1]
