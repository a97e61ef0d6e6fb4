"""Pruning in a SQLite file: the statements of one step and its transaction."""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Final

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.ledger import changes
from async_history._core.records.records import Event
from async_history._core.records.values import parse_time
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune import PruneCursor, PruneStep, fitted, prune_step
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import (
    Candidate,
    Edge,
    PruneTries,
    prunable_alone,
)
from async_history._core.writing.undated import is_no_day
from async_history._sqlite.connecting.connection import fetch_rows
from async_history._sqlite.index import (
    DATES_ANOTHER,
    KEYS_BY_MEMORY,
    POSITIONS,
    indexed_transaction,
    keys_by_memory,
    memories_without_entries,
    memory_key,
    nth_position,
    remove_lost_dates,
    remove_rows,
)
from async_history._sqlite.ledger import attest
from async_history._sqlite.operations import file_log

_LIGHT: Final = "rowid, id, memory_id, event, created_at, updated_at"
_ENDS: Final = "SELECT min(rowid), max(rowid) FROM history"
_WINDOW: Final = f"""
SELECT {_LIGHT}, {DATES_ANOTHER} FROM history
WHERE rowid > :after AND rowid <= :last ORDER BY rowid LIMIT :limit
"""
_EDGES: Final = f"""
SELECT given.memory_id, edge.rowid, edge.id
FROM {KEYS_BY_MEMORY} AS given
JOIN history AS edge ON edge.rowid = {nth_position("DESC", ":before")}
"""
_NEXT: Final = f"""
SELECT given.position, following.event, following.created_at, following.updated_at
FROM (
    SELECT json_extract(value, '$[0]') AS memory, json_extract(value, '$[1]') AS memory_id,
           json_extract(value, '$[2]') AS position
    FROM json_each(:given)
) AS given JOIN history AS following
    ON following.rowid = {nth_position("ASC", "0", "position > given.position")}
"""
_THERE: Final = """
SELECT rowid, id, memory_id FROM history WHERE rowid IN (SELECT value FROM json_each(:positions))
"""
_WHOLE: Final = f"""
SELECT {_LIGHT} FROM history WHERE memory_id = :memory_id AND rowid IN ({POSITIONS}) ORDER BY rowid
"""


def prune(
    asked: PruneRequest,
    reached: PruneCursor | None,
    tries: PruneTries[RecordRef],
    connection: sqlite3.Connection,
) -> PruneStep:
    """Prune the next records in one transaction, on the connection's thread."""
    with indexed_transaction(connection):
        if reached is None:
            remove_lost_dates(connection)
        began_at = monotonic()
        step = run_to_completion(prune_step(asked, reached, _PruneTransaction(connection), tries))
    return fitted(step, asked, monotonic() - began_at)


class _PruneTransaction:
    """The statements of a pruning step within its transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.log = file_log(connection)

    def _fetch(self, sql: str, parameters: Mapping[str, Any]) -> list[Any]:
        return fetch_rows(self._connection, sql, parameters)

    async def ends(self) -> tuple[int, int] | None:
        ((first, last),) = self._fetch(_ENDS, {})
        return None if first is None else (first, last)

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> list[Candidate]:
        rows = self._fetch(_WINDOW, {"after": after, "last": last, "limit": limit})
        unsure = memories_without_entries(self._connection, last)
        return [
            Candidate(
                position,
                record_id,
                memory_id,
                event == Event.DELETE,
                asked.is_old(_own_time(event, created_at, updated_at)),
                bool(dates_another) or unsure is None or memory_id in unsure,
            )
            for position, record_id, memory_id, event, created_at, updated_at, dates_another in rows
        ]

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, Edge]:
        rows = self._fetch(_EDGES, {"memories": keys_by_memory(memory_ids), "before": before})
        return {name: (position, record_id) for name, position, record_id in rows}

    async def still_there(self, refs: Collection[RecordRef]) -> set[RecordRef]:
        positions = json.dumps([ref.position for ref in refs])
        rows = self._fetch(_THERE, {"positions": positions})
        # SQLite reuses the newest row's number once that row is removed, so compare the id too.
        return {RecordRef(*row) for row in rows} & set(refs)

    async def next_are_dated(self, records: Sequence[Candidate]) -> dict[int, bool]:
        given = [(memory_key(one.memory_id), one.memory_id, one.position) for one in records]
        rows = self._fetch(_NEXT, {"given": json.dumps(given)})
        return {position: _own_time(*times) is not None for position, *times in rows}

    async def whole(self, asked: PruneRequest, memory_ids: Sequence[str]) -> list[Candidate]:
        seen: list[Candidate] = []
        for memory_id in memory_ids:
            rows = self._fetch(_WHOLE, {"memory_id": memory_id, "memory": memory_key(memory_id)})
            own = [asked.is_old(_own_time(*times)) for _, _, _, *times in rows]
            is_old = None
            for index, (position, record_id, stored_id, event, *times) in enumerate(rows):
                if own[index] is not None or is_no_day(_stored_time(event, *times)):
                    is_old = own[index]
                seen.append(
                    Candidate(
                        position,
                        record_id,
                        stored_id,
                        event == Event.DELETE,
                        is_old,
                        prunable_alone=prunable_alone(asked, own, index),
                    )
                )
        return seen

    async def remove(self, records: Sequence[Candidate]) -> set[RecordRef]:
        keys = {one.position: memory_key(one.memory_id) for one in records}
        positions = remove_rows(self._connection, keys)
        gone = {one.ref for one in records if one.position in positions}
        ids, memory_ids = [one.id for one in gone], {one.memory_id for one in gone}
        attest(self._connection, lambda ledger: changes.prune(ledger, ids, memory_ids))
        return gone


def _own_time(event: Any, created_at: Any, updated_at: Any) -> datetime | None:
    stored = _stored_time(event, created_at, updated_at)
    return None if stored is None else parse_time(stored)


def _stored_time(event: Any, created_at: Any, updated_at: Any) -> str | None:
    stored = created_at if event == Event.ADD else updated_at
    # '2025' comes back as a number from a DATETIME column.
    return None if stored is None else str(stored)
