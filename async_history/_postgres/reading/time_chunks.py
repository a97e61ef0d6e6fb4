"""The records of a time range, as SQL of PostgreSQL: chunk by chunk of the history.

Times are not in the order of `seq`, so no index has both. But an index has the times in each chunk.
"""

from collections.abc import Sequence
from typing import Final

from async_history._postgres.reading.direction import FORWARD, Direction

CHUNK_BITS: Final = 14
"""A chunk is a range of 16,384 values of `seq`: 3 million records have 184. At most this many rows
are read to find the first one in a time range."""
_CHUNKS_AT_ONCE: Final = 256
"""More chunks than 3 million records have, so that one look-up covers all."""


class TimeChunks:
    """SQL for the records in a time range.

    Args:
        times: the condition on a row's time.
        within: conditions on `seq`.
    """

    def __init__(self, times: str, direction: Direction, within: Sequence[str]) -> None:
        self._times = times
        self._direction = direction
        self._within = within

    def ctes(self, begin: str) -> str:
        """Return the CTEs of the chunks, from a `seq` on, with records in the time range, in order.

        The last one is `chunk`, whose column is `number`.

        Many are looked up at once: one by one would take four times as long. Chunks whose
        records were all removed are skipped.
        """
        direction = self._direction
        chunk, most = f"(seq >> {CHUNK_BITS})", _CHUNKS_AT_ONCE - 1
        if direction is FORWARD:
            newest = f"(SELECT {chunk} FROM {{schema}}.history ORDER BY seq DESC LIMIT 1)"
            tail = f"least(head + {most}, {newest})"
            following = f"(coalesce(run.number, run.tail) + 1) << {CHUNK_BITS}"
        else:
            # Not from the oldest: dead index entries may come before it.
            zero = "0::pg_catalog.int8"
            tail = f"CASE WHEN head BETWEEN 0 AND {most} THEN {zero} ELSE head - {most} END"
            following = f"(coalesce(run.number, run.tail) << {CHUNK_BITS}) - 1"

        def first(place: str) -> str:
            step = f"{direction.step}::pg_catalog.int8"
            numbers = f"pg_catalog.generate_series(found.head, found.tail, {step})"
            return f"""
    SELECT head, tail, (
        SELECT {chunk} FROM {{schema}}.history
        WHERE {chunk} = ANY (ARRAY(SELECT {numbers})) AND {self._times}
        ORDER BY {chunk} {direction.order}, occurred_at {direction.order} LIMIT 1
    ) AS number
    FROM (
        SELECT head, {tail} AS tail FROM (
            SELECT {chunk} AS head FROM {{schema}}.history
            WHERE {" AND ".join([f"seq {direction.onward} {place}", *self._within])}
            ORDER BY seq {direction.order} LIMIT 1
        ) AS found OFFSET 0
    ) AS found"""

        return f"""run (head, tail, number) AS (
    {first(begin)} UNION ALL
    SELECT following.* FROM run CROSS JOIN LATERAL ({first(following)}) AS following
), chunk (number) AS (SELECT number FROM run WHERE number IS NOT NULL)"""

    def first(self, begin: str) -> str:
        """Return SQL for the `seq` of the first record in the time range, from a `seq` on."""
        direction = self._direction
        within = " AND ".join([f"seq {direction.onward} {begin}", *self._within])
        return f"""
SELECT one.seq FROM chunk
CROSS JOIN LATERAL (
    SELECT seq FROM {{schema}}.history
    WHERE seq >= (chunk.number << {CHUNK_BITS}) AND seq < ((chunk.number + 1) << {CHUNK_BITS})
        AND {within} AND {self._times}
    ORDER BY seq {direction.order} LIMIT 1
) AS one
LIMIT 1
"""

    def rows(self) -> str:
        """Return SQL for the rows of the current `chunk` in the time range."""
        return (
            f"SELECT * FROM {{schema}}.history WHERE (seq >> {CHUNK_BITS}) = chunk.number"
            f" AND {self._times} OFFSET 0"
        )
