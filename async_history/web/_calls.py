"""The calls of the JSON API, with the library's names: one table for routes and description."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.query import Page
from async_history._core.reading.timeline import MemoryDiff
from async_history._core.records.records import HistoryRecord
from async_history._core.removing.erase import ErasureReport
from async_history._core.stats import HistoryStats
from async_history._core.undoing.rollback import RollbackReport
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
        name: the last part of its path, and its name in the library.
        summary: a sentence.
        run: the function that gets the arguments.
        returns: the JSON Schema of its result.
        parameters: its arguments: the query of a GET, the JSON object of a POST.
        changes: whether it changes the history. Then it is a POST.
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
    _one("user_id", TEXT, "The user who owns the memory."),
    _one("agent_id", TEXT, "The agent that owns the memory."),
    _one("run_id", TEXT, "The run in which the memory was made."),
    _one("app_id", TEXT, "The application that owns the memory."),
)
_CAUSE: Final = _one("cause", PAIRS, "Keys of the record's cause, with their texts.")
_FILTERS: Final = (
    _one("memory_id", TEXTS, "One memory, or several."),
    _one("actor_id", TEXT, "The actor who made the change."),
    _one("role", TEXT, "The actor's role in the change."),
    _one("event", EVENT, "The event."),
    _one("text", TEXT, "A part of the old or the new text; case matters."),
    _one("since", INSTANT, "Records that occurred at this time or later."),
    _one("until", INSTANT, "Records that occurred before this time."),
    *_OWNER,
    _CAUSE,
)
_ORDER: Final = _one("order", ORDER, "Which records come first, in the order of recording.")
_PAGES: Final = (
    _one("after", TEXT, "The cursor of a page, to continue after it."),
    _one("page_size", COUNT, f"Records or memories of a page; {PAGE_SIZE} unless given."),
)
_DRY_RUN: Final = _one("dry_run", FLAG, "Only show the changes: true unless false is given.")

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
        summary="Records that match all filters, newest first. Pages may be empty: see is_last",
        run=View.query_history,
        returns=schema_of(Page),
        parameters=(*_FILTERS, _ORDER, *_PAGES),
    ),
    Call(
        name="count_history",
        summary="The number of records that match all filters",
        run=_count,
        returns=_object_of("count", {"type": "integer"}),
        parameters=_FILTERS,
    ),
    Call(
        name="get_history",
        summary="A memory's records, oldest first",
        run=View.get_history,
        returns=schema_of(Page),
        parameters=(_MEMORY, _ORDER, *_PAGES),
    ),
    Call(
        name="memories",
        summary="The latest record of each existing memory. The last page has no cursor (null)",
        run=View.memories,
        returns=schema_of(Page),
        parameters=(*_OWNER, *_PAGES),
    ),
    Call(
        name="memories_at",
        summary="The record in force of each memory at an instant, in pages as for memories",
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
        summary="The record in force of a memory at a moment; null if the memory did not exist",
        run=_memory_at,
        returns=_object_of("record", {"anyOf": [schema_of(HistoryRecord), {"type": "null"}]}),
        parameters=(_MEMORY, _one("when", MOMENT, "A time, or a version.", is_required=True)),
    ),
    Call(
        name="diff",
        summary="A memory's texts at two moments, and the records between them",
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
        summary="The cursor after all records committed so far, to start follow there",
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
        summary="The operations on the store other than recording, newest first",
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
        summary="Restore a memory's text of a moment, as a new record",
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
        summary="Return memories to their state at an instant",
        run=View.rollback,
        returns=schema_of(RollbackReport),
        parameters=(
            _one("to", INSTANT, "The instant.", is_required=True),
            *_OWNER,
            _one("memory_ids", TEXTS, "The memories, instead of an owner."),
            _DRY_RUN,
        ),
        changes=True,
    ),
    Call(
        name="undo",
        summary="Undo the changes of a run, or the changes with a cause",
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
        summary="Make texts unreadable for good; the event and time of each change are kept",
        run=View.erase,
        returns=schema_of(ErasureReport),
        parameters=(
            _one("memory_ids", TEXTS, "Erase these memories."),
            _one("record_ids", TEXTS, "Or: erase these records."),
            _one("actor_id", TEXT, "Or: erase what this actor recorded."),
            *_OWNER,
            _one("session_scopes", TEXTS, "Also erase the buffered messages of these scopes."),
            _one("reason", TEXT, "Kept with the erasure. Name no person in it.", is_required=True),
            _DRY_RUN,
        ),
        changes=True,
    ),
)
"""Every call but `follow`, which does not end."""

FOLLOWED: Final = (
    _one("after", TEXT, "The id of an event, or end_cursor, to continue after it; else now."),
    _one("memory_id", TEXT, "Follow this memory only."),
    *_OWNER,
    _CAUSE,
)
"""The arguments of `follow`."""
