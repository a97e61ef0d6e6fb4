"""The states of memories of a SQLite file at a moment: of some, through the index, or of all.

For all memories, SQLite sorts the history by memory, in temporary files.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.records import HistoryRecord
from async_history._core.timeline import PAGE_POSITIONS, MemoryMoment, Moment
from async_history._core.values import in_utc
from async_history._sqlite import times
from async_history._sqlite.index import (
    KEYS_BY_MEMORY,
    Direction,
    keys_by_memory,
    memory_key,
    ordered_positions,
)
from async_history._sqlite.rows import Fetch, PackedSelect, record_from_row

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
    SELECT group_concat(position), NULL FROM (
        SELECT max(rowid) AS position, {_IS_GONE} AS is_gone FROM history
        WHERE memory_id IS NOT NULL AND coalesce({occurred_at}, '') <= :when
        GROUP BY memory_id HAVING is_gone IS NOT 1
    ) GROUP BY position / {PAGE_POSITIONS}
    """


def fetch_sql(columns: str) -> str:
    """Return the SELECT of a page's records, which returns none if they may have moved.

    They have not moved if the newest record has not: SQLite renumbers rows without gaps, and starts
    at 1 in a recreated table.
    """
    return f"""
    SELECT {columns} FROM history
    WHERE rowid IN (SELECT value FROM json_each(:positions))
      AND EXISTS (SELECT 1 FROM history WHERE rowid = :newest AND id IS :newest_id)
    """


def one_each(
    columns: str, direction: Direction, wanted: str, given: str = KEYS_BY_MEMORY, number: str = ""
) -> str:
    """Return the SELECT of one record of each memory.

    Args:
        columns: the columns of a record in `history`.
        direction: the order in which a memory's records are read.
        wanted: SQL after the condition that a row of `history` is of the memory: which one is
            wanted, with a LIMIT.
        given: the memories, as an SQL table `given` with a `memory`, which is the key, and a
            `memory_id`. The default has the parameter of `keys_by_memory`.
        number: a column of `given` to return after a record's columns.
    """
    entries = ordered_positions(direction, key="given.memory", memory_id="given.memory_id")
    return f"""
    SELECT {columns}{number and f", found.{number}"} FROM (
        SELECT {number and f"{number}, "}(
            SELECT entry.position FROM {entries} AS entry
            CROSS JOIN main.history AS history ON history.rowid = entry.position
            WHERE history.memory_id = given.memory_id {wanted}
        ) AS position
        FROM {given} AS given
    ) AS found CROSS JOIN main.history AS history ON history.rowid = found.position
    """


_MOMENTS: Final = """(
    SELECT key AS number, json_extract(value, '$[0]') AS memory,
           json_extract(value, '$[1]') AS memory_id, json_extract(value, '$[2]') AS instant
    FROM json_each(:asked)
)"""
_AT_INSTANT: Final = f"AND coalesce({times.own_instant('history')}, '') <= given.instant LIMIT 1"
"""Which record is wanted at an instant: a memory is read backwards from its newest record to the
instant, or to a record without a time, which may be of that instant or later."""


class LastChanges:
    """A reader of memories' last records as of moments.

    Args:
        columns: the columns of a record, for a single row.
    """

    def __init__(self, columns: str) -> None:
        at_instant = one_each(columns, "DESC", _AT_INSTANT, _MOMENTS, "number")
        self._at_instant = PackedSelect(at_instant, "number")
        self._at_version = PackedSelect(one_each(columns, "ASC", "LIMIT 1 OFFSET :earlier"))

    async def read(
        self, fetch: Fetch, asked: Sequence[MemoryMoment]
    ) -> dict[MemoryMoment, HistoryRecord | None]:
        """Return the last records of memories as of moments for which `can_be_asked` is true.

        For an instant, the result may be a later record: see `is_certain`.
        """
        found: dict[MemoryMoment, HistoryRecord | None] = dict.fromkeys(asked)
        at_instants: list[tuple[str, datetime]] = []
        of_version: dict[int, list[str]] = {}
        for memory_id, when in found:
            if isinstance(when, int):
                of_version.setdefault(when, []).append(memory_id)
            else:
                at_instants.append((memory_id, when))
        for version, memory_ids in of_version.items():
            earlier = min(version - 1, _MOST_ROWS)
            given: dict[str, Any] = {"memories": keys_by_memory(memory_ids), "earlier": earlier}
            for row in await self._at_version.rows(fetch, given, len(memory_ids)):
                found[row[1], version] = record_from_row(row)
        if at_instants:
            changes = [
                (memory_key(memory_id), memory_id, times.instant_text(when))
                for memory_id, when in at_instants
            ]
            given = {"asked": json.dumps(changes)}
            for row in await self._at_instant.rows(fetch, given, len(changes)):
                found[at_instants[row[-1]]] = record_from_row(row)
        return found


def can_be_asked(when: Moment) -> bool:
    """Return whether a moment is a version, or an instant that a datetime in UTC can hold."""
    return isinstance(when, int) or in_utc(when).tzinfo is UTC


def is_certain(found: HistoryRecord, when: Moment) -> bool:
    """Return whether a record that was read is certainly the memory's last as of a moment."""
    return isinstance(when, int) or (found.time_before is None and found.occurred_at is not None)


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
        return [positions for positions, _ in found[1:]]

    async def fetch(self, positions: str) -> Sequence[HistoryRecord]:
        given = {"positions": f"[{positions}]", **self._newest}
        rows = await self._fetch(fetch_sql(self._columns), given)
        return [record_from_row(row) for row in rows]
