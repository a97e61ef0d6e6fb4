"""The state of all memories of a SQLite file at an instant.

SQLite sorts the history by memory, in temporary files, to find each memory's record.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from async_history._core.records import HistoryRecord
from async_history._core.timeline import PAGE_PLACES
from async_history._sqlite import times
from async_history._sqlite.rows import Fetch, record_from_row

_IS_GONE: Final = "event = 'DELETE' OR is_deleted NOT IN (0, '')"


def find_sql(time_before: str) -> str:
    """Return the SELECT of the newest record, followed by one row per page with its positions.

    `time_before` is that of `Lookup`. The SELECT takes `:when`, an instant as text.
    """
    occurred_at = times.occurred_at("history", time_before)
    return f"""
    SELECT max(rowid), id FROM history
    UNION ALL
    SELECT group_concat(place), NULL FROM (
        SELECT max(rowid) AS place, {_IS_GONE} AS is_gone FROM history
        WHERE memory_id IS NOT NULL AND coalesce({occurred_at}, '') <= :when
        GROUP BY memory_id HAVING is_gone IS NOT 1
    ) GROUP BY place / {PAGE_PLACES}
    """


def fetch_sql(columns: str) -> str:
    """Return the SELECT of a page's records, which returns none if they may have moved.

    They have not moved if the newest record has not: SQLite renumbers rows without gaps, and starts
    at 1 in a recreated table.
    """
    return f"""
    SELECT {columns} FROM history
    WHERE rowid IN (SELECT value FROM json_each(:places))
      AND EXISTS (SELECT 1 FROM history WHERE rowid = :newest AND id IS :newest_id)
    """


class FileStates:
    """Reads the states of all memories at one instant; make one for each instant.

    Args:
        time_before, columns: those of the file's `HistoryReader`.
    """

    def __init__(self, fetch: Fetch, time_before: str, columns: str) -> None:
        self._fetch = fetch
        self._time_before = time_before
        self._columns = columns
        self._newest: Mapping[str, Any] = {}

    async def find(self, when: datetime) -> Sequence[str]:
        sql = find_sql(self._time_before)
        found = await self._fetch(sql, {"when": times.instant_text(when)})
        if not found:  # an old file lacks some tables
            return []
        newest, newest_id = found[0]
        self._newest = {"newest": newest, "newest_id": newest_id}
        return [places for places, _ in found[1:]]

    async def fetch(self, places: str) -> Sequence[HistoryRecord]:
        given = {"places": f"[{places}]", **self._newest}
        rows = await self._fetch(fetch_sql(self._columns), given)
        return [record_from_row(row) for row in rows]
