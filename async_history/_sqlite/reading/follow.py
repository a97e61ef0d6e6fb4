"""Following a SQLite file: pages of records in the order of commits, after a position.

One transaction writes at a time, and each row gets a rowid above all others, so rowids are in the
order of commits. But SQLite reuses the newest rowid once its row is gone, a reset starts at 1
again, and VACUUM may renumber rows. So a position is the rowid and the id of the last record that
was read, and each SELECT also checks that this record is still at that rowid.

If this manager has just committed the next records, only their ids are read: these prove which
records follow, in which order, and that there are no others between. More may follow: those of
others, and those that were committed while there was no follower.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.reading.cursors import Cursor, CursorCodec, id_text
from async_history._core.reading.filters import Filter
from async_history._core.reading.follow_reads import FollowRead
from async_history._core.records.records import HistoryRecord
from async_history._sqlite.index import named
from async_history._sqlite.reading.filters import in_order
from async_history._sqlite.reading.read import HistoryReader
from async_history._sqlite.reading.recent import RecentCommits
from async_history._sqlite.rows import Fetch, record_from_row
from async_history.errors import CursorGone

_CURSORS: Final = CursorCodec("sqlite", "follow on a SQLite history")
_BEFORE_ALL: Final = -(1 << 63)

PAGE: Final = """
SELECT {columns}, history.rowid, 'cursor' FROM history WHERE rowid = :position
UNION ALL
SELECT {columns}, history.rowid, 'newest' FROM history
WHERE rowid = (SELECT max(rowid) FROM history)
UNION ALL {page}
"""
"""The record at the position, the newest record, and the page between them, in one snapshot."""
NEXT_IDS: Final = """
SELECT json_group_array(CASE typeof(id) WHEN 'text' THEN id END),
    (SELECT max(rowid) FROM history) <= :position + :count
FROM (
    SELECT id FROM history WHERE rowid > :position AND rowid <= :position + :count ORDER BY rowid
)
WHERE EXISTS (SELECT 1 FROM history WHERE rowid = :position AND id = :id)
    AND NOT EXISTS (
        SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'
            AND name NOT GLOB 'async_history_*'
    )
"""
"""The ids at the `count` rowids after a position. None if the position's record is gone, or if the
owner has a trigger, which may have changed what was written. And whether they are the last."""
_NEWEST: Final = "SELECT rowid, id FROM history ORDER BY rowid DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class FollowPosition:
    """A follower's position: after the record `id`, which has the rowid `position`."""

    position: int
    id: str

    def __str__(self) -> str:
        return _CURSORS.text(self.position, self.id)


def _after(position: int, record_id: object) -> FollowPosition:
    """Return the position after the record of a row."""
    return FollowPosition(position, id_text(record_id))


def position_from_cursor(cursor: str) -> FollowPosition:
    """Return the position that a cursor's text names.

    Raises:
        InvalidInput: it is not a cursor of this backend.
    """
    return _CURSORS.parse(cursor, _read_position)


def _read_position(parts: Sequence[str | int | None]) -> FollowPosition | None:
    match parts:
        case [int(position), str(record_id)]:
            return FollowPosition(position, record_id)
    return None


class FollowReader:
    """Reads what was committed after a position, through a function that runs one SELECT.

    Args:
        reader: the same file's reader; it has a record's columns and the lookup of a memory.
        recent: the same manager's recent commits.
    """

    def __init__(self, fetch: Fetch, reader: HistoryReader, recent: RecentCommits) -> None:
        self._fetch = fetch
        self._reader = reader
        self._recent = recent

    def position(self, cursor: str | None) -> FollowPosition | None:
        """Return the position of a cursor; None for the beginning."""
        return None if cursor is None else position_from_cursor(cursor)

    async def page(
        self, after: FollowPosition | None, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        """Return up to `limit` records after a position, of one memory or of all.

        Raises:
            CursorGone: the position's record is not there any more.
        """
        if after is not None:
            kept = self._recent.records_after(after.id)
            if kept:
                where = {"position": after.position, "id": after.id, "count": len(kept)}
                ((ids, are_last),) = await self._fetch(NEXT_IDS, where)
                if json.loads(ids) == [record.id for record in kept]:
                    return _page_of(after, kept, memory_id, is_last=bool(are_last))
        return await self._read(after, memory_id, limit)

    def page_sql(self, memory_id: str | None) -> str:
        """Return the SELECT of a page of one memory or of all: see `PAGE`."""
        columns, lookup = self._reader.columns, self._reader.lookup
        memory_ids = None if memory_id is None else (memory_id,)
        wanted = Filter(memory_ids=memory_ids)
        (page,) = in_order(
            f"{columns}, history.rowid AS position, 'page'", wanted, lookup, Cursor(0, "")
        )
        return PAGE.format(columns=columns, page=page)

    async def _read(
        self, after: FollowPosition | None, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        position = _BEFORE_ALL if after is None else after.position
        given: dict[str, Any] = {"position": position, "after": position, "limit": limit}
        if memory_id is not None:
            given |= named((memory_id,))
        stands, newest = None, None
        records: list[HistoryRecord] = []
        rowids: list[int] = []
        for row in await self._fetch(self.page_sql(memory_id), given):
            match row[-1]:
                case "page":
                    records.append(record_from_row(row))
                    rowids.append(row[-2])
                case "cursor":
                    stands = _after(row[-2], row[0])
                case "newest":
                    newest = _after(row[-2], row[0])
        if after is not None and stands != after:
            raise CursorGone(
                f"the record {after.id} that the cursor points to is gone or has moved (a reset, "
                "a removal, a rebuilt file); follow again without the cursor, or from the end"
            )

        def position_after(index: int) -> FollowPosition:
            return _after(rowids[index], records[index].id)

        if len(records) == limit:
            return FollowRead(records, position_after, position_after(-1), is_last=False)
        return FollowRead(records, position_after, newest, is_last=True)

    async def end(self) -> FollowPosition | None:
        """Return the position after the newest record; None if there are none."""
        rows = await self._fetch(_NEWEST, {})
        return _after(*rows[0]) if rows else None

    async def mark(self) -> object:
        """Return a value that changes with each commit: the same position as `end`."""
        return await self.end()


def _page_of(
    after: FollowPosition, next_: Sequence[HistoryRecord], memory_id: str | None, *, is_last: bool
) -> FollowRead[FollowPosition]:
    """Return the page of the records at the rowids right after a position, of one memory or of
    all."""
    found = [
        (position, record)
        for position, record in enumerate(next_, after.position + 1)
        if memory_id is None or record.memory_id == memory_id
    ]

    def position_after(index: int) -> FollowPosition:
        position, record = found[index]
        return _after(position, record.id)

    end = _after(after.position + len(next_), next_[-1].id)
    return FollowRead([record for _, record in found], position_after, end, is_last=is_last)
