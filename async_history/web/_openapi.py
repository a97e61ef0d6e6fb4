"""The OpenAPI 3.1 description of the JSON API, from the same table as its routes."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from async_history import __version__
from async_history.web._calls import CALLS, FOLLOWED, Call
from async_history.web._json import RECORD_SCHEMA
from async_history.web._problems import PROBLEM
from async_history.web._values import Parameter

_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "description": "Problem details (RFC 9457). `title` is the name of the error.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
_REFUSED: Final = {
    "description": "The request was refused, or failed.",
    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_FOLLOW: Final = (
    "Records as they are committed, as server-sent events without an end. The data of each is a "
    "record; its id is a cursor, from which the header Last-Event-ID continues. Texts are cut: "
    "`cut` names those that are. An event `problem` says why it ended."
)


@cache
def description(root: str) -> dict[str, Any]:
    """Return the description.

    Args:
        root: the path at which the API is mounted.
    """
    paths: dict[str, Any] = {f"/api/{call.name}": _path(call) for call in CALLS}
    paths["/api/follow"] = {
        "get": {
            "operationId": "follow",
            "summary": _FOLLOW,
            "parameters": _parameters(FOLLOWED),
            "responses": _responses({"text/event-stream": {"schema": {"type": "string"}}}),
        }
    }
    paths["/memories/{memory_id}/history"] = {
        "get": {
            "operationId": "mem0_history",
            "summary": "All records of a memory, oldest first, as mem0's server answers",
            "parameters": [
                {
                    "name": "memory_id",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string"},
                }
            ],
            "responses": _responses(
                {"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}}
            ),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "async_history", "version": __version__},
        "servers": [{"url": root or "/"}],
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM_SCHEMA, "HistoryRecord": RECORD_SCHEMA},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _path(call: Call) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "responses": _responses({"application/json": {"schema": _with_references(call.returns)}}),
    }
    if call.changes:
        content = {"application/json": {"schema": _object(call.parameters)}}
        return {"post": {**operation, "requestBody": {"required": True, "content": content}}}
    return {"get": {**operation, "parameters": _parameters(call.parameters)}}


def _parameters(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "in": "query",
            "required": one.is_required,
            "description": one.description,
            "schema": one.kind.schema,
            **({"style": "deepObject", "explode": True} if one.kind.style == "object" else {}),
        }
        for one in parameters
    ]


def _object(parameters: Iterable[Parameter]) -> dict[str, Any]:
    known = tuple(parameters)
    return {
        "type": "object",
        "properties": {
            one.name: {**one.kind.schema, "description": one.description} for one in known
        },
        "required": [one.name for one in known if one.is_required],
        "additionalProperties": False,
    }


def _responses(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "The result.", "content": content}, "default": _REFUSED}


def _with_references(schema: Any) -> Any:
    """Return a schema that refers to the schema of records instead of repeating it."""
    if schema == RECORD_SCHEMA:
        return {"$ref": "#/components/schemas/HistoryRecord"}
    if isinstance(schema, Mapping):
        return {key: _with_references(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_with_references(one) for one in schema]
    return schema
