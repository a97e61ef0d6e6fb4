"""Reads of a PostgreSQL history: histories, query pages, counts, copies, messages and scopes.

The reader gets its rows through a function that runs one SELECT; it has no connection.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter, Order
from async_history._core.reading.query import PageRead, RowsRead, cut
from async_history._core.reading.timeline import Moment, last_change_at, states_at
from async_history._core.records.messages import MESSAGES_KEPT, Message, message_from_row
from async_history._core.records.records import HistoryRecord
from async_history._postgres.reading.filters import Search, Statement
from async_history._postgres.reading.timeline import ServerStates, last_changes
from async_history._postgres.rows import (
    RECORD_COLUMNS,
    ROW_COLUMNS,
    Fetch,
    record_from_row,
    row_from,
)
from async_history._postgres.schema import in_schema
from async_history.errors import CursorGone

_HISTORY: Final = (
    f"SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE memory_id = $1 ORDER BY seq"
)
_HISTORIES: Final = f"""
SELECT {RECORD_COLUMNS} FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.history WHERE memory_id = named.name ORDER BY seq OFFSET 0
) AS found
ORDER BY seq
"""
"""OFFSET 0 leaves the planner only one plan: each memory by its index."""
_LAST_MESSAGES: Final = """
SELECT id, role, content, name, created_at FROM (
    SELECT * FROM {schema}.messages WHERE session_scope = $1 ORDER BY seq DESC LIMIT $2
) AS last ORDER BY seq
"""
_SCOPES: Final = """
SELECT DISTINCT session_scope FROM {schema}.messages WHERE session_scope > $1
ORDER BY session_scope LIMIT $2
"""
_FIRST_ROWS: Final = f"""
SELECT seq, {ROW_COLUMNS} FROM {{schema}}.history ORDER BY seq LIMIT (SELECT $1::pg_catalog.int8)
"""
"""The LIMIT is a SELECT: see `filters`."""
_NEXT_ROWS: Final = f"""
(
    SELECT seq, {ROW_COLUMNS} FROM {{schema}}.history
    WHERE id = $1::pg_catalog.text AND seq = $2::pg_catalog.int8
) UNION ALL (
    SELECT seq, {ROW_COLUMNS} FROM {{schema}}.history WHERE seq > (SELECT $2::pg_catalog.int8)
    ORDER BY seq LIMIT (SELECT $3::pg_catalog.int8)
)
"""
_PLACES: Final[Mapping[Order, str]] = {
    "oldest": """
SELECT seq, id FROM {schema}.history WHERE seq >= (SELECT $1::pg_catalog.int8)
ORDER BY seq LIMIT 1
""",
    "newest": """
SELECT seq, id FROM {schema}.history WHERE seq <= (SELECT $1::pg_catalog.int8)
ORDER BY seq DESC LIMIT 1
""",
}
_INSTANTS: Final = """
SELECT id, occurred_at FROM {schema}.history
WHERE id = ANY($1::pg_catalog.text[]) AND occurred_at IS NOT NULL
"""
_SIZE: Final = """
SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(relation::pg_catalog.regclass))::bigint
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS relation
"""
_SOME_MORE: Final = 64
"""Rows to read beyond a page if some may not match: times are slightly out of order."""
_MOST_READ: Final = 1 << 14
"""The most rows of an index range that one statement reads."""
_FEW: Final = 8
"""If fewer than one in this many rows is in the filter's time range, the page continues by
time."""


class HistoryReader:
    """A reader of records, messages and scopes, through a function that runs one SELECT.

    Args:
        schema: the quoted schema.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        at_once: most SELECTs at the same time.
    """

    def __init__(self, fetch: Fetch, schema: str, *, is_distributed: bool, at_once: int) -> None:
        self._fetch = fetch
        self._schema = schema
        self._is_distributed = is_distributed
        self._most_alone = max(at_once // 2, 1)
        self._alone = 0
        shared_at_once = max(at_once - self._most_alone, 1)
        self._shared = CoalescedReads(self._histories, shared_at_once)
        self._changes = CoalescedReads(partial(last_changes, fetch, schema), shared_at_once)

    def _sql(self, statement: str) -> str:
        return in_schema(statement, self._schema)

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first.

        Up to half of the connections each serve one call. While these are busy, calls share
        SELECTs.
        """
        if self._alone >= self._most_alone and not self._is_distributed:
            return list(await self._shared.of(memory_id))
        self._alone += 1
        try:
            rows = await self._fetch(self._sql(_HISTORY), memory_id)
        finally:
            self._alone -= 1
        return list(map(record_from_row, rows))

    async def _histories(self, memory_ids: Sequence[str]) -> Mapping[str, list[HistoryRecord]]:
        """Return the records of memories, by memory. A Citus cluster can't do that."""
        found: dict[str, list[HistoryRecord]] = {memory_id: [] for memory_id in memory_ids}
        for row in await self._fetch(self._sql(_HISTORIES), list(found)):
            record = record_from_row(row)
            found[record.memory_id].append(record)
        return found

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's last record as of a moment. Concurrent calls share a SELECT."""
        if not self._is_distributed:
            found = await self._changes.of((memory_id, when))
            if found is not None or isinstance(when, int):
                return found
        return last_change_at(await self.history(memory_id), when)

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return up to `limit` records that match, and read up to `ahead`."""
        search = Search(wanted, is_distributed=self._is_distributed)
        reach = ahead + (_SOME_MORE if search.looks_at_rows else 0)
        if search.reads_on:
            reach = max(reach, _MOST_READ)
        rows = await self._ask(search.page(after, None, ahead, reach))
        if after is not None:
            _require_record(after, [row[1:] for row in rows[:1]])
            del rows[0]
        is_last = len(rows) < ahead
        while rows and rows[-1][0] is not None:
            read, last, of_time, *_ = rows.pop()
            is_last = int(read) < reach
            if is_last:
                break
            beyond = int(last)
            if int(of_time) * _FEW < int(read):
                rows += await self._ask(search.page_of_time(beyond, ahead - len(rows)))
                is_last = len(rows) < ahead
            else:
                reach = max(reach, min(4 * reach, _MOST_READ))
                rows += await self._ask(search.page(None, beyond, ahead - len(rows), reach))
                is_last = False
        return cut(rows, _record_behind, _position_of, is_last, 0, limit)

    async def _ask(self, statement: Statement) -> list[Sequence[Any]]:
        sql, arguments = statement
        return list(await self._fetch(self._sql(sql), *arguments))

    async def next_cursor(self, position: int, order: Order) -> Cursor | None:
        """Return the first record at a position or beyond it, in an order; None if there is
        none."""
        rows = await self._fetch(self._sql(_PLACES[order]), position)
        return Cursor(int(rows[0][0]), rows[0][1]) if rows else None

    async def count(self, wanted: Filter) -> int:
        """Return the number of records that match."""
        search = Search(wanted, is_distributed=self._is_distributed)
        ((count,),) = await self._ask(search.count())
        return int(count)

    def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, one for each memory."""
        states = ServerStates(self._fetch, self._schema, is_distributed=self._is_distributed)
        return states_at(states, when)

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return up to `limit` rows after a cursor, in the order of recording."""
        if after is None:
            found = list(await self._fetch(self._sql(_FIRST_ROWS), limit))
        else:
            found = list(await self._fetch(self._sql(_NEXT_ROWS), after.id, after.position, limit))
            _require_record(after, found)
            del found[0]
        rows = [row_from(row[1:]) for row in found]
        end = Cursor(int(found[-1][0]), rows[-1][0]) if rows else after
        return RowsRead(rows, end, is_last=len(rows) < limit)

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return `time_before` of records, by id, where they have one."""
        return dict(map(tuple, await self._fetch(self._sql(_INSTANTS), list(ids))))

    async def newest(self) -> int | None:
        """Return the position of the newest record."""
        rows = await self._fetch(self._sql("SELECT pg_catalog.max(seq) FROM {schema}.history"))
        ((newest,),) = rows
        return None if newest is None else int(newest)

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, oldest first."""
        return [message_from_row(row) for row in await self.message_rows(session_scope, limit)]

    async def message_rows(self, session_scope: str, limit: int) -> Sequence[Sequence[Any]]:
        """Return a scope's last messages as rows for `message_from_row`."""
        kept = min(limit, MESSAGES_KEPT)
        return await self._fetch(self._sql(_LAST_MESSAGES), session_scope, kept)

    async def scopes(self, after: str, limit: int) -> list[str]:
        """Return the first session scopes after `after`, sorted."""
        return [row[0] for row in await self._fetch(self._sql(_SCOPES), after, limit)]

    async def size(self) -> int:
        """Return the size of the tables and their indexes in bytes."""
        tables = [f"{self._schema}.{name}" for name in ("history", "messages", "owners")]
        ((size,),) = await self._fetch(_SIZE, tables)
        return int(size)


def _record_behind(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row of `Search.page`."""
    return record_from_row(row[2:])


def _position_of(row: Sequence[Any]) -> int:
    """Return the position of a row of `Search.page`."""
    return int(row[1])


def _require_record(after: Cursor, rows: Sequence[Sequence[Any]]) -> None:
    """Check that the first row is the cursor's record.

    Raises:
        CursorGone: the first row is another record.
    """
    position, record_id = rows[0][:2] if rows else (None, None)
    if position is None or (int(position), record_id) != (after.position, after.id):
        raise CursorGone(
            f"the record {after.id} that the cursor points to is gone (a reset, a removal); "
            "start again without the cursor"
        )
