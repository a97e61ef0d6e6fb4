"""Pruning: the statements of one step."""

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import case, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.ledger import changes
from async_history._core.ledger.tables import LedgerTables
from async_history._core.records.records import Event, HistoryRecord
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import Candidate, Edge, prunable_alone
from async_history._core.writing.erased_names import microseconds
from async_history._sql.dialects import in_parts
from async_history._sql.marks import marks_of, remove_marks
from async_history._sql.operations import log_within
from async_history._sql.rows import columns_read, record_from_row
from async_history._sql.tables import Tables


class Pruning:
    """A pruning step in its transaction, with `state` locked.

    Memories are identified by the keys in their column.

    Args:
        ledger: the ledger's tables in this transaction, if the store has one.
    """

    def __init__(
        self, connection: AsyncConnection, tables: Tables, ledger: LedgerTables | None
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._ledger = ledger
        self.has_removed_owners = False
        self.log = log_within(connection, tables, ledger)

    async def _fetch(self, statement: Any) -> Sequence[Any]:
        return (await self._connection.execute(statement)).all()

    async def ends(self) -> tuple[int, int] | None:
        seq = self._tables.history.c.seq
        ((first, last),) = await self._fetch(select(func.min(seq), func.max(seq)))
        return None if first is None else (first, last)

    def _light(self, asked: PruneRequest) -> list[Any]:
        """Return the columns of a `Candidate`."""
        history = self._tables.history
        before = microseconds(asked.before)
        is_old = case(
            (history.c.occurred_at.is_(None), None), (history.c.occurred_at < before, 1), else_=0
        )
        is_delete = case((history.c.event == Event.DELETE.value, 1), else_=0)
        return [history.c.seq, history.c.id, history.c.memory_id, is_delete, is_old]

    async def window(
        self, asked: PruneRequest, after: int, last: int, limit: int
    ) -> list[Candidate]:
        history = self._tables.history
        rows = await self._fetch(
            select(*self._light(asked))
            .where(history.c.seq > after, history.c.seq <= last)
            .order_by(history.c.seq)
            .limit(limit)
        )
        return list(map(_candidate, rows))

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, Edge]:
        history = self._tables.history
        if before == 0:
            newest = (
                select(func.max(history.c.seq).label("seq"))
                .where(history.c.memory_id.in_(memory_ids))
                .group_by(history.c.memory_id)
                .subquery()
            )
            rows = await self._fetch(
                select(history.c.memory_id, history.c.seq, history.c.id).select_from(
                    newest.join(history, history.c.seq == newest.c.seq)
                )
            )
            return {key: (seq, record_id) for key, seq, record_id in rows}
        found: dict[str, Edge] = {}
        for key in memory_ids:
            rows = await self._fetch(
                select(history.c.seq, history.c.id)
                .where(history.c.memory_id == key)
                .order_by(history.c.seq.desc())
                .offset(before)
                .limit(1)
            )
            if rows:
                found[key] = rows[0][0], rows[0][1]
        return found

    async def still_there(self, refs: Collection[RecordRef]) -> set[RecordRef]:
        history = self._tables.history
        found: set[RecordRef] = set()
        for part in in_parts(ref.position for ref in refs):
            rows = await self._fetch(
                select(history.c.seq, history.c.id, history.c.memory_id).where(
                    history.c.seq.in_(part)
                )
            )
            found |= {RecordRef(*row) for row in rows}
        return found & set(refs)

    async def next_are_dated(self, records: Sequence[Candidate]) -> dict[int, bool]:
        history = self._tables.history
        found: dict[int, bool] = {}
        for one in records:
            rows = await self._fetch(
                select(history.c.occurred_at)
                .where(history.c.memory_id == one.memory_id, history.c.seq > one.position)
                .order_by(history.c.seq)
                .limit(1)
            )
            if rows:
                found[one.position] = rows[0][0] is not None
        return found

    async def whole(self, asked: PruneRequest, memory_ids: Sequence[str]) -> list[Candidate]:
        history = self._tables.history
        seen: list[Candidate] = []
        for part in in_parts(dict.fromkeys(memory_ids)):
            rows = await self._fetch(
                select(*self._light(asked))
                .where(history.c.memory_id.in_(part))
                .order_by(history.c.memory_id, history.c.seq)
            )
            for _, group in groupby(rows, key=itemgetter(2)):
                of_memory = [_candidate(row) for row in group]
                are_old = [one.is_old for one in of_memory]
                seen += [
                    one._replace(prunable_alone=prunable_alone(asked, are_old, index))
                    for index, one in enumerate(of_memory)
                ]
        return seen

    async def remove(self, records: Sequence[Candidate]) -> set[RecordRef]:
        history, owners = self._tables.history, self._tables.owners
        there = await self.still_there([one.ref for one in records])
        positions = [ref.position for ref in there]
        removed: list[HistoryRecord] = []
        for part in in_parts(positions):
            rows = await self._fetch(
                select(*columns_read(self._tables)).where(history.c.seq.in_(part))
            )
            records_there = [(row[0], record_from_row(row)) for row in rows]
            removed += [record for _, record in records_there]
            await remove_marks(
                self._connection,
                self._tables,
                [(mark, seq) for seq, record in records_there for mark in marks_of(record)],
            )
            await self._connection.execute(delete(history).where(history.c.seq.in_(part)))
        for keys in in_parts(dict.fromkeys(ref.memory_id for ref in there)):
            left = await self._fetch(
                select(history.c.memory_id).where(history.c.memory_id.in_(keys)).distinct()
            )
            gone = [key for key in keys if (key,) not in {tuple(row) for row in left}]
            if gone:
                done = await self._connection.execute(
                    delete(owners).where(owners.c.memory_id.in_(gone))
                )
                self.has_removed_owners = self.has_removed_owners or done.rowcount > 0
        if removed and self._ledger is not None:
            memories = {record.memory_id for record in removed}
            await changes.prune(self._ledger, [record.id for record in removed], memories)
        return there


def _candidate(row: Sequence[Any]) -> Candidate:
    is_old = None if row[4] is None else bool(row[4])
    return Candidate(row[0], row[1], row[2], bool(row[3]), is_old, of_undated=False)
