"""The look-ups of a batch's transaction: existing records, latest records, and texts to restore."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Column, func, select

from async_history._core.reading.timeline import MemoryMoment
from async_history._core.records.records import HistoryRecord, MemoryState
from async_history._core.writing.additions import ids_to_find
from async_history._core.writing.submissions import AddRecords, RestoreMemory
from async_history._sql.dialects import in_parts
from async_history._sql.keys import Seal
from async_history._sql.names import keys_of
from async_history._sql.reading.timeline import is_certain, last_changes
from async_history._sql.rows import columns_read, record_from_row
from async_history._sql.transaction import Transaction


class BatchReads:
    """The look-ups of a batch, which return records in clear.

    Args:
        seal, is_repeated: as in `BatchCommitter`.
    """

    def __init__(self, transaction: Transaction, seal: Seal, *, is_repeated: bool) -> None:
        self._transaction = transaction
        self._tables = transaction.tables
        self._seal = seal
        self._is_repeated = is_repeated

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records that have an id of these submissions."""
        ids = ids_to_find(submissions, is_repeated=self._is_repeated)
        read = partial(self._read, self._tables.history.c.id, keys_of(ids))
        return await self._seal.opened(read, self._transaction)

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""
        newest = await self._newest(keys_of(memory_ids))
        read = partial(self._read, self._tables.history.c.seq, newest)
        return await self._seal.opened(read, self._transaction)

    async def find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        """Find the texts to restore, and return no state."""
        then = await self._last_changes([(one.decided_by, one.to) for one in restored])
        for one in restored:
            one.find_in(then.get((one.decided_by, one.to)))
        return {}

    async def _last_changes(
        self, asked: Sequence[MemoryMoment]
    ) -> dict[MemoryMoment, HistoryRecord]:
        """Return memories' last records as of moments, without those that need a whole memory."""
        certain: list[MemoryMoment] = []

        async def read() -> list[HistoryRecord]:
            dialect = self._transaction.connection.dialect
            found = await last_changes(self._transaction.fetch, dialect, self._tables, asked)
            there = {one: then for one, then in found.items() if then and is_certain(then, one[1])}
            certain[:] = there
            return list(there.values())

        opened = await self._seal.opened(read, self._transaction)
        return dict(zip(certain, opened, strict=True))

    async def _read(self, column: Column[Any], values: Sequence[Any]) -> list[HistoryRecord]:
        """Return the records that have one of these values in a column; a memory's in order."""
        found: list[HistoryRecord] = []
        for part in in_parts(values):
            rows = await self._transaction.fetch(
                select(*columns_read(self._tables))
                .where(column.in_(part))
                .order_by(self._tables.history.c.seq)
            )
            found += map(record_from_row, rows)
        return found

    async def _newest(self, keys: Sequence[str]) -> list[int]:
        """Return the numbers of memories' latest records."""
        history = self._tables.history
        newest: list[int] = []
        if self._transaction.is_ours:
            for part in in_parts(keys):
                of_part = (
                    select(func.max(history.c.seq))
                    .where(history.c.memory_id.in_(part))
                    .group_by(history.c.memory_id)
                )
                newest += [seq for (seq,) in await self._transaction.fetch(of_part)]
            return newest
        for key in keys:  # rows of a GROUP BY can't be locked
            last = (
                select(history.c.seq)
                .where(history.c.memory_id == key)
                .order_by(history.c.seq.desc())
                .limit(1)
            )
            newest += [seq for (seq,) in await self._transaction.fetch(last)]
        return newest
