"""Stored values: texts and times, checked and parsed."""

import time
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.validation import shown
from async_history.errors import InvalidInput


def check_text(name: str, value: object) -> str:
    """Return `value` if every store can hold it unchanged.

    Raises:
        InvalidInput: it is not text, or has a NUL or a lone surrogate.
    """
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text, not {type(value).__name__}")
    text = str.__str__(value)  # before it is checked: a subclass may have methods of its own
    if "\0" in text:
        raise InvalidInput(f"{name} holds a NUL character, which databases cut text at; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{name} holds a lone surrogate at position {error.start}, which is not a character; "
            "replace it"
        ) from error
    return text


def check_name(name: str, value: object) -> str:
    """Return `value` if it is a valid name: text as for `check_text`, and not empty."""
    if type(value) is str and value and value.isascii() and "\0" not in value:
        return value
    text = check_text(name, value)
    if not text:
        raise InvalidInput(f"{name} must not be empty")
    return text


def check_time(name: str, value: object) -> str:
    """Return a time as text, exactly as given.

    Raises:
        InvalidInput: it is not a datetime or an ISO 8601 text.
    """
    if type(value) is str and value.isascii() and "\0" not in value:
        text = value  # as `check_text` does it, without the call: a quarter of the time
    elif type(value) is datetime:
        return value.isoformat()
    else:
        # A subclass may not be a time: pandas' NaT is a datetime.
        text = check_text(name, value.isoformat() if isinstance(value, datetime) else value)
    if parse_time(text) is None or "-" not in text:
        raise InvalidInput(
            f"{name} must be a datetime or an ISO 8601 text like 2026-11-20T09:41:15+00:00, "
            f"not {shown(text)}"
        )
    return text


def check_bit(name: str, value: object) -> bool:
    """Return a value as a bool.

    Raises:
        InvalidInput: it is not a bool, 0 or 1.
    """
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise InvalidInput(f"{name} must be a bool, 0 or 1, not {shown(value)}")


def plain(text: Any) -> Any:
    """Return a text as a plain `str`, any other value unchanged.

    `str()` of a member of a text enum is its name. Its text, which it is equal to and which a
    driver stores, is its value.
    """
    return str.__str__(text) if isinstance(text, str) else text


def parse_time(text: str) -> datetime | None:
    """Return the aware instant of an ISO 8601 text (UTC if it has no offset), or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_aware(moment: object) -> bool:
    """Return whether a value is an aware datetime."""
    # Without a zone its offset is not asked for: pandas' NaT, which is a datetime, would raise.
    return (
        isinstance(moment, datetime)
        and moment.tzinfo is not None
        and moment.utcoffset() is not None
    )


def in_utc(moment: datetime) -> datetime:
    """Return the same instant in UTC, because databases do not accept all of Python's offsets.

    Near the first or last day that Python can represent, it may not exist in UTC: then it is
    returned unchanged.
    """
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return moment


def now_text() -> str:
    """Return the current time in UTC as ISO 8601 text, to the microsecond.

    Every record needs it. All digits except the last are cached for a millisecond, which takes a
    fifth of the time of `datetime.isoformat`.
    """
    global _this_millisecond
    begun, text = _this_millisecond
    nanoseconds = time.time_ns() - begun
    if not 0 <= nanoseconds < _MILLISECOND:
        milliseconds, nanoseconds = divmod(nanoseconds + begun, _MILLISECOND)
        second = datetime.fromtimestamp(milliseconds // 1000, UTC).replace(tzinfo=None)
        text = f"{second.isoformat()}.{milliseconds % 1000:03}"
        _this_millisecond = (milliseconds * _MILLISECOND, text)
    return text + _MICROSECONDS[nanoseconds // 1000]


_MILLISECOND: Final = 1_000_000
_MICROSECONDS: Final = tuple(f"{number:03}+00:00" for number in range(1000))
_this_millisecond = (0, "1970-01-01T00:00:00.000")
"""When it began, in nanoseconds, and its text."""
