"""The check of the tables by which queries find records: `marks` and `spans`.

Both are read once, in the order of their keys, and compared by a count and a checksum for each
span, so that memory is needed for one span in 4,096 records. Rows are named of the first span that
differs.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, null, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.records.records import HistoryRecord
from async_history._sql.marks import marks_of
from async_history._sql.rows import ALL_COLUMNS, event_bit, record_from_row
from async_history._sql.tables import SPAN_BITS, Tables

_ROWS: Final = 500
"""Records read at once: a millisecond or two of the event loop's time."""
_MARKS: Final = 5_000
_NAMED: Final = 10
"""Most marks of a statement that is reported."""
_CHECKSUM: Final = (1 << 64) - 1
_TEXTS: Final = {"old_memory", "new_memory", "context"}
"""Columns that have no part in it."""
_INSERT: Final = "INSERT INTO {table} (mark, seq) VALUES {values}"
_DELETE: Final = "DELETE FROM {table} WHERE mark = {mark} AND seq = {seq}"
_REPLACE: Final = (
    "DELETE FROM {table} WHERE span = {span}; "
    "INSERT INTO {table} (span, first_time, last_time, events, has_undated) VALUES ({values})"
)
_SPAN: Final = ("first_time", "last_time", "events", "has_undated")


@dataclass(slots=True)
class _Listed:
    """The marks of a span's records, and the bounds of their times and their events."""

    count: int = 0
    checksum: int = 0
    first_time: int | None = None
    last_time: int | None = None
    events: int = 0
    has_undated: bool = False

    def mark(self, mark: int, seq: int) -> None:
        """Count a mark."""
        self.count += 1
        self.checksum = (self.checksum + hash((mark, seq))) & _CHECKSUM

    def add(self, seq: int, record: HistoryRecord, instant: int | None) -> None:
        """Add a record."""
        for mark in set(marks_of(record)):
            self.mark(mark, seq)
        self.events |= event_bit(record.event)
        if instant is None:
            self.has_undated = True
        elif self.first_time is None or self.last_time is None:
            self.first_time = self.last_time = instant
        else:
            self.first_time = min(self.first_time, instant)
            self.last_time = max(self.last_time, instant)

    def is_within(self, first: int | None, last: int | None, events: int, undated: int) -> bool:
        """Return whether a row of `spans` covers the records."""
        if self.first_time is not None and self.last_time is not None:
            if first is None or last is None:
                return False
            if first > self.first_time or last < self.last_time:
                return False
        return not self.events & ~events and (bool(undated) or not self.has_undated)


async def faults_of_lists(connection: AsyncConnection, tables: Tables) -> list[str]:
    """Check the marks and spans, in the snapshot of a connection; return a sentence for each
    kind of fault."""
    spans: dict[int, _Listed] = {}
    async for seq, record, instant in _records(connection, tables):
        spans.setdefault(seq >> SPAN_BITS, _Listed()).add(seq, record, instant)
    marked: dict[int, _Listed] = {}
    async for mark, seq in _marks(connection, tables):
        marked.setdefault(seq >> SPAN_BITS, _Listed()).mark(mark, seq)
    none = _Listed()
    found: list[str] = []
    for number in sorted({*spans, *marked}):
        one, other = spans.get(number, none), marked.get(number, none)
        if (one.count, one.checksum) != (other.count, other.checksum):
            found += await _faults_of_marks(connection, tables, number)
            break
    return found + await _faults_of_spans(connection, tables, spans)


async def _records(
    connection: AsyncConnection, tables: Tables, least: int = 0, most: int | None = None
) -> AsyncIterator[tuple[int, HistoryRecord, int | None]]:
    """Yield the numbers, the records without texts, and the instants, by number."""
    seq = tables.history.c.seq
    columns = [null() if name in _TEXTS else tables.history.c[name] for name in ALL_COLUMNS]
    read = select(*columns).order_by(seq).limit(_ROWS)
    if most is not None:
        read = read.where(seq <= most)
    instant = ALL_COLUMNS.index("occurred_at")
    while rows := (await connection.execute(read.where(seq >= least))).all():
        for row in rows:
            yield int(row[0]), record_from_row(row), row[instant]
        least = int(rows[-1][0]) + 1


async def _marks(connection: AsyncConnection, tables: Tables) -> AsyncIterator[tuple[int, int]]:
    """Yield the pairs of mark and number, in order."""
    marks = tables.marks.c
    read = select(marks.mark, marks.seq).order_by(marks.mark, marks.seq).limit(_MARKS)
    page: Select[Any] = read
    while rows := (await connection.execute(page)).all():
        for mark, seq in rows:
            yield int(mark), int(seq)
        mark, seq = rows[-1]
        page = read.where(and_(marks.mark >= mark, or_(marks.mark > mark, marks.seq > seq)))


async def _faults_of_marks(connection: AsyncConnection, tables: Tables, number: int) -> list[str]:
    """Return the faults of the marks of a span's records."""
    least, most = number << SPAN_BITS, ((number + 1) << SPAN_BITS) - 1
    ids: dict[int, str] = {}
    wanted: set[tuple[int, int]] = set()
    async for seq, record, _ in _records(connection, tables, least, most):
        ids[seq] = record.id
        wanted |= {(mark, seq) for mark in marks_of(record)}
    marks = tables.marks.c
    rows = await connection.execute(
        select(marks.mark, marks.seq).where(marks.seq.between(least, most))
    )
    there = {(int(mark), int(seq)) for mark, seq in rows}
    found: list[str] = []
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    table = tables.marks.name
    if missing:
        insert = _INSERT.format(table=table, values=", ".join(map(str, missing[:_NAMED])))
        found.append(
            f"{table} lacks rows, so queries by owner, actor, role or cause do not find records "
            f"such as {ids[missing[0][1]]}: copy the history into empty tables, or add the first "
            f"ones by {insert}."
        )
    if extra:
        delete = _DELETE.format(table=table, mark=extra[0][0], seq=extra[0][1])
        found.append(f"{table} has rows that belong to no record: {delete}, and check again.")
    return found


async def _faults_of_spans(
    connection: AsyncConnection, tables: Tables, spans: Mapping[int, _Listed]
) -> list[str]:
    """Return the fault of the first span whose row does not cover its records."""
    table = tables.spans
    rows = await connection.execute(select(table.c.span, *(table.c[name] for name in _SPAN)))
    stored = {int(number): values for number, *values in rows}
    for number, listed in sorted(spans.items()):
        values = stored.get(number)
        if values is not None and listed.is_within(*values):
            continue
        right = (number, listed.first_time, listed.last_time, listed.events, listed.has_undated)
        shown = ", ".join("NULL" if one is None else str(int(one)) for one in right)
        replace = _REPLACE.format(table=table.name, span=number, values=shown)
        return [
            f"The row {number} of {table.name} does not cover its records, so queries by time or "
            f"event miss some: {replace}, and check again."
        ]
    return []
