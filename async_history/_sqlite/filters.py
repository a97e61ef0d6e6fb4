"""A filter as SQL: where its rows are sought, and which of them match."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.query import Cursor, Filter
from async_history._sqlite import times
from async_history._sqlite.index import undated
from async_history._sqlite.index.block_notes import CHUNKS, SPANS
from async_history._sqlite.index.levels import POSITIONS, Direction, memory_key, positions
from async_history._sqlite.index.levels import in_order as memory_in_order

_SEVERAL: Final = "memory_id IN (SELECT value FROM json_each(:memory_ids))"
SEVERAL_KEYS: Final = "memory IN (SELECT value FROM json_each(:memories))"


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows of `history` are sought: SQL of tables, of what relates them, of their order.

    `since`, `until` and `after` are what these mean for the tables beside it. Where there is no
    `order`, the tables give the rows in order as they are read.
    """

    tables: str
    condition: str = "true"
    order: str = "history.rowid {direction}"
    since: str = "true"
    until: str = "true"
    after: str = "true"


HISTORY: Final = Source("history")
_SPANS_OF_CHUNK: Final = CHUNKS.bits - SPANS.bits
_ROWS_OF_SPAN: Final = (
    f"history.rowid BETWEEN spans.block << {SPANS.bits}"
    f" AND (spans.block << {SPANS.bits}) + {(1 << SPANS.bits) - 1}"
)
_CHUNKS_SINCE: Final = (
    f"chunks.block IN (SELECT block FROM main.{CHUNKS.table} WHERE latest >= :since)"
)
_CHUNKS_UNTIL: Final = (
    f"chunks.block IN (SELECT block FROM main.{CHUNKS.table} WHERE earliest < :until)"
)
_IN_CHUNKS: Final = Source(
    f"main.{CHUNKS.table} AS chunks CROSS JOIN main.{SPANS.table} AS spans CROSS JOIN history",
    f"chunks.block <= {CHUNKS.through} >> {CHUNKS.bits} AND spans.block"
    f" BETWEEN chunks.block << {_SPANS_OF_CHUNK} AND ((chunks.block + 1) << {_SPANS_OF_CHUNK}) - 1"
    f" AND {_ROWS_OF_SPAN}",
    "chunks.block {direction}, spans.block {direction}, history.rowid {direction}",
    since=f"{_CHUNKS_SINCE} AND spans.latest >= :since",
    until=f"{_CHUNKS_UNTIL} AND spans.earliest < :until",
    after=f"chunks.block {{beyond}}= :after >> {CHUNKS.bits}"
    f" AND spans.block {{beyond}}= :after >> {SPANS.bits}",
)
_IN_SPANS: Final = Source(
    f"main.{SPANS.table} AS spans CROSS JOIN history",
    f"spans.block > {CHUNKS.through} >> {SPANS.bits}"
    f" AND spans.block <= {SPANS.through} >> {SPANS.bits} AND {_ROWS_OF_SPAN}",
    "spans.block {direction}, history.rowid {direction}",
    since="spans.latest >= :since",
    until="spans.earliest < :until",
    after=f"spans.block {{beyond}}= :after >> {SPANS.bits}",
)
_BEYOND_SPANS: Final = Source("history", f"history.rowid > {SPANS.through}")
_ACTORS: Final = Source(
    f"main.{CHUNKS.table} AS chunks CROSS JOIN main.async_history_actors AS actors"
    " CROSS JOIN history",
    f"chunks.block <= {CHUNKS.through} >> {CHUNKS.bits} AND actors.block = chunks.block"
    " AND actors.actor_id = :actor_id AND history.rowid = actors.position",
    "chunks.block {direction}, actors.position {direction}",
    since=_CHUNKS_SINCE,
    until=_CHUNKS_UNTIL,
    after=f"chunks.block {{beyond}}= :after >> {CHUNKS.bits}",
)
_BEYOND_CHUNKS: Final = Source("history", f"history.rowid > {CHUNKS.through}")


def of_memory(direction: Direction = "ASC", beyond: str | None = None) -> Source:
    """Return where a memory's rows are, in order, beyond a place; takes what `Lookup.one` does."""
    return Source(
        f"{memory_in_order(direction, beyond)} AS place CROSS JOIN main.history AS history",
        "history.rowid = place.position",
        order="",
    )


@dataclass(frozen=True, slots=True)
class Lookup:
    """How rows are found.

    `one` and `several` are SQL conditions of a memory's rows: the one takes `:memory_id` and
    `:memory`, the other `:memory_ids` and `:memories`, both as JSON. `time_before` is SQL of the
    instant of a row in `history` that names none. A memory's rows in order, an actor's and a time's
    are in the sources of theirs; of several one after the other.
    """

    one: str
    several: str
    time_before: str
    of_memory: Callable[[Direction, str | None], Source]
    of_actor: Sequence[Source] = (HISTORY,)
    of_time: Sequence[Source] = (HISTORY,)


THROUGH_INDEX: Final = Lookup(
    one=f"history.memory_id = :memory_id AND history.rowid IN ({POSITIONS})",
    several=f"history.{_SEVERAL} AND history.rowid IN ({positions(SEVERAL_KEYS, _SEVERAL)})",
    time_before=undated.time_before("history"),
    of_memory=of_memory,
    of_actor=(_ACTORS, _BEYOND_CHUNKS),
    of_time=(_IN_CHUNKS, _IN_SPANS, _BEYOND_SPANS),
)
WITHOUT_INDEX: Final = Lookup(
    one="history.memory_id = :memory_id",
    several=f"history.{_SEVERAL}",
    time_before=f"""(
        SELECT {times.own_instant("earlier")} FROM history AS earlier
        WHERE earlier.memory_id = history.memory_id AND earlier.rowid < history.rowid
            AND {times.own_instant("earlier")} IS NOT NULL
        ORDER BY earlier.rowid DESC LIMIT 1
    )""",
    of_memory=lambda direction, beyond: HISTORY,
)
"""For a file that is read as it is."""


def sources(wanted: Filter, lookup: Lookup) -> Sequence[Source]:
    """Return where a filter's rows are sought."""
    if wanted.memory_ids is not None:
        return (HISTORY,)
    if wanted.actor_id is not None:
        return lookup.of_actor
    if wanted.since is not None or wanted.until is not None:
        return lookup.of_time
    return (HISTORY,)


def select(
    columns: str, source: Source, wanted: Filter, lookup: Lookup, after: Cursor | None = None
) -> str:
    """Return the SELECT of a filter's rows in one source, behind a cursor's place."""
    beyond = ">" if wanted.order == "oldest" else "<"
    conditions = [source.condition, *_of_memories(wanted, lookup, source)]
    conditions += matching(wanted, lookup)
    if wanted.since is not None:
        conditions.append(source.since)
    if wanted.until is not None:
        conditions.append(source.until)
    if after is not None:
        conditions += (source.after.format(beyond=beyond), f"history.rowid {beyond} :after")
    return f"SELECT {columns} FROM {source.tables} WHERE {' AND '.join(conditions)}"


def in_order(
    columns: str, wanted: Filter, lookup: Lookup, after: Cursor | None = None
) -> list[str]:
    """Return the SELECTs of a filter's first `:limit` rows, in order, one for each source."""
    direction: Direction = "ASC" if wanted.order == "oldest" else "DESC"
    found = sources(wanted, lookup)
    if wanted.memory_ids is not None and len(wanted.memory_ids) == 1:
        found = (lookup.of_memory(direction, None if after is None else ":after"),)
    return [
        f"SELECT * FROM ({select(columns, source, wanted, lookup, after)}"
        f"{_order(source, direction)} LIMIT :limit)"
        for source in found
    ]


def _order(source: Source, direction: Direction) -> str:
    return f" ORDER BY {source.order.format(direction=direction)}" if source.order else ""


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
    """Yield the conditions that a filter means, but for its memories'."""
    for name in ("actor_id", "role", "event"):
        if getattr(wanted, name) is not None:
            yield f"history.{name} = :{name}"
    if wanted.text is not None:
        yield "(instr(history.old_memory, :text) > 0 OR instr(history.new_memory, :text) > 0)"
    occurred_at = times.occurred_at("history", lookup.time_before)
    if wanted.since is not None:
        yield f"{occurred_at} >= :since"
    if wanted.until is not None:
        yield f"{occurred_at} < :until"


def parameters(wanted: Filter) -> dict[str, Any]:
    """Return what the SELECTs of a filter take."""
    return {
        **({} if wanted.memory_ids is None else named(wanted.memory_ids)),
        "actor_id": wanted.actor_id,
        "role": wanted.role,
        "event": None if wanted.event is None else str(wanted.event),
        "text": wanted.text,
        "since": None if wanted.since is None else times.instant_text(wanted.since),
        "until": None if wanted.until is None else times.instant_text(wanted.until),
    }


def named(memory_ids: Sequence[str]) -> Mapping[str, Any]:
    """Return the parameters of `Lookup.one` for one memory, or of `Lookup.several`."""
    if len(memory_ids) == 1:
        return {"memory_id": memory_ids[0], "memory": memory_key(memory_ids[0])}
    return named_together(memory_ids)


def named_together(memory_ids: Sequence[str]) -> Mapping[str, Any]:
    """Return the parameters of `Lookup.several`, also for one memory."""
    return {
        "memory_ids": json.dumps(memory_ids),
        "memories": json.dumps([memory_key(memory_id) for memory_id in memory_ids]),
    }
