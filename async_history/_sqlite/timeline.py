"""All memories of a SQLite file as they were at an instant.

One statement finds where each memory's record is: SQLite sorts the history by memory, in temporary
files, and the connection is free again. What is kept of it are places as text, about eight bytes a
memory. The records are then fetched by place, a page at a time, in the order of recording.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from async_history._core.records import HistoryRecord
from async_history._sqlite import times
from async_history._sqlite.read import Fetch, HistoryReader
from async_history._sqlite.rows import record_from_row
from async_history.errors import CursorGone

_PAGE_PLACES: Final = 1024
"""A page is what lies in so many places of the history: at most so many records."""

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
    ) GROUP BY place / {_PAGE_PLACES}
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


async def states_at(
    fetch: Fetch, reader: HistoryReader, when: datetime
) -> AsyncIterator[Sequence[HistoryRecord]]:
    """Yield pages of the records in force at an instant, of the memories that were there.

    Raises:
        CursorGone: a record that was found is gone, or all have moved.
    """
    found = await fetch(find_sql(reader.lookup.time_before), {"when": times.instant_text(when)})
    for places, _ in found[1:]:
        newest, newest_id = found[0]
        where: Mapping[str, Any] = {
            "places": f"[{places}]",
            "newest": newest,
            "newest_id": newest_id,
        }
        rows = await fetch(fetch_sql(reader.columns), where)
        if len(rows) <= places.count(","):
            raise CursorGone(
                "records that were found are gone or have moved (a reset, a removal, a rebuilt "
                "file); ask again"
            )
        yield [record_from_row(row) for row in rows]
