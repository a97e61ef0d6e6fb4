"""SQL expressions for the time of a change, as text that sorts by time.

Nearly all times have our own format, UTC with microseconds, which sorts as text. Others are
converted by a Python function, one by one.
"""

import sqlite3
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.records.values import parse_time

_OUR_FORMAT: Final = "????-??-??T??:??:??.??????+00:00"
"""A text of this shape counts as a time. Checking each digit took three times as long as the rest
of a scan."""

_FIRST: Final = "0001-01-01T00:00:00.000000+00:00"
_LAST: Final = "9999-12-31T23:59:59.999999+00:00"


def own_time(row: str) -> str:
    """Return SQL for a row's own time as stored: text in any format, a number, or NULL."""
    return f"CASE {row}.event WHEN 'ADD' THEN {row}.created_at ELSE {row}.updated_at END"


def is_plain(row: str) -> str:
    """Return the SQL condition that a row's own time has our format.

    It is a text then: only a BLOB, which some builds of SQLite compare with GLOB, is not below x''.
    """
    return f"({own_time(row)} GLOB '{_OUR_FORMAT}' AND {own_time(row)} < x'')"


def own_instant(row: str) -> str:
    """Return SQL for a row's own time as sortable text; NULL if it has none."""
    own = own_time(row)
    return f"CASE WHEN {is_plain(row)} THEN {own} ELSE async_history_instant({own}) END"


def occurred_at(row: str, time_before: str) -> str:
    """Return SQL for a row's time as sortable text; NULL if it is unknown.

    `time_before` is SQL for the time of a row without one.
    """
    own = own_time(row)
    return (
        f"CASE WHEN {is_plain(row)} THEN {own}"
        f" ELSE coalesce(async_history_instant({own}), {time_before}) END"
    )


def missing_time(row: str, time_before: str) -> str:
    """Return SQL for `time_before` if a row has no time; otherwise NULL."""
    return (
        f"CASE WHEN {is_plain(row)} OR async_history_instant({own_time(row)}) IS NOT NULL"
        f" THEN NULL ELSE {time_before} END"
    )


def instant_text(moment: datetime) -> str:
    """Return an instant as sortable text."""
    try:
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError:  # within a day of the first or last time in UTC
        return _FIRST if moment.year == 1 else _LAST


def _instant(stored: Any) -> str | None:
    moment = None if stored is None else parse_time(str(stored))
    return None if moment is None else instant_text(moment)


def add_time_function(connection: sqlite3.Connection) -> None:
    """Add to a connection the SQL function that these expressions call."""
    connection.create_function("async_history_instant", 1, _instant, deterministic=True)
