"""The kinds of parameters, and how they are read from a query or from JSON."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from async_history._core.records.values import is_aware
from async_history.errors import InvalidInput

Read = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of value: its description, and how it is read.

    Attributes:
        schema: its JSON Schema.
        read: returns the value of a text or a JSON value. Raises ValueError, which says what the
            value must be, if it can't be used.
        style: its form in a query: "form", one text; "many", a repeated name; "object", a name
            with a key in brackets.
    """

    schema: Mapping[str, Any]
    read: Read
    style: str = "form"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _instant(value: Any) -> datetime:
    wanted = "a time with its offset, such as 2026-01-31T09:00:00Z"
    try:
        # In a query, a "+" that was not encoded becomes a space.
        found = datetime.fromisoformat(_text(value).replace(" ", "+"))
    except ValueError:
        raise ValueError(wanted) from None
    if not is_aware(found):
        raise ValueError(wanted)
    return found


def _count(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    raise ValueError("a whole number")


def _moment(value: Any) -> datetime | int:
    try:
        return _count(value)
    except ValueError:
        return _instant(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return bool(value == "true")


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts")
    return value


def _pairs(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ValueError("an object of texts")
    return value


def _choice(*names: str) -> Kind:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(" or ".join(names))
        return str(value)

    return Kind(schema={"type": "string", "enum": list(names)}, read=read)


TEXT: Final = Kind(schema={"type": "string"}, read=_text)
INSTANT: Final = Kind(schema={"type": "string", "format": "date-time"}, read=_instant)
COUNT: Final = Kind(schema={"type": "integer", "minimum": 1}, read=_count)
MOMENT: Final = Kind(schema={"oneOf": [INSTANT.schema, COUNT.schema]}, read=_moment)
FLAG: Final = Kind(schema={"type": "boolean"}, read=_flag)
TEXTS: Final = Kind(schema={"type": "array", "items": TEXT.schema}, read=_texts, style="many")
PAIRS: Final = Kind(
    schema={"type": "object", "additionalProperties": TEXT.schema}, read=_pairs, style="object"
)
EVENT: Final = _choice("ADD", "UPDATE", "DELETE")
ORDER: Final = _choice("oldest", "newest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One argument of a call, with the library's name."""

    name: str
    kind: Kind
    description: str
    is_required: bool = False


def read_query(parameters: Iterable[Parameter], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the arguments that a query gives.

    Raises:
        InvalidInput: an argument can't be used, is unknown or is missing. The message names it.
    """
    known = {one.name: one for one in parameters}
    raw: dict[str, Any] = {}
    for name, value in given:
        bare, bracket, key = name.partition("[")
        style = known[bare].kind.style if bare in known else None
        if style == "object" and bracket and key.endswith("]"):
            raw.setdefault(bare, {})[key.removesuffix("]")] = value
        elif style == "many" and not bracket:
            raw.setdefault(bare, []).append(value)
        elif style == "form" and not bracket and name not in raw:
            raw[name] = value
        elif style is not None:
            raise InvalidInput(f"the parameter {bare} is given twice, or in a form it has not")
        else:
            raise InvalidInput(f"there is no such parameter; use {', '.join(known) or 'none'}")
    return _read(known, raw)


def read_object(parameters: Iterable[Parameter], given: object) -> dict[str, Any]:
    """Return the arguments that a JSON object gives; null counts as not given.

    Raises:
        InvalidInput: as `read_query`.
    """
    known = {one.name: one for one in parameters}
    if not isinstance(given, dict):
        raise InvalidInput("the request must be a JSON object")
    if not known.keys() >= given.keys():
        raise InvalidInput(f"the object has an unknown key; use {', '.join(known)}")
    return _read(known, {name: value for name, value in given.items() if value is not None})


def _read(known: Mapping[str, Parameter], raw: Mapping[str, Any]) -> dict[str, Any]:
    for one in known.values():
        if one.is_required and one.name not in raw:
            raise InvalidInput(f"{one.name} is missing")
    read: dict[str, Any] = {}
    for name, value in raw.items():
        try:
            read[name] = known[name].kind.read(value)
        except ValueError as error:
            raise InvalidInput(f"{name} must be {error}") from None
    return read
