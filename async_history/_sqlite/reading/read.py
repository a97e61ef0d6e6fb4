"""Reads of a SQLite file: histories, query pages, counts, copies, messages and scopes.

The reader gets its rows through a function that runs one SELECT; it has no connection.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Any, Final

from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.reading.cursors import Cursor, id_text
from async_history._core.reading.filters import Filter, Order
from async_history._core.reading.query import PageRead, RowsRead, cut
from async_history._core.reading.timeline import Moment, last_change_at, states_at
from async_history._core.records.messages import Message, message_from_row
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import parse_time
from async_history._sqlite import times
from async_history._sqlite.index import Lookup, named
from async_history._sqlite.reading.filters import in_order, parameters, select, sources
from async_history._sqlite.reading.timeline import (
    FileStates,
    LastChanges,
    can_be_asked,
    is_certain,
)
from async_history._sqlite.rows import (
    COLUMNS_OF_HISTORY,
    Fetch,
    packed_sql,
    record_from_row,
    rows_in_current_types,
    unpack_rows,
)
from async_history.errors import CursorGone

_LAST_MESSAGES: Final = """
SELECT id, role, content, name, created_at FROM (
    SELECT rowid AS position, id, role, content, name, created_at FROM messages
    WHERE session_scope = :session_scope ORDER BY rowid DESC LIMIT :limit
) ORDER BY position
"""


def _columns(lookup: Lookup, time_before: str) -> str:
    """Return a record's columns, followed by the other values for `record_from_row`.

    These are `time_before`, if the record has no time, and its owner, context and cause.
    """
    missing = times.missing_time("history", time_before)
    return f"{COLUMNS_OF_HISTORY}, {lookup.details.besides('history', missing)} AS besides"


_CURSOR_IS_VALID: Final = """EXISTS (
    SELECT 1 FROM history AS found WHERE found.rowid = :after
        AND CASE typeof(found.id) WHEN 'text' THEN found.id ELSE quote(found.id) END = :after_id
)"""
"""SQL condition: the cursor's record still exists. SQLite evaluates it once per statement. (As an
additional row it would have to be merged with the page's rows, which took as long as reading
them.)"""
_FIRST_ROWS: Final = "SELECT {columns}, true, rowid FROM history ORDER BY rowid LIMIT :limit"
_NEXT_ROWS: Final = f"""
SELECT {{columns}}, {_CURSOR_IS_VALID}, rowid FROM history WHERE rowid > :after
ORDER BY rowid LIMIT :limit
"""
_PLACES: Final[Mapping[Order, str]] = {
    "oldest": "SELECT rowid, id FROM history WHERE rowid >= :position ORDER BY rowid LIMIT 1",
    "newest": "SELECT rowid, id FROM history WHERE rowid <= :position ORDER BY rowid DESC LIMIT 1",
}
_SCOPES: Final = """
SELECT DISTINCT session_scope FROM messages WHERE session_scope > :after
ORDER BY session_scope LIMIT :limit
"""


class HistoryReader:
    """A reader of records, messages and scopes, through a function that runs one SELECT.

    Attributes:
        lookup: the SQL that finds rows.
        columns: the columns of a record, for a single row.
    """

    def __init__(self, fetch: Fetch, lookup: Lookup, at_once: int = 1) -> None:
        self._fetch = fetch
        self.lookup = lookup
        self.columns = _columns(lookup, lookup.time_before)
        # '' marks a record without a time; the record read before it has its time.
        self._of_whole_memories = _columns(lookup, "''")
        self._as_stored = f"{COLUMNS_OF_HISTORY}, {lookup.details.besides('history', 'NULL')}"
        self._histories = CoalescedReads(self.histories, at_once)
        self._changes = CoalescedReads(partial(LastChanges(self.columns).read, fetch), at_once)

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first. Concurrent calls share a SELECT."""
        return list(await self._histories.of(memory_id))

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's last record as of a moment. Concurrent calls share a SELECT."""
        if self.lookup.details.is_indexed and can_be_asked(when):
            found = await self._changes.of((memory_id, when))
            if found is None or is_certain(found, when):
                return found
        return last_change_at(await self.history(memory_id), when)

    async def histories(self, memory_ids: Sequence[str]) -> dict[str, list[HistoryRecord]]:
        """Return the records of memories, oldest first."""
        asked = tuple(dict.fromkeys(memory_ids))
        condition = self.lookup.one if len(asked) == 1 else self.lookup.several
        select = f"SELECT {self._of_whole_memories} FROM history WHERE {condition} ORDER BY rowid"
        rows: Sequence[Sequence[Any]] | None = None
        if len(asked) > 1:
            rows = unpack_rows(await self._fetch(packed_sql(select), named(asked)))
        if rows is None:
            rows = await self._fetch(select, named(asked))
        found: dict[str, list[HistoryRecord]] = {memory_id: [] for memory_id in asked}
        for row in rows:
            earlier = found.setdefault(row[1], [])
            earlier.append(record_from_row(row, earlier[-1] if earlier else None))
        return found

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return up to `limit` records that match, and read up to `ahead`."""
        given = {**parameters(wanted), "limit": ahead, **_cursor_parameters(after)}
        rows = await self._fetch(self._page_sql(wanted, after), given)
        await self._require_cursor_record(after, rows)
        return cut(rows, record_from_row, itemgetter(-1), len(rows) < ahead, 0, limit)

    def _page_sql(self, wanted: Filter, after: Cursor | None) -> str:
        is_valid = "true" if after is None else _CURSOR_IS_VALID
        columns = f"{self.columns}, {is_valid}, history.rowid AS position"
        parts = in_order(columns, wanted, self.lookup, after)
        if len(parts) == 1:
            return parts[0]
        direction = "ASC" if wanted.order == "oldest" else "DESC"
        return f"{' UNION ALL '.join(parts)} ORDER BY position {direction} LIMIT :limit"

    def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, one for each memory."""
        return states_at(FileStates(self._fetch, self.lookup.time_before, self.columns), when)

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return up to `limit` rows after a cursor, in the order of recording."""
        sql = _FIRST_ROWS if after is None else _NEXT_ROWS
        given = {"limit": limit, **_cursor_parameters(after)}
        found = await self._fetch(sql.format(columns=self._as_stored), given)
        await self._require_cursor_record(after, found)
        rows = rows_in_current_types(found)
        end = Cursor(found[-1][-1], id_text(rows[-1][0])) if rows else after
        return RowsRead(rows, end, is_last=len(rows) < limit)

    async def _require_cursor_record(
        self, after: Cursor | None, rows: Sequence[Sequence[Any]]
    ) -> None:
        """Check that a cursor's record still exists.

        Rows say so in the column before the rowid. Without rows, this runs a SELECT.

        Raises:
            CursorGone: the record is gone or has moved.
        """
        if after is None:
            return
        if not rows:
            rows = await self._fetch(f"SELECT {_CURSOR_IS_VALID}, NULL", _cursor_parameters(after))
        if not rows or not rows[0][-2]:
            raise CursorGone(
                f"the record {after.id} that the cursor points to is gone or has moved (a "
                "reset, a removal, a rebuilt file); start again without the cursor"
            )

    async def times_before(self, ids: Sequence[str]) -> dict[str, datetime]:
        """Return, by id, the instants of records without a time."""
        sql = f"""
            SELECT id, {self.lookup.time_before} FROM history
            WHERE id IN (SELECT value FROM json_each(:ids))
        """
        rows = await self._fetch(sql, {"ids": json.dumps(ids, default=id_text)})
        instants = {record_id: parse_time(text or "") for record_id, text in rows}
        return {
            record_id: instant for record_id, instant in instants.items() if instant is not None
        }

    async def newest(self) -> int | None:
        """Return the position of the newest record."""
        rows = await self._fetch("SELECT max(rowid) FROM history", {})
        return rows[0][0] if rows else None

    async def next_cursor(self, position: int, order: Order) -> Cursor | None:
        """Return the first record at a position or beyond it, in an order; None if there is
        none."""
        rows = await self._fetch(_PLACES[order], {"position": position})
        return Cursor(rows[0][0], id_text(rows[0][1])) if rows else None

    async def count(self, wanted: Filter) -> int:
        """Return the number of records that match."""
        counts = [
            f"({select('count(*)', source, wanted, self.lookup)})"
            for source in sources(wanted, self.lookup)
        ]
        ((count,),) = await self._fetch(f"SELECT {' + '.join(counts)}", parameters(wanted))
        return int(count)

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, oldest first."""
        return [message_from_row(row) for row in await self.message_rows(session_scope, limit)]

    async def message_rows(self, session_scope: str, limit: int) -> Sequence[Sequence[Any]]:
        """Return a scope's last messages as stored, oldest first."""
        return await self._fetch(_LAST_MESSAGES, {"session_scope": session_scope, "limit": limit})

    async def scopes(self, after: str, limit: int) -> list[str]:
        """Return the first session scopes after `after`, sorted."""
        return [row[0] for row in await self._fetch(_SCOPES, {"after": after, "limit": limit})]


def _cursor_parameters(after: Cursor | None) -> Mapping[str, Any]:
    """Return the parameters of `_CURSOR_IS_VALID` for a cursor."""
    return {} if after is None else {"after": after.position, "after_id": after.id}
