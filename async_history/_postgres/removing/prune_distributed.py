"""Pruning on a Citus cluster: the statements of one step.

Its nodes can't join a list with the table row by row, nor plan most subqueries. So `prune_step`
decides, and each memory has a statement of its own.
"""

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from async_history._core.records.values import in_utc
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune import PruneCursor, PruneStep, prune_step
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import (
    Candidate,
    Edge,
    PruneTries,
    prunable_alone,
)
from async_history._postgres.removing.prune_steps import BEFORE, PruneSteps
from async_history._postgres.schema_steps import RECORDS

_LIGHT: Final = f"seq, id, memory_id, event = 'DELETE', occurred_at < {BEFORE}"
"""Columns of a record: its `RecordRef`, whether it is a DELETE, and whether it occurred before an
instant."""
_WINDOW: Final = f"""
SELECT {_LIGHT} FROM {{schema}}.history
WHERE seq > $2::pg_catalog.int8 AND seq <= $3::pg_catalog.int8
ORDER BY seq LIMIT $4::pg_catalog.int8
"""
_WHOLE: Final = f"""
SELECT {_LIGHT} FROM {{schema}}.history
WHERE memory_id = ANY($2::pg_catalog.text[]) ORDER BY memory_id, seq
"""
_EDGE: Final = """
SELECT seq, id FROM {schema}.history WHERE memory_id = $1::pg_catalog.text
ORDER BY seq DESC OFFSET $2::pg_catalog.int8 LIMIT 1
"""
_NEXT_IS_DATED: Final = """
SELECT occurred_at IS NOT NULL FROM {schema}.history
WHERE memory_id = $1::pg_catalog.text AND seq > $2::pg_catalog.int8 ORDER BY seq LIMIT 1
"""
_REMOVE: Final = f"DELETE FROM {{schema}}.history WHERE {RECORDS} RETURNING seq"


def _candidate(row: Sequence[Any]) -> Candidate:
    position, record_id, memory_id, is_delete, is_old = row
    return Candidate(int(position), record_id, memory_id, is_delete, is_old, of_undated=False)


class DistributedPruning(PruneSteps):
    """The statements of a pruning step on a cluster."""

    async def step(
        self, asked: PruneRequest, reached: PruneCursor | None, tries: PruneTries[RecordRef]
    ) -> PruneStep:
        """Prune the next few records, inside the caller's transaction."""
        return await prune_step(asked, reached, self, tries)

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> list[Candidate]:
        before = in_utc(asked.before).isoformat()
        return list(map(_candidate, await self._fetch(_WINDOW, before, after, last, limit)))

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, Edge]:
        found = {name: await self._fetch(_EDGE, name, before) for name in memory_ids}
        return {name: (int(rows[0][0]), rows[0][1]) for name, rows in found.items() if rows}

    async def next_are_dated(self, records: Sequence[Candidate]) -> dict[int, bool]:
        found = {
            one.position: await self._fetch(_NEXT_IS_DATED, one.memory_id, one.position)
            for one in records
        }
        return {seq: rows[0][0] for seq, rows in found.items() if rows}

    async def whole(self, asked: PruneRequest, memory_ids: Sequence[str]) -> list[Candidate]:
        seen: list[Candidate] = []
        rows = await self._fetch(_WHOLE, in_utc(asked.before).isoformat(), memory_ids)
        for _, group in groupby(rows, key=itemgetter(2)):
            of_memory = list(group)
            are_old = [row[-1] for row in of_memory]
            seen += [
                _candidate(row)._replace(prunable_alone=prunable_alone(asked, are_old, index))
                for index, row in enumerate(of_memory)
            ]
        return seen

    async def remove(self, records: Sequence[Candidate]) -> set[RecordRef]:
        rows = await self._fetch(_REMOVE, *self._names_of(records))
        removed = {int(seq) for (seq,) in rows}
        self.has_removed = bool(removed)
        gone = {one.ref for one in records if one.position in removed}
        await self._remove_with([ref.id for ref in gone], {ref.memory_id for ref in gone})
        return gone

    def _names_of(
        self, records: Collection[Candidate | RecordRef]
    ) -> tuple[list[str], list[str] | None]:
        return self._named([one.id for one in records], [one.memory_id for one in records])
