"""When a change happened, in SQL: instants of every spelling, as text that compares.

Nearly all times are as we write them, in UTC and to the microsecond, which compares as it is. What
is spelt otherwise Python reads, one by one.
"""

import sqlite3
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.records import parse_time

_AS_WE_WRITE_IT: Final = "????-??-??T??:??:??.??????+00:00"
"""What has this shape is taken for a time: to look at each digit took three times as long as all
the rest of a scan."""

_FIRST: Final = "0001-01-01T00:00:00.000000+00:00"
_LAST: Final = "9999-12-31T23:59:59.999999+00:00"


def own_time(row: str) -> str:
    """Return SQL of what a row itself says of its time: text of any spelling, a number, NULL."""
    return f"CASE {row}.event WHEN 'ADD' THEN {row}.created_at ELSE {row}.updated_at END"


def is_plain(row: str) -> str:
    """Return the SQL condition that a row's time is spelt as we write it."""
    return f"{own_time(row)} GLOB '{_AS_WE_WRITE_IT}'"


def own_instant(row: str) -> str:
    """Return SQL of the instant that a row itself names; NULL where it names none."""
    own = own_time(row)
    return f"CASE WHEN {is_plain(row)} THEN {own} ELSE async_history_instant({own}) END"


def occurred_at(row: str, time_before: str) -> str:
    """Return SQL of a row's instant as text that compares; NULL where nobody knows.

    `time_before` is SQL of the instant that the row has where it names none.
    """
    own = own_time(row)
    return (
        f"CASE WHEN {is_plain(row)} THEN {own}"
        f" ELSE coalesce(async_history_instant({own}), {time_before}) END"
    )


def missing_time(row: str, time_before: str) -> str:
    """Return SQL of `time_before` where a row itself names no instant; else NULL."""
    return (
        f"CASE WHEN {is_plain(row)} OR async_history_instant({own_time(row)}) IS NOT NULL"
        f" THEN NULL ELSE {time_before} END"
    )


def instant_text(moment: datetime) -> str:
    """Return an instant as the text it is compared as."""
    try:
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError:  # within a day of the first or last that UTC has
        return _FIRST if moment.year == 1 else _LAST


def _instant(stored: Any) -> str | None:
    moment = None if stored is None else parse_time(str(stored))
    return None if moment is None else instant_text(moment)


def add_time_function(connection: sqlite3.Connection) -> None:
    """Give a connection the function that the expressions here call."""
    connection.create_function("async_history_instant", 1, _instant, deterministic=True)
