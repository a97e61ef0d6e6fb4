"""The sources of a copy: records in order, page by page."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from sys import getsizeof
from typing import Final

from async_history._core.manager import HistoryManager
from async_history._core.reading.cursors import Cursor
from async_history._core.records.recording import operation
from async_history._core.records.records import COLUMNS, Event, HistoryRecord
from async_history._core.records.rows import ROW_FIELDS, Row, record_of
from async_history._core.records.values import check_name, check_text, parse_time
from async_history.errors import InvalidInput

PAGE_RECORDS: Final = 2_000
"""Records of a page: enough to make a commit's fixed cost small, and few enough to block the event
loop only for some milliseconds.
"""
PAGE_BYTES: Final = 8 * 1024 * 1024
"""Approximate bytes of a page's texts: pages of long texts have fewer records."""
_NAMES: Final = ("id", "memory_id", "event")
"""Columns that every record has. The id must not be empty."""


class RecordSource(ABC):
    """Records in order, each with its id. They can be read several times."""

    @abstractmethod
    def pages(self, records: int = PAGE_RECORDS) -> AsyncIterator[Sequence[Row]]:
        """Yield rows, in order: mem0's ten columns, then owner, context and cause as JSON text.

        Times are text, and `is_deleted` is a bool.

        Args:
            records: most records of a page.
        """

    async def count(self) -> int | None:
        """Return the number of records, or None if it is not known before reading."""
        return None

    async def records(self, rows: Sequence[Row]) -> list[HistoryRecord]:
        """Return the records of a page's rows, with other fields that the source knows."""
        return list(map(record_of, rows))


class HistorySource(RecordSource):
    """The records of a history, at least up to the newest one at the start of reading."""

    def __init__(self, history: HistoryManager) -> None:
        self._history = history

    def __repr__(self) -> str:
        return f"<HistorySource {self._history!r}>"

    async def count(self) -> int | None:
        with operation():
            return await self._history.count_history()

    async def pages(self, records: int = PAGE_RECORDS) -> AsyncIterator[Sequence[Row]]:
        newest = await self._history.store.primary_reader.newest()
        after: Cursor | None = None
        limit = records
        while newest is not None and (after is None or after.position < newest):
            read = await self._history.store.primary_reader.rows(after, limit)
            after = read.cursor
            if read.rows:
                yield read.rows
            if read.is_last or after is None:
                return
            limit = next_limit(read.rows, records)

    async def records(self, rows: Sequence[Row]) -> list[HistoryRecord]:
        """Return the records of rows; a record without a time is dated by its history."""
        records = list(map(record_of, rows))
        undated: dict[str, int] = {}
        for index, record in enumerate(records):
            time = record.created_at if record.event == Event.ADD else record.updated_at
            if time is None or parse_time(time) is None:
                undated[record.id] = index
        if undated:
            known = await self._history.store.primary_reader.times_before(list(undated))
            for record_id, moment in known.items():
                index = undated[record_id]
                records[index] = replace(records[index], time_before=moment)
        return records


def next_limit(rows: Sequence[Row], most: int) -> int:
    """Return how many records like these make a page, up to `most`."""
    some = rows[-_SAMPLE:]
    size = sum([getsizeof(row[_OLD]) + getsizeof(row[_NEW]) for row in some])
    return max(1, min(most, PAGE_BYTES * len(some) // size))


_SAMPLE: Final = 100
_OLD: Final = COLUMNS.index("old_memory")
_NEW: Final = COLUMNS.index("new_memory")


def checked_size(rows: Sequence[Row]) -> int:
    """Check that every store can store these records exactly; return the bytes of their texts.

    It checks whole columns at once, because checking each record takes longer than the rest of its
    copying.

    Raises:
        InvalidInput: naming the first record that a store cannot hold.
    """
    size = 0
    try:
        for name, column in zip(ROW_FIELDS, zip(*rows, strict=True), strict=True):
            if name == "is_deleted":
                continue
            present = column
            if name not in _NAMES and None in column:
                present = tuple([value for value in column if value is not None])
            text = "".join(present)
            if "\0" in text or (name == "id" and "" in column):
                raise ValueError(name)
            if not text.isascii():
                text.encode()
            size += getsizeof(text)
    except (TypeError, ValueError):
        for row in rows:
            check_row(row)
        raise
    return size


def check_row(row: Row) -> None:
    """Check that every store can store a record exactly.

    Raises:
        InvalidInput: it cannot; the record and the column are named.
    """
    try:
        check_name("id", row[0])
        for name, value in zip(ROW_FIELDS, row, strict=True):
            if name in _NAMES or (value is not None and name != "is_deleted"):
                check_text(name, value)
    except InvalidInput as error:
        raise InvalidInput(
            f"the record {row[0]!r} of memory {row[1]!r} can't be copied: {error}"
        ) from error
