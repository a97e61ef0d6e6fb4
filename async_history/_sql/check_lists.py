"""The check of the tables by which queries find records: `marks` and `spans`.

Both are read once, in the order of their keys, and compared by a count and a checksum for each
span, so that memory is needed for one span in 4,096 records. Rows are named of the first span that
differs.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Case,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    Table,
    and_,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.records.records import HistoryRecord
from async_history._core.wording import counted
from async_history._sql.check_values import (
    Damaged,
    damaged,
    fault_of_texts,
    is_whole,
    read_record,
)
from async_history._sql.dialects import is_sqlite
from async_history._sql.errors import is_not_utf8
from async_history._sql.marks import marks_of
from async_history._sql.rows import ALL_COLUMNS, event_bit
from async_history._sql.tables import SPAN_BITS, Tables
from async_history.errors import StorageCorrupt

_ROWS: Final = 500
"""Records read at once: a millisecond or two of the event loop's time."""
_TEXT_BYTES: Final = 1 << 20
"""Bytes of texts that are read at once, except for a record with more: the loop waits about 1 ms
while they are decoded."""
_MARKS: Final = 5_000
_NAMED: Final = 10
"""Most marks of a statement that is reported."""
_CHECKSUM: Final = (1 << 64) - 1
_TEXTS: Final = ("old_memory", "new_memory", "context")
"""Columns that have no part in it."""
_INSERT: Final = "INSERT INTO {table} (mark, seq) VALUES {values}"
_DELETE: Final = "DELETE FROM {table} WHERE mark = {mark} AND seq = {seq}"
_REPLACE: Final = (
    "DELETE FROM {table} WHERE span = {span}; "
    "INSERT INTO {table} (span, first_time, last_time, events, has_undated) VALUES ({values})"
)
_NO_NUMBER: Final = (
    "{table} has {rows} with another value than a number: DELETE FROM {table} "
    "WHERE typeof(mark) <> 'integer' OR typeof(seq) <> 'integer', and check again."
)
"""Only SQLite stores such values."""
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
    is_read: bool = True
    """Whether all of its records could be read."""

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
        """Return whether a row of `spans` has numbers, and covers the records."""
        if not all(one is None or is_whole(one) for one in (first, last, events, undated)):
            return False
        if self.first_time is not None and self.last_time is not None:
            if first is None or last is None:
                return False
            if first > self.first_time or last < self.last_time:
                return False
        return not self.events & ~events and (bool(undated) or not self.has_undated)


async def faults_of_lists(connection: AsyncConnection, tables: Tables) -> list[str]:
    """Check the marks and spans, in the snapshot of a connection; return a sentence for each
    kind of fault, and for each of the first records that can't be read."""
    unread = Damaged()
    spans: dict[int, _Listed] = {}
    async for seq, record, instant in _records(connection, tables):
        listed = spans.setdefault(seq >> SPAN_BITS, _Listed())
        if isinstance(record, str):
            listed.is_read = False
            unread.add(record)
        else:
            listed.add(seq, record, instant)
    marked: dict[int, _Listed] = {}
    wrong_marks = 0
    async for mark, seq in _marks(connection, tables):
        if is_whole(mark) and is_whole(seq):
            marked.setdefault(int(seq) >> SPAN_BITS, _Listed()).mark(int(mark), int(seq))
        else:
            wrong_marks += 1
    found = unread.faults()
    if wrong_marks:
        rows = counted(wrong_marks, "row")
        found.append(_NO_NUMBER.format(table=tables.marks.name, rows=rows))
    none = _Listed()
    for number in sorted({*spans, *marked}):
        one, other = spans.get(number, none), marked.get(number, none)
        if one.is_read and (one.count, one.checksum) == (other.count, other.checksum):
            continue
        if faults := await _faults_of_marks(connection, tables, number):
            found += faults
            break
    return found + await _faults_of_spans(connection, tables, spans)


async def _records(
    connection: AsyncConnection, tables: Tables, least: int = 0, most: int | None = None
) -> AsyncIterator[tuple[int, HistoryRecord | str, Any]]:
    """Yield the numbers, the records without texts, and the instants, by number.

    Instead of a record that can't be read, a sentence about it.
    """
    history = tables.history
    columns: list[Any] = [null() if name in _TEXTS else history.c[name] for name in ALL_COLUMNS]
    if is_sqlite(connection.dialect):
        columns.append(_bytes_of_texts(history))
    read = select(*columns).order_by(history.c.seq).limit(_ROWS)
    if most is not None:
        read = read.where(history.c.seq <= most)
    instant, width = ALL_COLUMNS.index("occurred_at"), len(ALL_COLUMNS)
    after = least - 1
    while rows := await _page(connection, read.where(history.c.seq > after), history):
        faults: dict[int, str] = {}
        if is_sqlite(connection.dialect):
            faults = await _faults_of_texts(connection, history, rows)
        for row in rows:
            number = int(row[0])
            if len(row) == 1:
                yield number, damaged(number, history.name, "a text is not UTF-8"), None
            elif number in faults:
                yield number, damaged(number, history.name, faults[number]), None
            else:
                yield number, read_record(row[:width], history.name), row[instant]
        after = int(rows[-1][0])


async def _faults_of_texts(
    connection: AsyncConnection, history: Table, rows: Sequence[Sequence[Any]]
) -> dict[int, str]:
    """Return the first fault of each record's texts in SQLite, by number.

    Args:
        rows: of records; in each, the number is first, and the bytes of the texts are last.
    """
    read = select(history.c.seq, *(_stored_text(history.c[name]) for name in _TEXTS))
    encoding = (await connection.exec_driver_sql("PRAGMA encoding")).scalar_one()
    found: dict[int, str] = {}
    for numbers in _read_at_once(rows):
        for number, *texts in await connection.execute(read.where(history.c.seq.in_(numbers))):
            if fault := fault_of_texts(_TEXTS, texts, encoding):
                found[int(number)] = fault
    return found


def _read_at_once(rows: Sequence[Sequence[Any]]) -> Iterator[list[int]]:
    """Yield the numbers of rows whose texts have `_TEXT_BYTES` at most, or of one row."""
    numbers: list[int] = []
    size = 0
    for row in rows:
        if len(row) == 1:  # it is damaged anyway
            continue
        if numbers and size + row[-1] > _TEXT_BYTES:
            yield numbers
            numbers, size = [], 0
        numbers.append(int(row[0]))
        size += row[-1]
    if numbers:
        yield numbers


def _bytes_of_texts(history: Table) -> ColumnElement[int]:
    """Return the bytes of a record's texts in SQLite."""
    sizes = (func.length(cast(history.c[name], LargeBinary), type_=Integer) for name in _TEXTS)
    return sum((func.coalesce(size, 0) for size in sizes), start=literal(0))


def _stored_text(column: Column[Any]) -> Case[Any]:
    """Return a text's bytes, or a number in the place of what is not a text, in SQLite."""
    kind = func.typeof(column)
    return case((kind == "text", cast(column, LargeBinary)), (kind == "null", null()), else_=0)


async def _page(
    connection: AsyncConnection, page: Select[Any], history: Table
) -> Sequence[Sequence[Any]]:
    """Return rows; only the number of a row with a text that is not UTF-8."""
    rows: Sequence[Sequence[Any]]
    try:
        rows = (await connection.execute(page)).all()
    except (StorageCorrupt, OperationalError) as error:
        if not (isinstance(error, StorageCorrupt) or is_not_utf8(error)):
            raise
    else:
        return rows
    numbers = (await connection.execute(page.with_only_columns(history.c.seq))).all()
    if len(numbers) == 1:
        return numbers
    return [
        row
        for (number,) in numbers
        for row in await _page(connection, page.where(history.c.seq == number), history)
    ]


async def _marks(connection: AsyncConnection, tables: Tables) -> AsyncIterator[tuple[Any, Any]]:
    """Yield the pairs of mark and number, in order."""
    marks = tables.marks.c
    read = select(marks.mark, marks.seq).order_by(marks.mark, marks.seq).limit(_MARKS)
    page: Select[Any] = read
    while rows := (await connection.execute(page)).all():
        for mark, seq in rows:
            yield mark, seq
        mark, seq = rows[-1]
        page = read.where(and_(marks.mark >= mark, or_(marks.mark > mark, marks.seq > seq)))


async def _faults_of_marks(connection: AsyncConnection, tables: Tables, number: int) -> list[str]:
    """Return the faults of the marks of a span's records."""
    least, most = number << SPAN_BITS, ((number + 1) << SPAN_BITS) - 1
    ids: dict[int, str] = {}
    wanted: set[tuple[int, int]] = set()
    unread: set[int] = set()
    async for seq, record, _ in _records(connection, tables, least, most):
        if isinstance(record, str):
            unread.add(seq)
            continue
        ids[seq] = record.id
        wanted |= {(mark, seq) for mark in marks_of(record)}
    marks = tables.marks.c
    rows = await connection.execute(
        select(marks.mark, marks.seq).where(marks.seq.between(least, most))
    )
    there = {
        (int(mark), int(seq)) for mark, seq in rows if is_whole(mark) and int(seq) not in unread
    }
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
