"""Recorded texts in errors of drivers, which become causes of ours: tracebacks show those."""

import re
from collections.abc import Iterator
from typing import Any, Final

from async_history.errors import HistoryError

UNDECODABLE: Final = "Could not decode to UTF-8"
"""The beginning of the message of Python's sqlite3 for a stored text that is not UTF-8. The error
has no code of SQLite; the message has the text."""
_BEFORE_TEXT: Final = " with text "

_REFUSED: Final = ("22", "23", "44")
"""Classes of SQLSTATEs of a refused row. PostgreSQL's DETAIL has its values then."""
_VALUE: Final = "22"
"""The class of values that can't be converted. PostgreSQL's message quotes the value, except:"""
_OF_ENCODINGS: Final = ("22021", "22P05")
_FATAL: Final = "FATAL"
"""PostgreSQL's severity of a connection's end or refusal. The message may quote a setting, which is
for its owner to see, but no value of a row."""
_QUOTED: Final = re.compile(r'["«„»].*["»“«]', re.DOTALL)
_DUPLICATE_KEYS: Final = (1062, 1586, 1761)
"""MySQL's and MariaDB's numbers of errors whose message quotes a key's value, and the key last."""
_WRONG_VALUES: Final = (1292, 1300, 1366, 1367, 1411, 1525)
"""Their numbers of errors whose message quotes a value that can't be converted."""
_VALUE_AND_KEY: Final = re.compile(r"'.*'(?=[^']*'[^']+'[^']*\Z)|'.*", re.DOTALL)
_VALUES: Final = re.compile(r"'.*'|'.*", re.DOTALL)
"""The values in these messages, in any language (`lc_messages`); all that follows if no key is
quoted, or the server has cut the message within a value."""


def hide_texts(error: BaseException) -> None:
    """Cut recorded texts from the messages of an error, its causes and contexts.

    What names a constraint stays.
    """
    for one in _chain(error):
        if isinstance(one, HistoryError):
            continue
        if hasattr(one, "hide_parameters"):  # SQLAlchemy's
            one.hide_parameters = True
        state = _state(one)
        if state.startswith(_REFUSED) and getattr(one, "detail", None):
            one.detail = None  # type: ignore[attr-defined] # asyncpg's
        one.args = tuple(
            _without_texts(given, state, _number(one)) if isinstance(given, str) else given
            for given in one.args
        )
    for one in _chain(error):
        original = _original(one)
        if _number(original) in (*_DUPLICATE_KEYS, *_WRONG_VALUES):
            kind = type(original)  # as SQLAlchemy shows it
            one.args = (f"({kind.__module__}.{kind.__name__}) {original}", *one.args[1:])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += (one.__cause__, one.__context__, _original(one))


def _original(error: BaseException) -> BaseException | None:
    """Return the driver's error in one of SQLAlchemy's; None for other errors."""
    original = getattr(error, "orig", None)  # a program's own error may have one of another kind
    return original if isinstance(original, BaseException) else None


def _state(error: BaseException) -> str:
    """Return the SQLSTATE of a statement's error; an empty text for other errors.

    SQLAlchemy's errors have the driver's as `orig`, or as its cause.
    """
    original = _original(error) or error
    near = (error, original, error.__cause__, original.__cause__)
    if any(getattr(one, "severity_en", None) == _FATAL for one in near):
        return ""
    states = (getattr(one, "sqlstate", None) for one in near)
    return next((state for state in states if isinstance(state, str)), "")


def _number(error: BaseException | None) -> int | None:
    """Return the number that a driver of MySQL or MariaDB gave its error."""
    number = error.args[0] if error is not None and error.args else None
    return number if isinstance(number, int) else None


def _without_texts(message: str, state: str, number: int | None) -> str:
    if UNDECODABLE in message:
        return message.partition(_BEFORE_TEXT)[0]
    if number in _DUPLICATE_KEYS:
        return _VALUE_AND_KEY.sub("'***'", message, count=1)
    if number in _WRONG_VALUES:
        return _VALUES.sub("'***'", message, count=1)
    if state.startswith(_VALUE) and state not in _OF_ENCODINGS:
        message = _QUOTED.sub('"***"', message)
    if state.startswith(_REFUSED):
        message = message.partition("\n")[0]
    return message
