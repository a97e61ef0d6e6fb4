"""All memories of a PostgreSQL history as they were at an instant.

One statement finds where each memory's record is, and the connection is free again. What is kept of
it are places as text, about eight bytes a memory. The records are then fetched by place, a page at
a time, in the order of recording: memory by memory, through the index of (memory_id, seq), each row
would be read from another end of the table, which takes three times as long (benchmarks/timeline.py
is how to measure it).
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final

from async_history._core.records import HistoryRecord, in_utc
from async_history._postgres.read import Fetch
from async_history._postgres.rows import RECORD_COLUMNS, record_from_row
from async_history._postgres.schema import in_schema
from async_history.errors import CursorGone

_PAGE_PLACES: Final = 1024
"""A page is what lies in so many places of the history: at most so many records."""

_STATE: Final = "seq * 2 + (event = 'DELETE' OR is_deleted)::integer"
"""Its last bit says that the record leaves nothing there."""
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
    AND coalesce(moment, '-infinity') <= $1::pg_catalog.text::pg_catalog.timestamptz
"""
"""A change without a time has that of the one before it: of a copied history there may be many."""
FIND: Final = f"""
SELECT pg_catalog.string_agg((state / 2)::pg_catalog.text, ',') FROM (
    SELECT pg_catalog.max(state) AS state FROM (
        SELECT memory_id, {_STATE} AS state FROM {{schema}}.history
        WHERE occurred_at <= $1::pg_catalog.text::pg_catalog.timestamptz
        UNION ALL {_UNDATED}
    ) AS of_memories
    GROUP BY memory_id
) AS states
WHERE state % 2::bigint = 0 GROUP BY state / {2 * _PAGE_PLACES} ORDER BY state / {2 * _PAGE_PLACES}
"""
"""A page's places a row."""
FETCH: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history
WHERE seq = ANY(pg_catalog.string_to_array($1, ',')::bigint[])
"""


async def states_at(
    fetch: Fetch, schema: str, when: datetime
) -> AsyncIterator[Sequence[HistoryRecord]]:
    """Yield pages of the records in force at an instant, of the memories that were there.

    Args:
        schema: the quoted schema.

    Raises:
        CursorGone: a record that was found is gone.
    """
    # An instant as text: see `joined_columns`.
    for (places,) in await fetch(in_schema(FIND, schema), in_utc(when).isoformat()):
        rows = await fetch(in_schema(FETCH, schema), places)
        if len(rows) <= places.count(","):
            raise CursorGone("records that were found are gone (a reset, a removal); ask again")
        yield [record_from_row(row) for row in rows]
