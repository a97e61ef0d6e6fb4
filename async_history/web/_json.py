"""The library's values as JSON and JSON Schema. Both are derived from the fields of its classes."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from async_history._core.records.owners import SCOPES
from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import fields_of
from async_history._core.stats import StoreWarning

_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}

RECORD_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "One change of one memory: mem0's ten columns, whose it is, and why.",
    "properties": {
        "id": _TEXT,
        "memory_id": _TEXT,
        "old_memory": _TEXT_OR_NULL,
        "new_memory": _TEXT_OR_NULL,
        "event": _TEXT,
        "created_at": _TEXT_OR_NULL,
        "updated_at": _TEXT_OR_NULL,
        "is_deleted": {"type": "boolean"},
        "actor_id": _TEXT_OR_NULL,
        "role": _TEXT_OR_NULL,
        "occurred_at": {"type": ["string", "null"], "format": "date-time"},
        "owner": {"type": "object", "properties": dict.fromkeys(SCOPES, _TEXT)},
        "context": {"type": "object"},
        "cause": {"type": "object"},
    },
    "required": ["id", "memory_id", "old_memory", "new_memory", "event", "occurred_at"],
    "additionalProperties": False,
}
_WARNING_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"code": _TEXT, "severity": _TEXT, "text": _TEXT},
    "required": ["code", "severity", "text"],
    "additionalProperties": False,
}


def as_json(value: Any) -> Any:
    """Return a value of the library as JSON."""
    if isinstance(value, HistoryRecord):
        occurred_at = value.occurred_at
        return {**fields_of(value), "occurred_at": occurred_at and occurred_at.isoformat()}
    if isinstance(value, StoreWarning):
        return {"code": value.code, "severity": value.severity, "text": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_json(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [as_json(one) for one in value]
    return value


@cache
def schema_of(kind: Any) -> dict[str, Any]:
    """Return the schema of what `as_json` returns for a class."""
    if kind is HistoryRecord:
        return RECORD_SCHEMA
    if kind is StoreWarning:
        return _WARNING_SCHEMA
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {
            "type": "object",
            "description": (kind.__doc__ or "").partition("\n")[0],
            "properties": {
                one.name: schema_of(hints[one.name]) for one in dataclasses.fields(kind)
            },
            "required": [one.name for one in dataclasses.fields(kind)],
            "additionalProperties": False,
        }
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one) for one in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object"}
    if origin is not None and issubclass(origin, Sequence):
        return {"type": "array", "items": schema_of(arguments[0])}
    return dict(_SCHEMAS[next(one for one in kind.__mro__ if one in _SCHEMAS)])


_SCHEMAS: Final[dict[Any, dict[str, Any]]] = {
    datetime: {"type": "string", "format": "date-time"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
}
