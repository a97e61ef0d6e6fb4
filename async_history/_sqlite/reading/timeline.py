"""The states of memories of a SQLite file at a moment: of some, through the index, or of all.

For all memories, SQLite sorts the history by memory, in temporary files.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from async_history._core.reading.timeline import PAGE_POSITIONS, MemoryMoment, Moment
from async_history._core.records.records import MEMORY_ID, HistoryRecord
from async_history._core.records.values import in_utc, parse_time
from async_history._sqlite import times
from async_history._sqlite.index import (
    HAS_DETAILS,
    KEYS_BY_MEMORY,
    THROUGH_INDEX,
    Direction,
    keys_by_memory,
    memory_key,
    ordered_positions,
)
from async_history._sqlite.rows import (
    RECORD,
    Fetch,
    PackedColumns,
    PackedSelect,
    record_from_row,
)

_MOST_ROWS: Final = (1 << 63) - 1


def _is_gone(row: str) -> str:
    """Return the SQL condition that a record deletes its memory; `row` is its table's alias."""
    return f"({row}.event = 'DELETE' OR {row}.is_deleted NOT IN (0, ''))"


def find_sql(time_before: str) -> str:
    """Return the SELECT of the newest record, followed by one row per page with its positions.

    `time_before` is that of `Lookup`. The parameter `:when` is an instant as text.
    """
    occurred_at = times.occurred_at("history", time_before)
    return f"""
    SELECT max(rowid), id FROM history
    UNION ALL
    SELECT group_concat(position), NULL FROM (
        SELECT max(rowid) AS position, {_is_gone("history")} AS is_gone FROM history
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
    columns: str,
    direction: Direction,
    wanted: str,
    given: str = KEYS_BY_MEMORY,
    number: str = "",
    *,
    through_strays: bool = True,
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
        through_strays: see `ordered_positions`.
    """
    position = _position(direction, wanted, through_strays=through_strays)
    return f"""
    SELECT {columns}{number and f", found.{number}"} FROM (
        SELECT {number and f"{number}, "}{position} AS position
        FROM {given} AS given
    ) AS found CROSS JOIN main.history AS history ON history.rowid = found.position
    """


def _position(direction: Direction, wanted: str, *, through_strays: bool) -> str:
    """Return an SQL value: the position of one record of a memory in `given`; see `one_each`."""
    entries = ordered_positions(
        direction,
        key="given.memory",
        memory_id="given.memory_id",
        through_strays=through_strays,
    )
    return f"""(
            SELECT entry.position FROM {entries} AS entry
            CROSS JOIN main.history AS history ON history.rowid = entry.position
            WHERE history.memory_id = given.memory_id {wanted}
        )"""


_MOMENTS: Final = """(
    SELECT key AS number, json_extract(value, '$[0]') AS memory,
           json_extract(value, '$[1]') AS memory_id, json_extract(value, '$[2]') AS instant
    FROM json_each(:asked)
)"""
_AT_VERSION: Final = "LIMIT 1 OFFSET :earlier"
_AT_INSTANT: Final = f"AND coalesce({times.own_instant('history')}, '') <= given.instant LIMIT 1"
"""Which record is wanted. At an instant, a memory is read backwards from its newest record to the
instant, or to a record without a time, which may be of that instant or later."""


class _AtMoments:
    """A reader of one row for each of some memories, as of its moment.

    Args:
        at_version: a SELECT of memories with the parameters `memories` and `earlier`.
        at_instant: a SELECT of `_MOMENTS`, whose rows end with the `number`.
        memory: the index of the memory's id in a row of `at_version`.
    """

    def __init__(self, at_version: PackedSelect, at_instant: PackedSelect, memory: int) -> None:
        self._at_version = at_version
        self._at_instant = at_instant
        self._memory = memory

    async def rows(self, fetch: Fetch, asked: Sequence[MemoryMoment]) -> list[Sequence[Any] | None]:
        """Return the row of each memory and moment, in order; None where there is none."""
        found: list[Sequence[Any] | None] = [None] * len(asked)
        of_version: dict[int, list[int]] = {}
        instants: list[tuple[int, str, str]] = []
        places: list[int] = []
        for place, (memory_id, when) in enumerate(asked):
            if isinstance(when, int):
                of_version.setdefault(when, []).append(place)
            else:
                instants.append((memory_key(memory_id), memory_id, times.instant_text(when)))
                places.append(place)
        for version, of_this in of_version.items():
            names = [asked[place][0] for place in of_this]
            at = {"memories": keys_by_memory(names), "earlier": min(version - 1, _MOST_ROWS)}
            rows = await self._at_version.rows(fetch, at, len(names))
            of_memory = {row[self._memory]: row for row in rows}
            for place, name in zip(of_this, names, strict=True):
                found[place] = of_memory.get(name)
        if instants:
            given = {"asked": json.dumps(instants)}
            for row in await self._at_instant.rows(fetch, given, len(instants)):
                found[places[row[-1]]] = row
        return found


class LastChanges:
    """A reader of memories' last records as of moments.

    Args:
        columns: the columns of a record, for a single row.
    """

    def __init__(self, columns: str) -> None:
        self._at_moments = _AtMoments(
            PackedSelect(one_each(columns, "ASC", _AT_VERSION)),
            PackedSelect(
                one_each(columns, "DESC", _AT_INSTANT, _MOMENTS, "number"),
                RECORD.and_also("number"),
            ),
            MEMORY_ID,
        )

    async def read(
        self, fetch: Fetch, asked: Sequence[MemoryMoment]
    ) -> dict[MemoryMoment, HistoryRecord | None]:
        """Return the last records of memories as of moments for which `can_be_asked` is true.

        For an instant, the result may be a later record: see `is_certain`.
        """
        different = list(dict.fromkeys(asked))
        rows = await self._at_moments.rows(fetch, different)
        return {
            one: None if row is None else record_from_row(row)
            for one, row in zip(different, rows, strict=True)
        }


_STATE: Final = ("is_gone", "new_memory", "created_at", "context")
_THEN: Final = ("then_id", "then_text", "then_context")
_NO_TEXT: Final = (None,) * len(_THEN)
_STATE_AND_THEN: Final = PackedColumns(
    (*_STATE, *_THEN, "memory_id"),
    ("new_memory", "context", *_THEN),
    ("new_memory", "context", "then_text", "then_context"),
)
_MEMORY_ID: Final = len(_STATE) + len(_THEN)
_THEN_TIME: Final = _MEMORY_ID + 1


class StatesAndThen:
    """A reader of memories' states, each with the memory's text of a moment.

    `NEARLY_COMPLETE` must be true in the transaction.

    A row begins with the values of a `MemoryState` with the context as JSON, and then the id, text
    and context of the record of the moment. The text is None if the memory had none, or if finding
    it needs all its records.
    """

    def __init__(self) -> None:
        at_version = _state_and_then("ASC", _AT_VERSION, KEYS_BY_MEMORY)
        time = f", CAST({times.own_time('earlier')} AS TEXT) AS then_time, found.number"
        at_instant = _state_and_then("DESC", _AT_INSTANT, _MOMENTS, time)
        self._at_moments = _AtMoments(
            PackedSelect(at_version, _STATE_AND_THEN),
            PackedSelect(at_instant, _STATE_AND_THEN.and_also("then_time", "number")),
            _MEMORY_ID,
        )

    async def read(self, fetch: Fetch, asked: Sequence[MemoryMoment]) -> list[Sequence[Any] | None]:
        """Return a row for each memory and its moment; None for a memory without records."""
        rows = await self._at_moments.rows(fetch, asked)
        return [
            row if row is None or isinstance(when, int) else _without_uncertain_text(row, when)
            for row, (_, when) in zip(rows, asked, strict=True)
        ]


def _without_uncertain_text(row: Sequence[Any], when: datetime) -> Sequence[Any]:
    """Return a row, without a text that is not certainly of the instant."""
    time = row[_THEN_TIME]
    is_certain = time is not None and parse_time(time) is not None and can_be_asked(when)
    return row if is_certain else (*row[: len(_STATE)], *_NO_TEXT)


def _state_and_then(direction: Direction, wanted: str, given: str, more: str = "") -> str:
    """Return a SELECT of `StatesAndThen`.

    Args:
        direction, wanted, given: as in `one_each`, for the record of the moment.
        more: further columns.
    """
    context, then_context = (
        f"CASE WHEN {HAS_DETAILS} THEN {THROUGH_INDEX.details.context(row)} END"
        for row in ("history", "earlier")
    )
    latest = _position("DESC", "LIMIT 1", through_strays=False)
    then = _position(direction, wanted, through_strays=False)
    return f"""
    SELECT {_is_gone("history")} IS 1 AS is_gone, history.new_memory,
        CASE WHEN typeof(history.created_at) <> 'blob'
            THEN CAST(history.created_at AS TEXT) END AS created_at,
        {context} AS context, earlier.id AS then_id,
        CASE WHEN {_is_gone("earlier")} IS NOT 1 THEN earlier.new_memory END AS then_text,
        {then_context} AS then_context, found.memory_id{more}
    FROM (
        SELECT {latest} AS position, {then} AS then_position, given.*
        FROM {given} AS given
    ) AS found CROSS JOIN main.history AS history ON history.rowid = found.position
    LEFT JOIN main.history AS earlier ON earlier.rowid = found.then_position
    """


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
