"""Checks of options and arguments, made where the values are given."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, TypeVar

from async_history.errors import InvalidInput

C = TypeVar("C", bound=str)
F = TypeVar("F", bound=Callable[..., Any])

MOST_COUNT: Final = 2**53
"""The largest whole number that every database, driver and JSON reader accepts."""
MOST_SECONDS: Final = 1_000_000_000
"""About thirty years. A thread cannot wait much longer (threading.TIMEOUT_MAX)."""
MOST_CONNECTIONS: Final = 10_000
"""asyncpg creates an object for each possible connection of a pool in advance."""
LEAST_CONNECTIONS: Final = 2
"""One connection writes, and one reads."""
_SHORT: Final = Repr()
_SHORT.maxother = 60
_SHORT.fillvalue = "…"


def shown(value: object) -> str:
    """Return a value in short form for a message, also if its `repr` raises.

    That of a number of more than 4,300 digits does.
    """
    return _SHORT.repr_instance(value, 0)


def _refusal(name: str, what: str, value: object) -> InvalidInput:
    return InvalidInput(f"{name} must be {what}, not {shown(value)}")


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is a bool; texts and numbers are not interpreted.

    Raises:
        InvalidInput: it is not.
    """
    if isinstance(value, bool):
        return value
    raise _refusal(name, "True or False", value)


def check_count(name: str, value: object, *, least: int = 0, most: int = MOST_COUNT) -> int:
    """Return `value` if it is a whole number from `least` to `most`.

    Raises:
        InvalidInput: it is not.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if least <= value <= most:
            return int(value)
        if value > most:
            raise _refusal(name, f"a whole number from {least} to {most}", value)
    raise _refusal(name, f"a whole number of at least {least}", value)


def check_seconds(name: str, value: object, *, may_be_zero: bool = True) -> float:
    """Return `value` if it is a valid number of seconds to wait.

    Raises:
        InvalidInput: it is not.
    """
    least = "of at least 0" if may_be_zero else "above 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _refusal(name, f"a number of seconds {least}", value)
    if not 0 <= value <= MOST_SECONDS or (value == 0 and not may_be_zero):  # NaN is in no range
        raise _refusal(name, f"a number of seconds {least}, up to {MOST_SECONDS}", value)
    return float(value)


def check_seconds_or_none(name: str, value: object) -> float | None:
    """Return `value` if it is a number of seconds, or None for no limit.

    Raises:
        InvalidInput: it is neither.
    """
    if value is None:
        return None
    try:
        return check_seconds(name, value)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; None waits without bound") from None


def check_choice(name: str, value: object, choices: Iterable[C]) -> C:
    """Return `value` if it is one of some texts.

    Raises:
        InvalidInput: it is not.
    """
    known = tuple(choices)
    for choice in known:
        if isinstance(value, str) and value == choice:
            return choice
    raise _refusal(name, " or ".join(map(repr, known)), value)


def check_function(name: str, value: F | None) -> F | None:
    """Return `value` if it is a plain function or None.

    Raises:
        InvalidInput: it is neither, or a coroutine function.
    """
    if value is not None and not callable(value):
        raise _refusal(name, "a function or None", value)
    if inspect.iscoroutinefunction(value):
        raise InvalidInput(f"{name} must not be a coroutine function: its result is not awaited")
    return value


def check_queue(records: object, size_bytes: object, timeout_s: object) -> None:
    """Check the bounds of a manager's queue.

    Raises:
        InvalidInput: naming the option that can't be used.
    """
    check_count("queue_records", records, least=1)
    check_count("queue_bytes", size_bytes, least=1)
    check_seconds_or_none("queue_timeout_s", timeout_s)


def check_iterable(name: str, value: object) -> None:
    """Check that `value` is an iterable, but not a text or a mapping.

    Raises:
        InvalidInput: it is not.
    """
    if isinstance(value, str | bytes | Mapping):
        raise InvalidInput(f"{name} must be several, not one {_kind(value)}; put it into a list")
    if not isinstance(value, Iterable):
        raise InvalidInput(f"{name} must be several, such as a list, not {shown(value)}")


def _kind(value: object) -> str:
    return "text" if isinstance(value, str) else type(value).__name__


def check_file_name(name: str, value: object) -> str:
    """Return the text of a path that can name a file.

    Raises:
        InvalidInput: it is not a path, is empty, or has a NUL or characters that cannot be encoded.
    """
    try:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    except TypeError as error:  # __fspath__ returned neither text nor bytes
        raise InvalidInput(f"{name} must be text or a path of text: {error}") from error
    if not isinstance(path, str):
        raise _refusal(name, "text or a path of text", value)
    if not path or "\0" in path:
        raise InvalidInput(f"{name} must be the name of a file: not empty, and without a NUL")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{name} has a character that a file's name can't have here") from error
    return str.__str__(path)  # the text of a (str, Enum), not its name


def file_path(name: str, value: object) -> Path:
    """Return the path of a history's file, with `~` for the home folder.

    A text that is unlikely to be a file's name is refused: a URL without slashes, libpq's keywords,
    a path of another system, a variable that was not expanded. A `Path` is accepted as it is.

    Raises:
        InvalidInput: it is not a valid path, or names a folder.
    """
    given = check_file_name(name, value)
    text = os.path.expanduser(given)
    if isinstance(value, str):
        for unlikely, what in _UNLIKELY:
            if re.search(unlikely, text):
                raise InvalidInput(f"{name} {what}. Where it is a file's name, give it as a Path")
    if text.endswith(("/", os.sep)) or os.path.basename(given) in (".", "..", "~"):
        raise InvalidInput(f"{name} names a folder, {text!r}; name a file in it")
    if text.startswith("~") and os.path.dirname(text):
        raise InvalidInput(f"{name} begins with a home folder that is not known: {text!r}")
    return Path(text)


_UNLIKELY: Final = (
    (r"^[\"'`]|[\"'`]$", "stands in quotation marks"),
    (r"^\s|\s$|[\r\n]", "begins or ends with a blank, or has a line's end in it"),
    (
        r"(?i)\b(host|hostaddr|dbname|user( id)?|uid|password|pwd|port|server|data source)\s*=",
        "holds the keywords of a connection; write postgresql://user:password@host:5432/database",
    ),
    (r"(^|/)\$(\w|\{)|%\w+%", "has a variable in it that was not replaced by its value"),
    (r"^/?[A-Za-z]:([\\/]|$)|\\", "is written for Windows, and this is another system")
    if os.name != "nt"
    else (r"^\0$", ""),
    (
        r"(?i)^file:",
        "is a URI of SQLite's own; write sqlite:///relative.db or sqlite:////absolute.db",
    ),
    (
        r"^[A-Za-z][\w+.-]+:|^:|^(sqlite|postgres)\w*(\+\w+)?//|^/*[^/]+:[^/]*@",
        "looks like a URL without its ://",
    ),
)
"""Regular expressions of unlikely file names, with reasons."""


def check_option_names(constructor: type, given: Iterable[str]) -> None:
    """Check that a constructor accepts these keyword arguments.

    Raises:
        InvalidInput: the first argument that it does not accept, with those that it accepts.
    """
    known = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise InvalidInput(
                f"{constructor.__name__} has no option {name!r}{guess}; its options are "
                f"{', '.join(known)}"
            )
