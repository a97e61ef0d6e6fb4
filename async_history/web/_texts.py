"""The filters of the templates: values as people read them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from async_history.web._differences import difference
from async_history.web._json import as_json
from async_history.web._render import environment

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_KIB: Final = 1024
_A_SECOND: Final = 1.0


def as_query(given: Mapping[str, object]) -> str:
    """Return a query string, without empty values."""
    return urlencode([(name, value) for name, value in given.items() if value not in (None, "")])


def as_time(value: datetime | None) -> str:
    """Return a time in UTC, to the second."""
    return "time unknown" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def as_input(value: datetime | None) -> str:
    """Return a time in UTC, in the format of a form's field."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def as_bytes(value: float) -> str:
    """Return a size with its unit."""
    for unit in _UNITS:
        if value < _KIB or unit == _UNITS[-1]:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= _KIB
    raise AssertionError("the last unit has no end")


def as_seconds(value: float | None) -> str:
    """Return a duration, in milliseconds below a second."""
    if value is None:
        return "none"
    return f"{value:,.1f} s" if value >= _A_SECOND else f"{value * 1000:,.1f} ms"


def as_text(value: Any) -> str:
    """Return a JSON value as text; a string unquoted."""
    return value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)


environment.filters |= {
    "query": as_query,
    "time": as_time,
    "time_input": as_input,
    "bytes": as_bytes,
    "seconds": as_seconds,
    "text": as_text,
}
environment.globals |= {"difference": difference}
