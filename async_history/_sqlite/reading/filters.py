"""A query filter as SQL: which tables to search, and the conditions on their rows."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._sqlite import times
from async_history._sqlite.index import (
    HISTORY,
    Direction,
    Lookup,
    Range,
    Source,
    cause_key,
    named,
    ranges_of_time,
    value_key,
)


def sources(wanted: Filter, lookup: Lookup) -> Sequence[Source]:
    """Return the sources that hold all rows of a filter."""
    if wanted.memory_ids is not None:
        return (HISTORY,)
    if (value := _value(wanted)) is not None:
        return (_of_value(value, wanted, lookup, "ASC", None),)
    if wanted.actor_id is not None:
        return lookup.of_actor
    if wanted.since is not None or wanted.until is not None:
        return lookup.of_time
    return (HISTORY,)


def select(
    columns: str, source: Source, wanted: Filter, lookup: Lookup, after: Cursor | None = None
) -> str:
    """Return the SELECT of a filter's rows in one source, after a cursor."""
    beyond = ">" if wanted.order == "oldest" else "<"
    conditions = [source.condition, *_of_memories(wanted, lookup, source)]
    conditions += matching(wanted, lookup)
    if wanted.since is not None:
        conditions.append(source.since)
    if wanted.until is not None:
        conditions.append(source.until)
    if after is not None:
        conditions += (
            source.beyond.format(comparison=beyond, position=":after"),
            f"history.rowid {beyond} :after",
        )
    if wanted.through is not None:
        within = "<" if wanted.order == "oldest" else ">"
        conditions += (
            source.beyond.format(comparison=within, position=":through"),
            f"history.rowid {within}= :through",
        )
    return f"SELECT {columns} FROM {source.tables} WHERE {' AND '.join(conditions)}"


def in_order(
    columns: str, wanted: Filter, lookup: Lookup, after: Cursor | None = None
) -> list[str]:
    """Return the SELECTs of a filter's first `:limit` rows, in order, one per source."""
    direction: Direction = "ASC" if wanted.order == "oldest" else "DESC"
    beyond = None if after is None else ":after"
    found = sources(wanted, lookup)
    if wanted.memory_ids is not None and len(wanted.memory_ids) == 1:
        found = (lookup.of_memory(direction, beyond, _ranges(wanted)),)
    elif wanted.memory_ids is None and (value := _value(wanted)) is not None:
        found = (_of_value(value, wanted, lookup, direction, beyond),)
    return [
        f"SELECT * FROM ({select(columns, source, wanted, lookup, after)}"
        f"{_order(source, direction)} LIMIT :limit)"
        for source in found
    ]


def _order(source: Source, direction: Direction) -> str:
    return f" ORDER BY {source.order.format(direction=direction)}" if source.order else ""


_MOST_SELECTIVE: Final = ("run_id", "user_id", "agent_id", "app_id")
"""Scopes of an owner, those first that fewer records have as a rule."""


class _Value(NamedTuple):
    """The scope or cause to find rows by: the name of its condition, and its key."""

    condition: str
    key: int


def _value(wanted: Filter) -> _Value | None:
    """Return the scope or cause to find a filter's rows by, if it has one with an index."""
    for index, (name, value) in enumerate(wanted.cause):
        if name in INDEXED_CAUSES:
            return _Value(f"cause_{index}", cause_key(name, value))
    scopes = dict(wanted.owner)
    for name in _MOST_SELECTIVE:
        if name in scopes:
            return _Value(name, value_key(name, scopes[name]))
    return None


def _of_value(
    value: _Value, wanted: Filter, lookup: Lookup, direction: Direction, beyond: str | None
) -> Source:
    in_tail = _details_asked(wanted, lookup, "tail")[value.condition]
    return lookup.of_value(direction, beyond, in_tail, _ranges(wanted))


def _ranges(wanted: Filter) -> Sequence[Range]:
    """Return where rows of a filter's time may be, through its last position."""
    ranges = ranges_of_time(since=wanted.since is not None, until=wanted.until is not None)
    if wanted.through is None:
        return ranges
    if wanted.order == "oldest":
        return [one.beyond("(:through + 1)", "DESC") for one in ranges]
    return [one.beyond("(:through - 1)", "ASC") for one in ranges]


def _details_asked(wanted: Filter, lookup: Lookup, row: str) -> dict[str, str]:
    """Return the conditions on a row's owner and cause, by name."""
    scopes = {
        name: f"{lookup.details.scope(row, name)} = :owner_{name}" for name, _ in wanted.owner
    }
    causes = {
        f"cause_{index}": lookup.details.says(row, f":cause_{index}", f":cause_value_{index}")
        for index in range(len(wanted.cause))
    }
    return causes | scopes


def _of_memories(wanted: Filter, lookup: Lookup, source: Source) -> Iterator[str]:
    if wanted.memory_ids is None:
        return
    if len(wanted.memory_ids) != 1:
        yield lookup.several
    elif source is HISTORY:
        yield lookup.one
    else:
        yield "history.memory_id = :memory_id"


def matching(wanted: Filter, lookup: Lookup) -> Iterator[str]:
    """Yield a filter's SQL conditions, except those on memories."""
    for name in ("actor_id", "role", "event"):
        if getattr(wanted, name) is not None:
            yield f"history.{name} = :{name}"
    if wanted.text is not None:
        yield "(instr(history.old_memory, :text) > 0 OR instr(history.new_memory, :text) > 0)"
    yield from _details_asked(wanted, lookup, "history").values()
    occurred_at = times.occurred_at("history", lookup.time_before)
    if wanted.since is not None:
        yield f"{occurred_at} >= :since"
    if wanted.until is not None:
        yield f"{occurred_at} < :until"


def parameters(wanted: Filter) -> dict[str, Any]:
    """Return the parameters of a filter's SELECTs."""
    value = _value(wanted)
    return {
        **({} if value is None else {"value": value.key}),
        **{f"owner_{name}": scope for name, scope in wanted.owner},
        **{f"cause_{index}": name for index, (name, _) in enumerate(wanted.cause)},
        **{f"cause_value_{index}": text for index, (_, text) in enumerate(wanted.cause)},
        **({} if wanted.memory_ids is None else named(wanted.memory_ids)),
        "actor_id": wanted.actor_id,
        "role": wanted.role,
        "event": None if wanted.event is None else str(wanted.event),
        "text": wanted.text,
        "since": None if wanted.since is None else times.instant_text(wanted.since),
        "until": None if wanted.until is None else times.instant_text(wanted.until),
        "through": wanted.through,
    }
