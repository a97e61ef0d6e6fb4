"""Pruning in PostgreSQL: the statements of one step and its transaction.

The nodes of a Citus cluster can't join a list with the table row by row, so there each memory has
a statement of its own.
"""

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from async_history._core.ledger import changes
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
from async_history._postgres.ledger import Attestation, locks, tables_of
from async_history._postgres.schema_steps import RECORDS, SchemaSteps, ref_of
from async_history._postgres.transaction import BY_INDEX, WAIT_FOR_REPLICAS_TOO, transaction
from async_history._postgres.writing.owner_steps import HAS_OWNERS, NEXT_NUMBER, REMOVE_OWNERS

_ENDS: Final = "SELECT pg_catalog.min(seq), pg_catalog.max(seq) FROM {schema}.history"
_BEFORE: Final = "$1::pg_catalog.text::pg_catalog.timestamptz"
"""An instant as text, because the driver can't encode or decode some near year 1 or 9999."""
_LIGHT: Final = f"seq, id, memory_id, event = 'DELETE', occurred_at < {_BEFORE}"
"""Columns of a record: its `RecordRef`, whether it is a DELETE, and whether it occurred before an
instant."""
_AFTER: Final = "seq > $2::pg_catalog.int8 AND seq <= $3::pg_catalog.int8"
_NEXT_RECORDS: Final = f"""
SELECT {_LIGHT} FROM {{schema}}.history WHERE {_AFTER} ORDER BY seq LIMIT $4::pg_catalog.int8
"""
_OF_UNDATED: Final = f"""
CASE WHEN occurred_at < (SELECT {_BEFORE}) THEN coalesce(
    (
        SELECT true FROM {{schema}}.history AS undated
        WHERE undated.memory_id = history.memory_id AND undated.occurred_at IS NULL LIMIT 1
    ),
    false
) END
"""
"""Whether the memory of an old record has records without a time. The LIMIT keeps the planner from
reading all such records at once."""
_NEXT_THAT_MAY_GO: Final = f"""
SELECT {_LIGHT}, {_OF_UNDATED} FROM {{schema}}.history
WHERE seq >= coalesce(
        (
            SELECT seq FROM (
                SELECT seq, occurred_at, event FROM {{schema}}.history
                WHERE {_AFTER} ORDER BY seq LIMIT (SELECT $6::pg_catalog.int8)
            ) AS looked_at
            WHERE occurred_at < (SELECT {_BEFORE})
                OR occurred_at IS NULL AND (event = 'DELETE' OR $5::pg_catalog.bool)
            LIMIT 1
        ),
        (
            SELECT seq FROM {{schema}}.history WHERE {_AFTER}
            ORDER BY seq OFFSET (SELECT $6::pg_catalog.int8) LIMIT 1
        )
    )
    AND seq <= $3::pg_catalog.int8
ORDER BY seq LIMIT $4::pg_catalog.int8
"""
"""It begins at the first record that may be removed; in most histories the many newest may not.
`$5` is whether memories that were not deleted may be removed, `$6` the most records to skip."""
_WHOLE: Final = f"""
SELECT {_LIGHT} FROM {{schema}}.history
WHERE memory_id = ANY($2::pg_catalog.text[]) ORDER BY memory_id, seq
"""
_THERE: Final = f"SELECT seq, id, memory_id FROM {{schema}}.history WHERE {RECORDS}"
_EDGE: Final = """
SELECT seq, id FROM {schema}.history WHERE memory_id = $1::pg_catalog.text
ORDER BY seq DESC OFFSET $2::pg_catalog.int8 LIMIT 1
"""
_EDGES: Final = """
SELECT named.name, edge.seq, edge.id
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name) CROSS JOIN LATERAL (
    SELECT seq, id FROM {schema}.history WHERE memory_id = named.name
    ORDER BY seq DESC OFFSET $2::pg_catalog.int8 LIMIT 1
) AS edge
"""
_NEXT_IS_DATED: Final = """
SELECT occurred_at IS NOT NULL FROM {schema}.history
WHERE memory_id = $1::pg_catalog.text AND seq > $2::pg_catalog.int8 ORDER BY seq LIMIT 1
"""
_NEXT_ARE_DATED: Final = """
SELECT given.seq, following.is_dated
FROM ROWS FROM (
    pg_catalog.unnest($1::pg_catalog.text[]),
    pg_catalog.unnest(pg_catalog.string_to_array($2, ',')::bigint[])
) AS given (name, seq) CROSS JOIN LATERAL (
    SELECT occurred_at IS NOT NULL AS is_dated FROM {schema}.history
    WHERE memory_id = given.name AND history.seq > given.seq ORDER BY history.seq LIMIT 1
) AS following
"""
_REMOVE: Final = f"DELETE FROM {{schema}}.history WHERE {RECORDS} RETURNING seq"


async def prune(
    connection: Any,
    schema: str,
    settings: Sequence[str],
    asked: PruneRequest,
    reached: PruneCursor | None,
    tries: PruneTries,
    attestation: Attestation | None,
    *,
    is_distributed: bool,
) -> PruneStep:
    """Prune the next records in one transaction that begins with `settings`."""
    has_removed_before = tries.has_removed
    async with transaction(connection, *settings, BY_INDEX, *locks(attestation)):
        steps = _PruneTransaction(
            connection,
            schema,
            tables_of(attestation, connection),
            is_distributed=is_distributed,
        )
        step = await prune_step(asked, reached, steps, tries)
        if has_removed_before and not steps.has_removed:
            await connection.execute(WAIT_FOR_REPLICAS_TOO)
        return step


def _candidate(row: Sequence[Any]) -> Candidate:
    position, *others = row
    return Candidate(int(position), *others)


class _PruneTransaction(SchemaSteps):
    """The statements of a pruning step within its transaction."""

    has_removed = False

    async def ends(self) -> tuple[int, int] | None:
        ((first, last),) = await self._fetch(_ENDS)
        return None if first is None else (int(first), int(last))

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> list[Candidate]:
        asked_for = (in_utc(asked.before).isoformat(), after, last, limit)
        if self._is_distributed:
            rows = await self._fetch(_NEXT_RECORDS, *asked_for)
        else:
            also_living = asked.keep_last == 0
            passed_over = asked.limits.passed_over
            rows = await self._fetch(_NEXT_THAT_MAY_GO, *asked_for, also_living, passed_over)
        return list(map(_candidate, rows))

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, Edge]:
        if not self._is_distributed:
            rows = await self._fetch(_EDGES, memory_ids, before)
            return {name: (int(seq), record_id) for name, seq, record_id in rows}
        found = {name: await self._fetch(_EDGE, name, before) for name in memory_ids}
        return {name: (int(rows[0][0]), rows[0][1]) for name, rows in found.items() if rows}

    async def still_there(self, refs: Collection[RecordRef]) -> set[RecordRef]:
        rows = await self._fetch(_THERE, *self._names_of(refs))
        return set(map(ref_of, rows)) & set(refs)

    async def next_are_dated(self, records: Sequence[Candidate]) -> dict[int, bool]:
        if not self._is_distributed:
            names = [one.memory_id for one in records]
            positions = ",".join(str(one.position) for one in records)
            rows = await self._fetch(_NEXT_ARE_DATED, names, positions)
            return {int(seq): is_dated for seq, is_dated in rows}
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
        names = list({ref.memory_id for ref in gone})
        if gone and await self._fetch(HAS_OWNERS) and await self._fetch(REMOVE_OWNERS, names):
            await self._fetch(NEXT_NUMBER)
        if gone and self._ledger is not None:
            await changes.prune(self._ledger, [ref.id for ref in gone], names)
        return gone

    def _names_of(
        self, records: Collection[Candidate | RecordRef]
    ) -> tuple[list[str], list[str] | None]:
        return self._named([one.id for one in records], [one.memory_id for one in records])
