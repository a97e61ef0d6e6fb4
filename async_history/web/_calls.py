"""The calls of the JSON API, under the library's names: one table for routes and description."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.erase import ErasureReport
from async_history._core.operations import StoreOperation
from async_history._core.query import Page
from async_history._core.records import HistoryRecord
from async_history._core.rollback import RollbackReport
from async_history._core.stats import HistoryStats
from async_history._core.timeline import MemoryDiff
from async_history.web._json import schema_of
from async_history.web._values import (
    COUNT,
    EVENT,
    FLAG,
    INSTANT,
    MOMENT,
    ORDER,
    PAIRS,
    TEXT,
    TEXTS,
    Kind,
    Parameter,
)
from async_history.web._view import PAGE_SIZE, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the API.

    Attributes:
        name: the last part of its path, and what it is called in the library.
        summary: a sentence.
        run: does it, with the arguments that were given.
        returns: the JSON Schema of what it returns.
        parameters: its arguments: in the query of a GET, in the JSON object of a POST.
        changes: whether it changes the history: it is a POST then.
    """

    name: str
    summary: str
    run: Callable[..., Awaitable[Any]]
    returns: Mapping[str, Any]
    parameters: tuple[Parameter, ...] = ()
    changes: bool = False


def _one(name: str, kind: Kind, description: str, *, is_required: bool = False) -> Parameter:
    return Parameter(name=name, kind=kind, description=description, is_required=is_required)


_MEMORY: Final = _one("memory_id", TEXT, "The memory.", is_required=True)
_OWNER: Final = (
    _one("user_id", TEXT, "The user whose memory it is."),
    _one("agent_id", TEXT, "The agent that it belongs to."),
    _one("run_id", TEXT, "The run in which it was made."),
    _one("app_id", TEXT, "The application that it belongs to."),
)
_CAUSE: Final = _one("cause", PAIRS, "Keys of the record's cause, with their texts.")
_FILTERS: Final = (
    _one("memory_id", TEXTS, "One memory, or several."),
    _one("actor_id", TEXT, "Who changed it."),
    _one("role", TEXT, "The role in which the actor did."),
    _one("event", EVENT, "What happened."),
    _one("text", TEXT, "A part of the old or the new text; case matters."),
    _one("since", INSTANT, "Records that occurred then or later."),
    _one("until", INSTANT, "Records that occurred before."),
    *_OWNER,
    _CAUSE,
)
_ORDER: Final = _one("order", ORDER, "Which records come first, in the order of recording.")
_PAGES: Final = (
    _one("after", TEXT, "The cursor of a page, to continue after it."),
    _one("page_size", COUNT, f"Records or memories of a page; {PAGE_SIZE} unless given."),
)
_DRY_RUN: Final = _one("dry_run", FLAG, "Only show what would be done: true unless false is given.")

_CURSOR: Final = {"type": ["string", "null"]}
_CURSOR_OBJECT: Final = {
    "type": "object",
    "properties": {"cursor": _CURSOR},
    "required": ["cursor"],
}
_RESTORED: Final = {
    "type": "object",
    "properties": {
        "done": {"type": "boolean"},
        "old_memory": {"type": ["string", "null"]},
        "new_memory": {"type": ["string", "null"]},
        "record": {"anyOf": [schema_of(HistoryRecord), {"type": "null"}]},
    },
    "required": ["done", "old_memory", "new_memory", "record"],
}


def _object_of(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


async def _count(view: View, **wanted: Any) -> Any:
    return {"count": await view.count_history(**wanted)}


async def _memory_at(view: View, *, memory_id: str, when: Any) -> Any:
    return {"record": await view.memory_at(memory_id, when)}


async def _end_cursor(view: View) -> Any:
    return {"cursor": await view.end_cursor()}


async def _operations(view: View, **asked: Any) -> Any:
    found = await view.operations(**asked)
    return {"operations": found, "cursor": found[-1].id if found else None}


async def _restore(view: View, *, memory_id: str, to: Any, dry_run: bool = True) -> Any:
    plan = await view.restoration(memory_id, to=to)
    record = None if dry_run else await view.restore(memory_id, to=to)
    return {
        "done": not dry_run,
        "old_memory": plan.old_memory,
        "new_memory": plan.new_memory,
        "record": record,
    }


CALLS: Final = (
    Call(
        name="query_history",
        summary="Records that match every filter, newest first. A page without records is the last",
        run=View.query_history,
        returns=schema_of(Page),
        parameters=(*_FILTERS, _ORDER, *_PAGES),
    ),
    Call(
        name="count_history",
        summary="How many records match every filter",
        run=_count,
        returns=_object_of("count", {"type": "integer"}),
        parameters=_FILTERS,
    ),
    Call(
        name="get_history",
        summary="A memory's records, oldest first. A page without records is the last",
        run=View.get_history,
        returns=schema_of(Page),
        parameters=(_MEMORY, _ORDER, *_PAGES),
    ),
    Call(
        name="memories",
        summary="The latest record of each memory that exists. The end is where the cursor is null",
        run=View.memories,
        returns=schema_of(Page),
        parameters=(*_OWNER, *_PAGES),
    ),
    Call(
        name="memories_at",
        summary="The record in force of each memory at an instant. Pages as of memories",
        run=View.memories_at,
        returns=schema_of(Page),
        parameters=(
            _one("when", INSTANT, "The instant.", is_required=True),
            *_OWNER,
            _CAUSE,
            *_PAGES,
        ),
    ),
    Call(
        name="memory_at",
        summary="The record in force of a memory at a moment; null where it did not exist",
        run=_memory_at,
        returns=_object_of("record", {"anyOf": [schema_of(HistoryRecord), {"type": "null"}]}),
        parameters=(_MEMORY, _one("when", MOMENT, "A time, or a version.", is_required=True)),
    ),
    Call(
        name="diff",
        summary="What a memory said at two moments, and the records between them",
        run=View.diff,
        returns=schema_of(MemoryDiff),
        parameters=(
            _MEMORY,
            _one("start", MOMENT, "A time, or a version.", is_required=True),
            _one("end", MOMENT, "A time, or a version.", is_required=True),
        ),
    ),
    Call(
        name="end_cursor",
        summary="The cursor after everything that is committed now, for follow to start there",
        run=_end_cursor,
        returns=_CURSOR_OBJECT,
    ),
    Call(
        name="stats",
        summary="The state of the queue and the writer, sizes, and warnings",
        run=View.stats,
        returns=schema_of(HistoryStats),
    ),
    Call(
        name="operations",
        summary="What was done to the store, apart from recording, newest first",
        run=_operations,
        returns={
            "type": "object",
            "properties": {
                "operations": {"type": "array", "items": schema_of(StoreOperation)},
                "cursor": _CURSOR,
            },
            "required": ["operations", "cursor"],
        },
        parameters=_PAGES,
    ),
    Call(
        name="restore",
        summary="Record again what a memory said at a moment",
        run=_restore,
        returns=_RESTORED,
        parameters=(
            _MEMORY,
            _one("to", MOMENT, "A time, or a version.", is_required=True),
            _DRY_RUN,
        ),
        changes=True,
    ),
    Call(
        name="rollback",
        summary="Take memories back to what they were at an instant",
        run=View.rollback,
        returns=schema_of(RollbackReport),
        parameters=(
            _one("to", INSTANT, "The instant.", is_required=True),
            *_OWNER,
            _one("memory_ids", TEXTS, "These memories, instead of an owner's."),
            _DRY_RUN,
        ),
        changes=True,
    ),
    Call(
        name="undo",
        summary="Take back what a run did, or what has a cause",
        run=View.undo,
        returns=schema_of(RollbackReport),
        parameters=(
            _one("run_id", TEXT, "The run."),
            _one("cause", PAIRS, "Keys of the records' cause, instead of a run."),
            _DRY_RUN,
        ),
        changes=True,
    ),
    Call(
        name="erase",
        summary="Make texts unreadable for good, and keep the fact and the time of each change",
        run=View.erase,
        returns=schema_of(ErasureReport),
        parameters=(
            _one("memory_ids", TEXTS, "Whose texts."),
            _one("record_ids", TEXTS, "Or: what these records recorded."),
            _one("actor_id", TEXT, "Or: what this actor recorded."),
            *_OWNER,
            _one("session_scopes", TEXTS, "Whose buffered messages, besides."),
            _one("reason", TEXT, "Kept with the erasure. Name no person in it.", is_required=True),
            _DRY_RUN,
        ),
        changes=True,
    ),
)
"""Every call but `follow`, which does not end."""

FOLLOWED: Final = (
    _one("after", TEXT, "Where to continue, instead of now: the id of an event, or end_cursor."),
    _one("memory_id", TEXT, "Follow this memory only."),
    *_OWNER,
    _CAUSE,
)
"""What `follow` takes."""
