"""The states of some or all memories of a PostgreSQL history at a moment.

For all memories, records are fetched in the order of recording. Memory by memory, through the index
on (memory_id, seq), each row would be on another page of the table. That takes three times as long
(benchmarks/timeline.py measures it).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from async_history._core.reading.filters import Filter
from async_history._core.reading.timeline import PAGE_POSITIONS, MemoryMoment
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import in_utc
from async_history._postgres.reading.filters import Search
from async_history._postgres.rows import (
    NAMES,
    RECORD_COLUMNS,
    Fetch,
    joined_names,
    record_from_row,
)
from async_history._postgres.schema import in_schema

_EVERYTHING: Final = Filter()

_STATE: Final = "seq * 2 + (event = 'DELETE' OR is_deleted)::integer"
"""A record's `seq`, followed by a bit that says whether the memory is deleted after it."""
_UNDATED: Final = f"""
SELECT memory_id, state FROM (
    SELECT memory_id, state, occurred_at,
           pg_catalog.max(occurred_at) OVER (PARTITION BY memory_id, dated) AS moment
    FROM (
        SELECT memory_id, {_STATE} AS state, occurred_at,
               pg_catalog.count(occurred_at) OVER (PARTITION BY memory_id ORDER BY seq) AS dated
        FROM {{schema}}.history
        WHERE memory_id IN (SELECT memory_id FROM {{schema}}.history WHERE occurred_at IS NULL)
    ) AS counted
) AS known
WHERE occurred_at IS NULL
    AND coalesce(moment, '-infinity') < (SELECT $1::pg_catalog.text::pg_catalog.timestamptz)
    AND (SELECT true FROM {{schema}}.history WHERE occurred_at IS NULL ORDER BY memory_id LIMIT 1)
"""
"""Changes without a time, with the time of the previous change; a copied history may have many. If
there are none, the statement reads nothing else."""
_BEFORE: Final = "occurred_at < (SELECT $1::pg_catalog.text::pg_catalog.timestamptz)"
"""The time is in a SELECT; otherwise it would be parsed for each row."""
_ALL: Final = f"SELECT memory_id, {_STATE} AS state FROM {{schema}}.history WHERE {_BEFORE}"


def _find(dated: str) -> str:
    """Return the SELECT of states: one row for the positions of a page; `dated` finds those with a
    time."""
    return f"""
SELECT pg_catalog.string_agg((state / 2)::pg_catalog.text, ',') FROM (
    SELECT pg_catalog.max(state) AS state FROM (({dated}) UNION ALL {_UNDATED}) AS of_memories
    GROUP BY memory_id
) AS states
WHERE state % 2::bigint = 0
GROUP BY state / {2 * PAGE_POSITIONS} ORDER BY state / {2 * PAGE_POSITIONS}
"""


FIND: Final = _find(_ALL)
_SAMPLE: Final = 64
_FEW: Final = 16
_COUNT_IN_SAMPLE: Final = f"""
SELECT pg_catalog.count(*) FROM (
    SELECT first.seq, (last.seq - first.seq) / {_SAMPLE} + 1 AS step
    FROM (SELECT seq FROM {{schema}}.history ORDER BY seq LIMIT 1) AS first,
        (SELECT seq FROM {{schema}}.history ORDER BY seq DESC LIMIT 1) AS last
) AS ends
CROSS JOIN pg_catalog.generate_series(0::pg_catalog.int8, {_SAMPLE - 1}::pg_catalog.int8)
    AS sample (number)
CROSS JOIN LATERAL (
    SELECT occurred_at FROM {{schema}}.history
    WHERE seq >= ends.seq + sample.number * ends.step ORDER BY seq LIMIT 1
) AS sampled
WHERE {_BEFORE}
"""
"""The number of records before the instant in a sample of the whole table. If they are few, an
index finds them chunk by chunk. If not, reading the whole table is faster."""
_FETCH_ON_CLUSTER: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history
WHERE seq = ANY(pg_catalog.string_to_array($1, ',')::bigint[])
"""
FETCH: Final = f"{_FETCH_ON_CLUSTER} ORDER BY seq LIMIT (SELECT {PAGE_POSITIONS}::pg_catalog.int8)"
"""The LIMIT excludes no rows. Without statistics the planner would expect most of the table and
read all of it for each page; for an unknown LIMIT it expects a tenth."""

_ASKED: Final = f"""ROWS FROM (
    pg_catalog.unnest({NAMES}),
    pg_catalog.unnest(pg_catalog.string_to_array($3, ',', '')::bigint[]),
    pg_catalog.unnest(pg_catalog.string_to_array($4, ',', ''))
) WITH ORDINALITY AS asked (name, earlier, moment, number)"""
_OF_MOMENT: Final = """(
    (
        SELECT * FROM {schema}.history
        WHERE memory_id = asked.name AND asked.earlier IS NOT NULL
        ORDER BY memory_id, seq OFFSET asked.earlier LIMIT 1
    ) UNION ALL (
        SELECT * FROM {schema}.history
        WHERE memory_id = asked.name AND asked.moment IS NOT NULL
            AND occurred_at <= (SELECT asked.moment::pg_catalog.timestamptz)
            AND NOT EXISTS (
                SELECT FROM {schema}.history WHERE memory_id = asked.name AND occurred_at IS NULL
            )
        ORDER BY memory_id DESC, seq DESC LIMIT 1
    )
)"""
"""The last record of a memory as of a moment: after `earlier` other records, or up to an instant. A
memory with a record of unknown time gets no row for an instant."""
_LAST_CHANGES: Final = f"""
SELECT {RECORD_COLUMNS}, asked.number FROM {_ASKED} CROSS JOIN LATERAL {_OF_MOMENT} AS found
"""
_STATES_AND_THEN: Final = f"""
SELECT event = 'DELETE' OR is_deleted, new_memory, created_at, context,
    changed.then_id, changed.then_text, changed.then_context, asked.number
FROM {_ASKED}
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.history WHERE memory_id = asked.name
    ORDER BY memory_id DESC, seq DESC LIMIT 1
) AS latest
LEFT JOIN LATERAL (
    SELECT id AS then_id, new_memory AS then_text, context AS then_context
    FROM {_OF_MOMENT} AS found WHERE event <> 'DELETE' AND NOT is_deleted
) AS changed ON true
"""
_MOST_ROWS: Final = (1 << 63) - 1


async def last_changes(
    fetch: Fetch, schema: str, asked: Sequence[MemoryMoment]
) -> dict[MemoryMoment, HistoryRecord | None]:
    """Return memories' last records as of moments; None if one needs the whole memory.

    Args:
        schema: the quoted schema.
    """
    found: dict[MemoryMoment, HistoryRecord | None] = dict.fromkeys(asked)
    asked = list(found)
    rows = await fetch(in_schema(_LAST_CHANGES, schema), *_parameters(asked))
    return found | {asked[int(row[-1]) - 1]: record_from_row(row[:-1]) for row in rows}


async def states_and_then(
    fetch: Fetch, schema: str, asked: Sequence[MemoryMoment]
) -> list[Sequence[Any] | None]:
    """Return a row for each memory and its moment; None for a memory without records.

    A row has the values of a `MemoryState` with the context as JSON, then the id, text and context
    of the record of the moment. That text is None if the memory had none, or if finding it needs
    all its records.

    Args:
        schema: the quoted schema.
    """
    found: list[Sequence[Any] | None] = [None] * len(asked)
    for row in await fetch(in_schema(_STATES_AND_THEN, schema), *_parameters(asked)):
        found[int(row[-1]) - 1] = row
    return found


def _parameters(asked: Sequence[MemoryMoment]) -> tuple[str, str, str, str]:
    """Return the parameters of `_ASKED`: one or more requests."""
    earlier = [""] * len(asked)
    instants = [""] * len(asked)
    for index, (_, when) in enumerate(asked):
        if isinstance(when, int):
            earlier[index] = str(min(when - 1, _MOST_ROWS))
        else:
            instants[index] = in_utc(when).isoformat()
    names = joined_names([memory_id for memory_id, _ in asked])
    return *names, ",".join(earlier), ",".join(instants)


class ServerStates:
    """A reader of the states of all memories at an instant.

    Args:
        schema: the quoted schema.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
    """

    def __init__(self, fetch: Fetch, schema: str, *, is_distributed: bool) -> None:
        self._fetch = fetch
        self._schema = schema
        self._is_distributed = is_distributed

    async def find(self, when: datetime) -> Sequence[str]:
        sql = FIND
        arguments: Sequence[Any] = ["infinity"]
        with contextlib.suppress(OverflowError):  # nothing comes after the last instant
            until = in_utc(when) + timedelta(microseconds=1)
            arguments = [until.isoformat()]
            if not self._is_distributed:
                ((found,),) = await self._fetch(
                    in_schema(_COUNT_IN_SAMPLE, self._schema), *arguments
                )
                if int(found) < _FEW:
                    search = Search(replace(_EVERYTHING, until=until), is_distributed=False)
                    dated, arguments = search.in_time(f"memory_id, {_STATE} AS state")
                    sql = _find(dated)
        rows = await self._fetch(in_schema(sql, self._schema), *arguments)
        return [positions for (positions,) in rows]

    async def fetch(self, positions: str) -> Sequence[HistoryRecord]:
        sql = _FETCH_ON_CLUSTER if self._is_distributed else FETCH
        rows = await self._fetch(in_schema(sql, self._schema), positions)
        return [record_from_row(row) for row in rows]
