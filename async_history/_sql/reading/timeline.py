"""The state of memories at a moment: of some by their index, or of all."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, literal_column, or_, select, union_all
from sqlalchemy.engine import Dialect

from async_history._core.reading.timeline import PAGE_POSITIONS, MemoryMoment, Moment, state_at
from async_history._core.records.records import HistoryRecord, is_alive
from async_history._core.writing.erased_names import microseconds
from async_history._sql.dialects import has_name, in_parts
from async_history._sql.names import key_of
from async_history._sql.rows import columns_read, record_from_row
from async_history._sql.tables import Tables

Fetch = Callable[[Any], Awaitable[Sequence[Any]]]
"""Execute a SELECT, and return its rows."""

_MOST_MERGED: Final = 64
"""Memories of one statement, with a look-up each."""
_MOST_ROWS: Final = (1 << 63) - 1


async def last_changes(
    fetch: Fetch, dialect: Dialect, tables: Tables, asked: Sequence[MemoryMoment]
) -> dict[MemoryMoment, HistoryRecord | None]:
    """Return memories' last records at moments.

    At an instant it may be one without a time, or a later one: see `is_certain`.
    """
    asked = list(dict.fromkeys(asked))
    found: dict[MemoryMoment, HistoryRecord | None] = dict.fromkeys(asked)
    history = tables.history
    for start in range(0, len(asked), _MOST_MERGED):
        part = asked[start : start + _MOST_MERGED]
        selects = [_seq_at(dialect, tables, *one).subquery() for one in part]
        each = union_all(
            *(
                select(one.c.seq, literal_column(str(number)).label("number"))
                for number, one in enumerate(selects)
            )
        ).subquery()
        rows = await fetch(
            select(*columns_read(tables), each.c.number).join(each, history.c.seq == each.c.seq)
        )
        found |= {part[row[-1]]: record_from_row(row[:-1]) for row in rows}
    return found


def _seq_at(dialect: Dialect, tables: Tables, memory_id: str, when: Moment) -> Select[Any]:
    """Return the SELECT of the number of a memory's last record at a moment.

    For an instant, the memory is read from its newest record back to the instant, or to a record
    without a time, which may be of that instant or later.
    """
    history = tables.history
    of_memory = has_name(dialect, history.c.memory_id, key_of(memory_id))
    found = select(history.c.seq).where(of_memory).limit(1)
    if isinstance(when, int):
        earlier = min(when - 1, _MOST_ROWS)
        return found.order_by(history.c.memory_id, history.c.seq).offset(earlier)
    instant = history.c.occurred_at
    found = found.where(or_(instant <= microseconds(when), instant.is_(None)))
    return found.order_by(history.c.memory_id.desc(), history.c.seq.desc())


def is_certain(found: HistoryRecord, when: Moment) -> bool:
    """Return whether a record that was read is the memory's last at a moment, and no later one."""
    return isinstance(when, int) or found.occurred_at is not None


class SqlStates:
    """A reader of the states of all memories at an instant.

    If a memory has a record without a time, all its records are read. Such a record gets the time
    of the record before it. If there is none, the record counts as older than any instant.
    """

    def __init__(self, fetch: Fetch, tables: Tables) -> None:
        self._fetch = fetch
        self._tables = tables

    async def find(self, when: datetime) -> Sequence[str]:
        history, spans = self._tables.history, self._tables.spans
        undated: list[str] = []
        if await self._fetch(select(spans.c.span).where(spans.c.has_undated == 1).limit(1)):
            undated = [
                key
                for (key,) in await self._fetch(
                    select(history.c.memory_id).where(history.c.occurred_at.is_(None)).distinct()
                )
            ]
        newest = (
            select(func.max(history.c.seq).label("seq"))
            .where(history.c.occurred_at <= microseconds(when))
            .group_by(history.c.memory_id)
            .subquery()
        )
        rows = await self._fetch(
            select(history.c.seq, history.c.memory_id)
            .select_from(newest.join(history, history.c.seq == newest.c.seq))
            .where(history.c.event != "DELETE", history.c.is_deleted == 0)
            .order_by(history.c.seq)
        )
        others = set(undated)
        seqs = [seq for seq, key in rows if key not in others]
        for key in undated:
            seqs += await self._seqs_at(key, when)
        pages: dict[int, list[str]] = {}
        for seq in sorted(seqs):
            pages.setdefault(seq // PAGE_POSITIONS, []).append(str(seq))
        return [",".join(page) for page in pages.values()]

    async def _seqs_at(self, key: str, when: datetime) -> list[int]:
        history = self._tables.history
        rows = await self._fetch(
            select(*columns_read(self._tables))
            .where(history.c.memory_id == key)
            .order_by(history.c.seq)
        )
        records = list(map(record_from_row, rows))
        state = state_at(key, records, when)
        if state is None or not is_alive(state):
            return []
        return [row[0] for row, record in zip(rows, records, strict=True) if record is state]

    async def fetch(self, positions: str) -> Sequence[HistoryRecord]:
        history = self._tables.history
        found: list[HistoryRecord] = []
        for part in in_parts(map(int, positions.split(","))):
            rows = await self._fetch(
                select(*columns_read(self._tables))
                .where(history.c.seq.in_(part))
                .order_by(history.c.seq)
            )
            found += map(record_from_row, rows)
        return found
