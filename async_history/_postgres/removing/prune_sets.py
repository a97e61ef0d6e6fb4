"""Pruning on a PostgreSQL server: one statement decides and removes thousands of records.

See `_core/removing/prune.py` for what may be removed.
"""

import json
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Final, NamedTuple

from async_history._core.records.values import in_utc
from async_history._core.removing.prune import (
    PruneCursor,
    PruneStep,
    first_cursor,
    known_edges,
)
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import Edge, PruneTries
from async_history._postgres.removing.prune_steps import BEFORE, PruneSteps

_AFTER: Final = "seq > $2::pg_catalog.int8 AND seq <= $3::pg_catalog.int8"
_MAY_END: Final = "(event = 'DELETE' OR $4::pg_catalog.bool)"
"""Whether a memory whose last record this is may be removed as a whole."""
_WINDOW: Final = f"""
SELECT first.seq, (
    SELECT seq FROM {{schema}}.history WHERE seq >= first.seq AND seq <= $3::pg_catalog.int8
    ORDER BY seq OFFSET (SELECT $4::pg_catalog.int8) LIMIT 1
)
FROM (
    SELECT coalesce(
        (
            SELECT seq FROM (
                SELECT seq, occurred_at FROM {{schema}}.history
                WHERE {_AFTER} ORDER BY seq LIMIT (SELECT $5::pg_catalog.int8)
            ) AS looked_at
            WHERE occurred_at < (SELECT {BEFORE}) LIMIT 1
        ),
        (
            SELECT seq FROM {{schema}}.history WHERE {_AFTER}
            ORDER BY seq OFFSET (SELECT $5::pg_catalog.int8) LIMIT 1
        )
    ) AS seq
) AS first
"""
"""The first record of a step, and the last one if there are more. It begins at the first old
record; in most histories the many newest are not old. `$4` is one less than the records of a step,
`$5` the most records to skip."""
_IN_WINDOW: Final = "seq >= $2::pg_catalog.int8 AND seq <= $3::pg_catalog.int8"
_MEMORIES: Final = f"""
SELECT DISTINCT memory_id FROM {{schema}}.history
WHERE {_IN_WINDOW} AND occurred_at < (SELECT {BEFORE})
"""
_EDGES: Final = """
SELECT named.name, edge.seq, edge.id
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name) CROSS JOIN LATERAL (
    SELECT seq, id FROM {schema}.history WHERE memory_id = named.name
    ORDER BY seq DESC OFFSET $2::pg_catalog.int8 LIMIT 1
) AS edge
"""
_THERE: Final = "SELECT id FROM {schema}.history WHERE id = ANY($1::pg_catalog.text[])"
_LATER: Final = """
FROM {schema}.history AS later
WHERE later.memory_id <= seen.memory_id
    AND (later.memory_id, later.seq) > (seen.memory_id, seen.seq)
ORDER BY later.memory_id, later.seq
"""
"""The later records of a record's memory. This condition can only be read from the index of
memories. With `=` the planner might read all records after it, if its statistics say that most are
of one memory."""
_LEAD: Final = "least($5::pg_catalog.int8, 2147483647::pg_catalog.int8)::pg_catalog.int4"
"""How many records later the last one stands that must remain, as far as `lead` can look."""
_DECIDED: Final = f"""
WITH judged AS MATERIALIZED (
    SELECT seq, id, memory_id, may_end, has_enough,
        coalesce(is_followed, (SELECT true {_LATER} LIMIT 1)) AS is_followed
    FROM (
        SELECT *,
            pg_catalog.lead(true) OVER in_order AS is_followed,
            pg_catalog.lead(true, {_LEAD}) OVER in_order AS has_enough
        FROM (
            SELECT seq, id, memory_id, occurred_at < (SELECT {BEFORE}) AS is_old,
                {_MAY_END} AS may_end
            FROM {{schema}}.history WHERE {_IN_WINDOW} OFFSET 0
        ) AS read
        WINDOW in_order AS (PARTITION BY memory_id ORDER BY seq)
        OFFSET 0
    ) AS seen
    WHERE is_old
), alone AS (
    SELECT id FROM judged AS seen WHERE is_followed AND CASE
        WHEN has_enough OR $5::pg_catalog.int8 = 1::pg_catalog.int8 THEN true
        WHEN $6::pg_catalog.text IS NULL THEN
            (SELECT true {_LATER} OFFSET $5::pg_catalog.int8 - 1::pg_catalog.int8 LIMIT 1)
        ELSE seq < ((
            SELECT $6::pg_catalog.text::pg_catalog.jsonb
        ) OPERATOR(pg_catalog.->>) memory_id)::pg_catalog.int8
    END
), whole AS MATERIALIZED (
    SELECT ending.id AS last, ending.memory_id, record.id, record.is_alone
    FROM judged AS ending CROSS JOIN LATERAL (
        SELECT id, pg_catalog.bool_and(
                coalesce(occurred_at < (SELECT {BEFORE}), false)
            ) OVER () AS are_old,
            pg_catalog.count(*) OVER () - pg_catalog.row_number() OVER (ORDER BY seq)
                >= $5::pg_catalog.int8 AS is_alone
        FROM {{schema}}.history WHERE memory_id = ending.memory_id
    ) AS record
    WHERE ending.is_followed IS NULL AND ending.may_end AND record.are_old
)
"""
"""The old records of a step and whether each is followed by another (NULL if not), those that go
alone, and those of memories that go as a whole, some of which would go alone.

A record without an instant is not old, and keeps its memory.

`$5` is how many later records must remain, `$6` each memory's first kept record as JSON, or NULL.
Only the last of a memory's records in the step is followed by a look-up, which an index answers.
The lists are never joined with each other: without statistics that might be done row by row."""
_COUNTED: Final = 4
"""Most records to keep for which each record's later ones are counted. For more, it is cheaper to
find the first kept record of each memory once, and to remember it for later steps."""
_COUNT: Final = f"""{_DECIDED}
SELECT (SELECT pg_catalog.count(*) FROM alone)
        + (SELECT pg_catalog.count(*) FROM whole WHERE NOT is_alone),
    (SELECT pg_catalog.count(*) FROM whole WHERE id = last)
"""
_REMOVE: Final = f"""{_DECIDED}, removed AS (
    DELETE FROM {{schema}}.history
    WHERE id = ANY(ARRAY(SELECT id FROM alone UNION ALL SELECT id FROM whole))
    RETURNING id
)
SELECT (SELECT pg_catalog.json_agg(id) FROM removed)::pg_catalog.text,
    (SELECT pg_catalog.json_agg(
        pg_catalog.json_build_array(last, memory_id)) FROM whole WHERE id = last)::pg_catalog.text
"""
"""The removed records' ids, and the last id and the name of each memory that goes: each packed into
one text, which takes the client a tenth of the time of rows.

By id, because after a switch from logical replication new records may have numbers of old ones."""


class _Removed(NamedTuple):
    """What a step removed: ids, and how many memories as a whole."""

    ids: Set[str]
    memories_gone: int


class _Decision(NamedTuple):
    """The parameters of a step's decision: `$1` to `$6` of `_DECIDED`."""

    before: str
    first: int
    last: int
    also_living: bool
    later: int
    edges: str | None


class SetPruning(PruneSteps):
    """The statements of a pruning step on a server."""

    async def step(
        self, asked: PruneRequest, reached: PruneCursor | None, tries: PruneTries[str]
    ) -> PruneStep:
        """Prune the next few thousand records, inside the caller's transaction."""
        reached = reached or await first_cursor(asked, self)
        window = None if reached is None else await self.window(asked, reached)
        if reached is None or window is None:
            nothing = _Removed(frozenset(), 0)
            return PruneStep(*await tries.count(asked, *nothing, self.log, self.there), None)
        decision = await self.decision(asked, reached, window)
        if asked.dry_run:
            counts = await self.count(decision)
        else:
            removed = await self.remove(decision)
            counts = await tries.count(asked, *removed, self.log, self.there)
        if window[1] == reached.last:
            return PruneStep(*counts, None)
        return PruneStep(*counts, replace(reached, position=window[1]))

    async def window(self, asked: PruneRequest, reached: PruneCursor) -> tuple[int, int] | None:
        """Return the first and the last position of the next step; None if nothing is left."""
        ((first, last),) = await self._fetch(
            _WINDOW,
            in_utc(asked.before).isoformat(),
            reached.position,
            reached.last,
            reached.records - 1,
            asked.limits.passed_over,
        )
        if first is None:
            return None
        return int(first), reached.last if last is None else int(last)

    async def decision(
        self, asked: PruneRequest, reached: PruneCursor, window: tuple[int, int]
    ) -> _Decision:
        """Return the parameters of a step's decision."""
        before, edges = in_utc(asked.before).isoformat(), None
        if asked.keep_last > _COUNTED:
            names = [name for (name,) in await self._fetch(_MEMORIES, before, *window)]
            found = await known_edges(asked, names, reached.edges, self)
            by_name = {name: edge[0] for name, edge in found.items() if edge is not None}
            edges = json.dumps(by_name, ensure_ascii=False)
        return _Decision(before, *window, asked.keep_last == 0, max(asked.keep_last, 1), edges)

    async def count(self, decision: _Decision) -> tuple[int, int]:
        """Return how many records, and memories as a whole, a step would remove."""
        ((records, memories),) = await self._fetch(_COUNT, *decision)
        return int(records), int(memories)

    async def remove(self, decision: _Decision) -> _Removed:
        """Remove records, and owners and salts with them."""
        ((removed, ended),) = await self._fetch(_REMOVE, *decision)
        ids = frozenset(json.loads(removed)) if removed else frozenset()
        self.has_removed = bool(ids)
        ends = json.loads(ended) if ended else ()
        gone = [memory_id for last, memory_id in ends if last in ids]
        await self._remove_with(ids, gone)
        return _Removed(ids, len(gone))

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, Edge]:
        rows = await self._fetch(_EDGES, memory_ids, before)
        return {name: (int(seq), record_id) for name, seq, record_id in rows}

    async def there(self, ids: Set[str]) -> set[str]:
        """Return those of these ids that have a record."""
        return {record_id for (record_id,) in await self._fetch(_THERE, list(ids))}
