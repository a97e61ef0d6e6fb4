"""Time travel in one memory: the record in force at a moment, and the difference."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from async_history._core.concurrency.yielding import after_record
from async_history._core.reading.filters import Pairs, has_owner_and_cause
from async_history._core.records.records import HistoryRecord, is_alive
from async_history._core.records.values import is_aware
from async_history._core.validation import MOST_COUNT, check_count, shown
from async_history._core.wording import counted
from async_history.errors import CursorGone, InvalidInput

PAGE_POSITIONS: Final = 1024
"""Positions of the history that a page of states covers, so the most records of a page."""

Moment = datetime | int
"""An aware instant, or a version number: 1 is a memory's first record, its ADD."""
MemoryMoment = tuple[str, Moment]
"""A memory and a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDiff:
    """The difference of a memory between two moments, `start` and `end` of `diff`."""

    memory_id: str
    """The memory."""
    before: HistoryRecord | None
    """The record in force at `start`; None if the memory did not exist yet, or was deleted."""
    after: HistoryRecord | None
    """The record in force at `end`; None as above."""
    between: Sequence[HistoryRecord]
    """The records after the earlier moment, up to the later one, in the order of recording.

    If `end` is the earlier moment, these are the changes to undo.
    """

    @property
    def old_memory(self) -> str | None:
        """The memory's text at `start`."""
        return None if self.before is None else self.before.new_memory

    @property
    def new_memory(self) -> str | None:
        """The memory's text at `end`."""
        return None if self.after is None else self.after.new_memory


def check_moment(name: str, value: object) -> Moment:
    """Return `value` if it is a moment: an aware datetime or a version number.

    Raises:
        InvalidInput: it is neither.
    """
    if type(value) is int:
        if 1 <= value <= MOST_COUNT:
            return value
        if value < 1:
            raise InvalidInput(
                f"{name} must be at least 1, the version of the ADD, not {shown(value)}"
            )
        return check_count(name, value)
    return check_instant(name, value, " or a version number (1 is the ADD)")


def check_instant(name: str, value: object, alternative: str = "") -> datetime:
    """Return `value` if it is an aware datetime.

    Raises:
        InvalidInput: it is something else.
    """
    if not isinstance(value, datetime) or not is_aware(value):
        raise InvalidInput(
            f"{name} must be a datetime with a time zone{alternative}, not {shown(value)}"
        )
    return value


def last_change_at(records: Sequence[HistoryRecord], when: Moment) -> HistoryRecord | None:
    """Return a memory's last record as of a moment, also a DELETE; None if there is none.

    Args:
        records: all records of the memory, oldest first.
    """
    if isinstance(when, int):
        return records[when - 1] if when <= len(records) else None
    index = _index_at_instant(records, when)
    return records[index] if index >= 0 else None


def state_at(
    memory_id: str, records: Sequence[HistoryRecord], when: Moment
) -> HistoryRecord | None:
    """Return the record in force at a moment; None if the memory did not exist.

    Args:
        records: all records of the memory, oldest first.

    Raises:
        InvalidInput: there is no such version.
    """
    index = index_at(memory_id, records, when)
    return records[index] if index >= 0 and is_alive(records[index]) else None


def diff_of(
    memory_id: str, records: Sequence[HistoryRecord], start: Moment, end: Moment
) -> MemoryDiff:
    """Return the difference of a memory between two moments; see `state_at`."""
    first, last = sorted(index_at(memory_id, records, when) for when in (start, end))
    return MemoryDiff(
        memory_id=memory_id,
        before=state_at(memory_id, records, start),
        after=state_at(memory_id, records, end),
        between=tuple(records[first + 1 : last + 1]),
    )


async def records_of(
    pages: AsyncIterator[Sequence[HistoryRecord]], check: Callable[[], object]
) -> AsyncIterator[HistoryRecord]:
    """Yield the records of pages, one by one.

    Args:
        check: raises if a page may not be read: the manager is closed, or of another loop.
    """
    while True:
        check()
        page = await anext(pages, None)
        if page is None:
            return
        for index, record in enumerate(page):
            yield record
            await after_record(index)


async def states_of_owner(
    newest_first: AsyncIterable[HistoryRecord], when: datetime | None
) -> AsyncIterator[HistoryRecord]:
    """Yield the record in force at an instant, or the latest, of each memory that existed then.

    The ids of all memories are kept in memory.

    Args:
        newest_first: all records of the memories, the last recorded first.
    """
    seen: set[str] = set()
    async for record in newest_first:
        if record.memory_id in seen:
            continue
        instant = record.occurred_at
        if when is None or instant is None or instant <= when:
            seen.add(record.memory_id)
            if is_alive(record):
                yield record


async def with_cause(
    records: AsyncIterator[HistoryRecord], cause: Pairs
) -> AsyncIterator[HistoryRecord]:
    """Yield the records that have a cause."""
    async for record in records:
        if has_owner_and_cause(record, (), cause):
            yield record


def index_at(memory_id: str, records: Sequence[HistoryRecord], when: Moment) -> int:
    """Return the index of the last record as of a moment; -1 if there is none.

    Raises:
        InvalidInput: there is no such version.
    """
    if isinstance(when, int):
        if when > len(records):
            versions = counted(len(records), "version")
            raise InvalidInput(f"{memory_id!r} has {versions}, there is no version {when}")
        return when - 1
    return _index_at_instant(records, when)


def _index_at_instant(records: Sequence[HistoryRecord], when: datetime) -> int:
    """Return the index of the last record as of an instant; -1 if there is none.

    Clocks can be set back, so the last in order counts, not the latest in time. A record without a
    time gets that of the one before it. If there is none, the record counts as older than any
    instant.
    """
    last = -1
    instant: datetime | None = None
    for index, record in enumerate(records):
        instant = record.occurred_at or instant
        if instant is None or instant <= when:
            last = index
    return last


class StatesReader(Protocol):
    """A database's reads of all memories' states at an instant.

    One statement finds the position of each memory's record; then the connection is free again. The
    positions are kept as text, about eight bytes for each memory.
    """

    async def find(self, when: datetime) -> Sequence[str]:
        """Return the positions of the records in force at an instant, in the order of recording.

        Each text is a page: the positions with the same quotient by `PAGE_POSITIONS`, joined by
        commas.
        """

    async def fetch(self, positions: str) -> Sequence[HistoryRecord]:
        """Return the records at a page's positions, in order; fewer if some are gone or moved."""


async def states_at(reader: StatesReader, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
    """Yield pages of the records in force at an instant, of the memories that existed.

    Raises:
        CursorGone: a record that was found is gone, or has moved.
    """
    for positions in await reader.find(when):
        records = await reader.fetch(positions)
        if len(records) <= positions.count(","):
            raise CursorGone(
                "records that were found are gone or have moved (a reset, a removal, a rebuilt "
                "file); ask again"
            )
        yield records
