"""All memories of a SQLite file as they were at an instant.

SQLite sorts the history by memory, in temporary files, to find where each memory's record is.
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
    """Return the SELECT of the history's newest record, then of a page's places a row.

    `time_before` is that of `Lookup`. Takes `:when`, an instant as text.
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
    """Return the SELECT of a page's records, none where they may have moved.

    They are where they were as long as the newest record is: places go up without gaps where
    SQLite numbers them anew, and start over in a table that was made anew.
    """
    return f"""
    SELECT {columns} FROM history
    WHERE rowid IN (SELECT value FROM json_each(:places))
      AND EXISTS (SELECT 1 FROM history WHERE rowid = :newest AND id IS :newest_id)
    """


class FileStates:
    """Reads the states at one instant; not to be used for another.

    Args:
        time_before, columns: as the file's `HistoryReader` has them.
    """

    def __init__(self, fetch: Fetch, time_before: str, columns: str) -> None:
        self._fetch = fetch
        self._time_before = time_before
        self._columns = columns
        self._newest: Mapping[str, Any] = {}

    async def find(self, when: datetime) -> Sequence[str]:
        sql = find_sql(self._time_before)
        found = await self._fetch(sql, {"when": times.instant_text(when)})
        if not found:  # an old file has not every table
            return []
        newest, newest_id = found[0]
        self._newest = {"newest": newest, "newest_id": newest_id}
        return [places for places, _ in found[1:]]

    async def fetch(self, places: str) -> Sequence[HistoryRecord]:
        given = {"places": f"[{places}]", **self._newest}
        rows = await self._fetch(fetch_sql(self._columns), given)
        return [record_from_row(row) for row in rows]
