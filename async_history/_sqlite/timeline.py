"""The states of memories of a SQLite file at a moment: of some, through the index, or of all.

For all memories, SQLite sorts the history by memory, in temporary files.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.records import HistoryRecord
from async_history._core.timeline import PAGE_PLACES, MemoryMoment, Moment
from async_history._core.values import in_utc
from async_history._sqlite import times
from async_history._sqlite.index import Direction, memory_key, ordered_positions
from async_history._sqlite.rows import Fetch, packed_sql, record_from_row, unpack_rows

_MOST_ROWS: Final = (1 << 63) - 1
_IS_GONE: Final = "event = 'DELETE' OR is_deleted NOT IN (0, '')"


def find_sql(time_before: str) -> str:
    """Return the SELECT of the newest record, followed by one row per page with its positions.

    `time_before` is that of `Lookup`. The parameter `:when` is an instant as text.
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


def _at_instant_sql(columns: str) -> str:
    """Return the SELECT of memories' last records at instants, each followed by its `number`.

    The parameter `:asked` is a JSON array of `_asked_change`; a record's number is its index there.
    A memory is read backwards from its newest record to the instant, or to a record without a time,
    which may be of that instant or later.
    """
    moment = times.own_instant("history")
    return _last_changes(columns, "DESC", f"AND coalesce({moment}, '') <= given.instant LIMIT 1")


def _at_version_sql(columns: str) -> str:
    """Return the SELECT of memories' records with a version, as `_at_instant_sql`.

    The parameter `:earlier` is the number of records before it, the same for all memories.
    """
    return _last_changes(columns, "ASC", "LIMIT 1 OFFSET :earlier")


def _last_changes(columns: str, direction: Direction, wanted: str) -> str:
    places = ordered_positions(direction, key="given.memory", memory_id="given.memory_id")
    return f"""
    SELECT {columns}, found.number FROM (
        SELECT number, (
            SELECT place.position FROM {places} AS place
            CROSS JOIN main.history AS history ON history.rowid = place.position
            WHERE history.memory_id = given.memory_id {wanted}
        ) AS place
        FROM (
            SELECT key AS number, json_extract(value, '$[0]') AS memory,
                   json_extract(value, '$[1]') AS memory_id, json_extract(value, '$[2]') AS instant
            FROM json_each(:asked)
        ) AS given
    ) AS found CROSS JOIN main.history AS history ON history.rowid = found.place
    """


class LastChanges:
    """A reader of memories' last records as of moments.

    Args:
        columns: the columns of a record, for a single row.
    """

    def __init__(self, columns: str) -> None:
        self._at_instant, self._at_version = [
            (packed_sql(select, "number"), select)
            for select in (_at_instant_sql(columns), _at_version_sql(columns))
        ]

    async def read(
        self, fetch: Fetch, asked: Sequence[MemoryMoment]
    ) -> dict[MemoryMoment, HistoryRecord | None]:
        """Return the last records of memories as of moments for which `can_be_asked` is true.

        For an instant, the result may be a later record: see `is_certain`.
        """
        by_version: dict[int | None, list[MemoryMoment]] = {}
        for one in dict.fromkeys(asked):
            by_version.setdefault(one[1] if isinstance(one[1], int) else None, []).append(one)
        found: dict[MemoryMoment, HistoryRecord | None] = dict.fromkeys(asked)
        for version, changes in by_version.items():
            given: dict[str, Any] = {"asked": json.dumps([_asked_change(*one) for one in changes])}
            if version is not None:
                given["earlier"] = min(version - 1, _MOST_ROWS)
            packed, single = self._at_instant if version is None else self._at_version
            rows: Sequence[Sequence[Any]] | None = None
            if len(changes) > 1:
                rows = unpack_rows(await fetch(packed, given))
            if rows is None:
                rows = await fetch(single, given)
            for row in rows:
                found[changes[row[-1]]] = record_from_row(row)
        return found


def can_be_asked(when: Moment) -> bool:
    """Return whether a moment is a version, or an instant that a datetime in UTC can hold."""
    return isinstance(when, int) or in_utc(when).tzinfo is UTC


def is_certain(found: HistoryRecord, when: Moment) -> bool:
    """Return whether a record that was read is certainly the memory's last as of a moment."""
    return isinstance(when, int) or (found.time_before is None and found.occurred_at is not None)


def _asked_change(memory_id: str, when: Moment) -> Sequence[Any]:
    """Return a memory and a moment as an element of `:asked`."""
    instant = None if isinstance(when, int) else times.instant_text(when)
    return memory_key(memory_id), memory_id, instant


class FileStates:
    """A reader of the states of all memories at one instant; create one for each instant.

    Args:
        time_before, columns: as in the file's `HistoryReader`.
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
