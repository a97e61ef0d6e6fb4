"""SQL that finds the rows of a memory, an actor or a time, with the index or without it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._sqlite import times
from async_history._sqlite.index import undated
from async_history._sqlite.index.blocks import CHUNKS, SPANS
from async_history._sqlite.index.levels import (
    POSITIONS,
    SEVERAL_KEYS,
    Direction,
    Range,
    memory_key,
    ordered_positions,
    positions,
)
from async_history._sqlite.index.owners import Details
from async_history._sqlite.index.validity import INDEX_IS_VALID, LOWEST_ROW

_SEVERAL: Final = "memory_id IN (SELECT value FROM json_each(:memory_ids))"


@dataclass(frozen=True, slots=True)
class Source:
    """Tables to search for rows of `history`: SQL for the FROM, the join condition and the ORDER
    BY.

    `since` and `until` are these filters' conditions on the index tables, and `beyond` the one that
    they may have rows beyond a position, with a comparison. An empty `order` means that SQLite
    already reads the rows in order.
    """

    tables: str
    condition: str = "true"
    order: str = "history.rowid {direction}"
    since: str = "true"
    until: str = "true"
    beyond: str = "true"


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
    beyond=f"chunks.block {{comparison}}= {{position}} >> {CHUNKS.bits}"
    f" AND spans.block {{comparison}}= {{position}} >> {SPANS.bits}",
)
_IN_SPANS: Final = Source(
    f"main.{SPANS.table} AS spans CROSS JOIN history",
    f"spans.block > {CHUNKS.through} >> {SPANS.bits}"
    f" AND spans.block <= {SPANS.through} >> {SPANS.bits} AND {_ROWS_OF_SPAN}",
    "spans.block {direction}, history.rowid {direction}",
    since="spans.latest >= :since",
    until="spans.earliest < :until",
    beyond=f"spans.block {{comparison}}= {{position}} >> {SPANS.bits}",
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
    beyond=f"chunks.block {{comparison}}= {{position}} >> {CHUNKS.bits}",
)
_BEYOND_CHUNKS: Final = Source("history", f"history.rowid > {CHUNKS.through}")


_SINCE: Final = f"""(
    SELECT CASE WHEN {INDEX_IS_VALID} THEN coalesce((
        SELECT block << {SPANS.bits} FROM main.{SPANS.table}
        WHERE latest >= :since AND block >= (
            SELECT coalesce(min(block), ({CHUNKS.through} >> {CHUNKS.bits}) + 1)
                << {_SPANS_OF_CHUNK}
            FROM main.{CHUNKS.table} WHERE latest >= :since
        )
        ORDER BY block LIMIT 1
    ), {SPANS.through} + 1) ELSE {LOWEST_ROW} END - 1
)"""
_UNTIL: Final = f"""(
    SELECT coalesce(max(block) + 1, {LOWEST_ROW} >> {SPANS.bits}) << {SPANS.bits} FROM (
        SELECT max(block) AS block FROM main.{SPANS.table}
        WHERE earliest < :until AND block > {CHUNKS.through} >> {SPANS.bits}
        UNION ALL SELECT * FROM (
            SELECT block FROM main.{SPANS.table}
            WHERE earliest < :until AND block < (
                SELECT max(block) + 1 FROM main.{CHUNKS.table} WHERE earliest < :until
            ) << {_SPANS_OF_CHUNK}
            ORDER BY block DESC LIMIT 1
        )
    )
)"""
"""SQL values: the last position before the first noted span that may have rows since an instant;
the first one after the last noted span that may have rows until an instant. Rows after all noted
spans may have any time. (Times mostly rise, so few rows between do not match.)"""


def ranges_of_time(*, since: bool, until: bool) -> Sequence[Range]:
    """Return the ranges of rows with a time since `:since`, until `:until`, or both."""
    after = _SINCE if since else None
    if not until:
        return (Range(after),)
    return Range(after, _UNTIL), Range(SPANS.through)


def _of_value(
    direction: Direction, beyond: str | None, in_tail: str, ranges: Sequence[Range]
) -> Source:
    """Return the source of the rows of a scope or a cause, in order, after `beyond`.

    The parameter `:value` is the key; `in_tail` is the condition on `tail`, a row that is not
    indexed. Rows outside `ranges` may be left out.
    """
    entries = ordered_positions(direction, beyond, key=":value", in_tail=in_tail, ranges=ranges)
    return Source(
        f"{entries} AS entry CROSS JOIN main.history AS history",
        "history.rowid = entry.position",
        order="",
    )


def _of_memory(direction: Direction, beyond: str | None, ranges: Sequence[Range]) -> Source:
    """Return the source of a memory's rows, in order, after `beyond`; parameters as
    `Lookup.one`."""
    entries = ordered_positions(direction, beyond, ranges=ranges)
    return Source(
        f"{entries} AS entry CROSS JOIN main.history AS history",
        "history.rowid = entry.position",
        order="",
    )


@dataclass(frozen=True, slots=True)
class Lookup:
    """SQL that finds rows.

    Attributes:
        one: the condition for one memory's rows, with `:memory_id` and `:memory`.
        several: the condition for several memories' rows, with `:memory_ids` and `:memories`, both
            as JSON.
        time_before: the time of a row in `history` that has no time.
        details: the values of a row outside its columns.
        of_memory: returns the source of a memory's rows, in order.
        of_value: returns the source of the rows of a scope or a cause.
        of_actor, of_time: sources of an actor's or a time's rows, to be read one after the other.
    """

    one: str
    several: str
    time_before: str
    details: Details
    of_memory: Callable[[Direction, str | None, Sequence[Range]], Source]
    of_value: Callable[[Direction, str | None, str, Sequence[Range]], Source]
    of_actor: Sequence[Source] = (HISTORY,)
    of_time: Sequence[Source] = (HISTORY,)


THROUGH_INDEX: Final = Lookup(
    one=f"history.memory_id = :memory_id AND history.rowid IN ({POSITIONS})",
    several=f"history.{_SEVERAL} AND history.rowid IN ({positions(SEVERAL_KEYS, _SEVERAL)})",
    time_before=undated.time_before("history"),
    details=Details(is_indexed=True),
    of_memory=_of_memory,
    of_value=_of_value,
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
    details=Details(is_indexed=False),
    of_memory=lambda direction, beyond, ranges: HISTORY,
    of_value=lambda direction, beyond, in_tail, ranges: HISTORY,
)
"""The lookup for a file without an index."""


def named(memory_ids: Sequence[str]) -> Mapping[str, Any]:
    """Return the parameters of `Lookup.one` for one memory, of `Lookup.several` for several."""
    if len(memory_ids) == 1:
        return {"memory_id": memory_ids[0], "memory": memory_key(memory_ids[0])}
    return parameters_of_several(memory_ids)


def parameters_of_several(memory_ids: Sequence[str]) -> Mapping[str, Any]:
    """Return the parameters of `Lookup.several`, for any number of memories."""
    return {
        "memory_ids": json.dumps(memory_ids),
        "memories": json.dumps([memory_key(memory_id) for memory_id in memory_ids]),
    }
