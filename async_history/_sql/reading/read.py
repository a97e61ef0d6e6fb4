"""Reads of a history: records of memories, pages, counts, copies, messages and scopes."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter, Order, has_owner_and_cause
from async_history._core.reading.query import PageRead, RowsRead, cut
from async_history._core.reading.timeline import Moment, last_change_at, states_at
from async_history._core.records.messages import MESSAGES_KEPT, Message, message_from_row
from async_history._core.records.records import HistoryRecord
from async_history._sql.connecting.connections import Connections
from async_history._sql.dialects import in_parts
from async_history._sql.names import key_of, keys_of, whole_names
from async_history._sql.reading.filters import Range, Search, parts_of
from async_history._sql.reading.timeline import SqlStates, is_certain, last_changes
from async_history._sql.rows import columns_read, record_from_row, row_from
from async_history._sql.tables import Tables
from async_history.errors import CursorGone

_READS_AT_ONCE: Final = 5
"""Connections for shared reads: as many as SQLAlchemy's pools keep."""
_MOST_READ: Final = 4_096
"""Rows that are read at once to compare their causes."""


async def require_position(
    connection: AsyncConnection, tables: Tables, position: int, record_id: str
) -> None:
    """Check that a record is still at its position.

    Raises:
        CursorGone: the record is not there.
    """
    history = tables.history
    there = (
        await connection.execute(select(history.c.id).where(history.c.seq == position))
    ).scalar()
    if there != key_of(record_id):
        raise CursorGone(
            f"the record {record_id} is no longer at its position (a reset, or a removal); begin "
            "again without the cursor"
        )


class HistoryReader:
    """A reader of the history. Each read uses its own connection."""

    def __init__(self, connections: Connections, tables: Tables) -> None:
        self._connections = connections
        self._tables = tables
        self._histories = CoalescedReads(self._memories, _READS_AT_ONCE)
        change_of = partial(last_changes, self._fetch, connections.dialect, tables)
        self._changes = CoalescedReads(change_of, _READS_AT_ONCE)

    async def _fetch(self, statement: Any) -> Sequence[Any]:
        async def fetch(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        return await self._connections.read(fetch)

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first. Concurrent calls share a SELECT."""
        return list(await self._histories.of(memory_id))

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's last record as of a moment. Concurrent calls share a SELECT."""
        found = await self._changes.of((memory_id, when))
        if found is None or is_certain(found, when):
            return found
        return last_change_at(await self._histories.of(memory_id), when)

    async def _memories(self, memory_ids: Sequence[str]) -> Mapping[str, list[HistoryRecord]]:
        """Return the records of memories, by memory."""
        found: dict[str, list[HistoryRecord]] = {memory_id: [] for memory_id in memory_ids}
        history = self._tables.history
        for keys in in_parts(keys_of(found)):
            rows = await self._fetch(
                select(*columns_read(self._tables))
                .where(history.c.memory_id.in_(keys))
                .order_by(history.c.seq)
            )
            for record in map(record_from_row, rows):
                found[record.memory_id].append(record)
        return found

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return up to `limit` records that match, and read up to `ahead`."""

        async def read(connection: AsyncConnection) -> Sequence[Any]:
            if after is not None:
                await require_position(connection, self._tables, after.position, after.id)
            position = None if after is None else after.position
            return await self._page(connection, wanted, position, ahead)

        rows = await self._connections.read(read)
        return cut(rows, record_from_row, itemgetter(0), len(rows) < ahead, 0, limit)

    async def _page(
        self, connection: AsyncConnection, wanted: Filter, after: int | None, most: int
    ) -> list[Any]:
        """Return the rows of the next records that match; fewer if there are no more."""
        pages = [
            await self._page_of_part(connection, part, after, most) for part in parts_of(wanted)
        ]
        is_newest = wanted.order == "newest"
        return list(islice(merge(*pages, key=itemgetter(0), reverse=is_newest), most))

    async def _page_of_part(
        self, connection: AsyncConnection, wanted: Filter, after: int | None, most: int
    ) -> list[Any]:
        search = Search(wanted, self._tables, connection.dialect)
        found: list[Any] = []
        for within in await _ranges(connection, search, after):
            position = after
            while len(found) < most:
                limit = most - len(found) if search.is_exact else _MOST_READ
                rows = (await connection.execute(search.page(within, position, limit))).all()
                found += _matching(rows, wanted, search)
                if len(rows) < limit:
                    break
                position = rows[-1][0]
        return found[:most]

    async def next_cursor(self, position: int, order: Order) -> Cursor | None:
        """Return the first record at a position or beyond it, in an order; None if there is
        none."""
        history = self._tables.history
        seq = history.c.seq
        found = select(seq, history.c.id, history.c.long_names).limit(1)
        if order == "oldest":
            found = found.where(seq >= position).order_by(seq)
        else:
            found = found.where(seq <= position).order_by(seq.desc())
        rows = await self._fetch(found)
        if not rows:
            return None
        number, key, stored = rows[0]
        (record_id,) = [key] if stored is None else whole_names([key], ["id"], stored)
        return Cursor(number, record_id)

    async def count(self, wanted: Filter) -> int:
        """Return the number of records that match."""

        async def count(connection: AsyncConnection) -> int:
            total, after = 0, None
            if not wanted.cause:
                for part in parts_of(wanted):
                    search = Search(part, self._tables, connection.dialect)
                    for within in await _ranges(connection, search, None):
                        counted = await connection.execute(search.count(within, func.count()))
                        total += counted.scalar_one()
                return total
            while rows := await self._page(connection, wanted, after, _MOST_READ):
                total += len(rows)
                after = rows[-1][0]
            return total

        return await self._connections.read(count)

    def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, one for each memory."""
        return states_at(SqlStates(self._fetch, self._tables), when)

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return up to `limit` rows after a cursor, in the order of recording."""

        async def read(connection: AsyncConnection) -> Sequence[Any]:
            history = self._tables.history
            found = select(*columns_read(self._tables)).order_by(history.c.seq).limit(limit)
            if after is not None:
                await require_position(connection, self._tables, after.position, after.id)
                found = found.where(history.c.seq > after.position)
            return (await connection.execute(found)).all()

        found = await self._connections.read(read)
        rows = list(map(row_from, found))
        end = Cursor(found[-1][0], rows[-1][0]) if rows else after
        return RowsRead(rows, end, len(rows) < limit)

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return `time_before` of records, by id, where they have one."""
        found: dict[str, datetime] = {}
        history = self._tables.history
        for keys in in_parts(keys_of(ids)):
            rows = await self._fetch(
                select(*columns_read(self._tables)).where(
                    history.c.id.in_(keys), history.c.occurred_at.is_not(None)
                )
            )
            for record in map(record_from_row, rows):
                if record.time_before is not None:
                    found[record.id] = record.time_before
        return found

    async def newest(self) -> int | None:
        """Return the number of the newest record."""
        ((newest,),) = await self._fetch(select(func.max(self._tables.history.c.seq)))
        return None if newest is None else int(newest)

    async def last_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        """Return a scope's last messages, in order."""
        return [message_from_row(row) for row in await self.message_rows(session_scope, limit)]

    async def message_rows(self, session_scope: str, limit: int) -> Sequence[Sequence[Any]]:
        """Return a scope's last messages, in order, as rows for `message_from_row`."""
        messages = self._tables.messages
        rows = await self._fetch(
            select(*(messages.c[name] for name in ("id", "role", "content", "name", "created_at")))
            .where(messages.c.session_scope == key_of(session_scope))
            .order_by(messages.c.seq.desc())
            .limit(min(limit, MESSAGES_KEPT))
        )
        return rows[::-1]

    async def scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes after `after`, in the order of their keys."""
        messages = self._tables.messages
        found = (
            select(messages.c.session_scope, func.max(messages.c.seq))
            .group_by(messages.c.session_scope)
            .order_by(messages.c.session_scope)
            .limit(limit)
        )
        if after:
            found = found.where(messages.c.session_scope > key_of(after))
        newest = [seq for _, seq in await self._fetch(found)]
        whole: dict[int, str] = {}
        for part in in_parts(newest):
            rows = await self._fetch(
                select(messages.c.seq, messages.c.session_scope, messages.c.long_scope).where(
                    messages.c.seq.in_(part)
                )
            )
            whole |= {seq: long or scope for seq, scope, long in rows}
        return [whole[seq] for seq in newest if seq in whole]


async def _ranges(connection: AsyncConnection, search: Search, after: int | None) -> list[Range]:
    """Return the ranges that may have matching records after a position, in order."""
    if not search.by_spans:
        return [Range()]
    spans = (await connection.execute(search.spans())).scalars().all()
    return search.ranges(spans, after)


def _matching(rows: Sequence[Any], wanted: Filter, search: Search) -> Iterable[Any]:
    if search.is_exact:
        return rows
    return [row for row in rows if has_owner_and_cause(record_from_row(row), (), wanted.cause)]
