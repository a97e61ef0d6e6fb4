"""A memory as it was: which record was in force, what changed since, and what brings it back."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeGuard

from async_history._core.filters import Pairs, has_details
from async_history._core.operations import StoreOperation, new_operation
from async_history._core.owners import Owner
from async_history._core.records import Event, HistoryRecord, is_alive, made_at
from async_history._core.values import in_utc, is_aware
from async_history._core.yielding import after_record
from async_history.errors import CursorGone, InvalidInput

PAGE_PLACES: Final = 1024
"""A page of states is what lies in so many places of the history: at most so many records."""

Moment = datetime | int
"""An aware instant, or a version number: 1 is a memory's first record, its ADD."""
MemoryMoment = tuple[str, Moment]
"""A memory, and a moment in its history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDiff:
    """How a memory differs between two moments, `start` and `end` of `diff`."""

    memory_id: str
    """Which memory."""
    before: HistoryRecord | None
    """The record in force at `start`; None where the memory did not exist yet, or was deleted."""
    after: HistoryRecord | None
    """The record in force at `end`; None as above."""
    between: Sequence[HistoryRecord]
    """The records after the earlier moment, up to the later one, in the order of recording.

    Where `end` is the earlier moment, these are the changes to take back.
    """

    @property
    def old_memory(self) -> str | None:
        """What the memory said at the first moment."""
        return None if self.before is None else self.before.new_memory

    @property
    def new_memory(self) -> str | None:
        """What the memory said at the second moment."""
        return None if self.after is None else self.after.new_memory


@dataclass(frozen=True, slots=True)
class Restoration:
    """What restoring takes: the memory's latest record, and the one whose text it brings back.

    `owner` is whose the memory is, where that is known elsewhere and not here.
    """

    latest: HistoryRecord
    wanted: HistoryRecord
    owner: Owner | None = None

    @property
    def wanted_text(self) -> str:
        """What the memory said at that moment."""
        return self.wanted.new_memory or ""

    @property
    def is_needed(self) -> bool:
        """Return whether the memory says something else now, has other metadata, or is deleted."""
        latest, wanted = self.latest, self.wanted
        return (
            not is_alive(latest)
            or latest.new_memory != wanted.new_memory
            or wanted.context not in (None, latest.context)
        )

    def record(self, actor_id: str | None, role: str | None) -> dict[str, Any]:
        """Return the columns to record: of an UPDATE, or of an ADD where the memory is deleted."""
        known = {
            "memory_id": self.latest.memory_id,
            "new_memory": self.wanted.new_memory,
            "actor_id": actor_id,
            "role": role,
            "owner": self.owner,
            "context": self.wanted.context,
        }
        if not is_alive(self.latest):
            return {**known, "event": Event.ADD}
        return {
            **known,
            "event": Event.UPDATE,
            "old_memory": self.latest.new_memory,
            "created_at": made_at(self.latest),
        }


def check_moment(name: str, value: object) -> Moment:
    """Return `value` if it can name a moment of a memory's life.

    Raises:
        InvalidInput: it is neither an aware datetime nor a version number.
    """
    if type(value) is int:
        if value < 1:
            raise InvalidInput(f"{name} must be at least 1, the version of the ADD, not {value}")
        return value
    return check_instant(name, value, " or a version number (1 is the ADD)")


def check_instant(name: str, value: object, alternative: str = "") -> datetime:
    """Return `value` if it is an aware datetime.

    Raises:
        InvalidInput: it is not.
    """
    if not isinstance(value, datetime) or not is_aware(value):
        raise InvalidInput(
            f"{name} must be a datetime with a time zone{alternative}, not {value!r}"
        )
    return value


def last_change_at(records: Sequence[HistoryRecord], when: Moment) -> HistoryRecord | None:
    """Return a memory's last record at a moment, which may be a DELETE; None where there is none.

    Args:
        records: all of the memory's, oldest first.
    """
    if isinstance(when, int):
        return records[when - 1] if when <= len(records) else None
    place = _place_in_time(records, when)
    return records[place] if place >= 0 else None


def state_at(
    memory_id: str, records: Sequence[HistoryRecord], when: Moment
) -> HistoryRecord | None:
    """Return the record in force at a moment; None where the memory was not there.

    Args:
        records: all of the memory's, oldest first.

    Raises:
        InvalidInput: there is no such version.
    """
    place = _place(memory_id, records, when)
    return records[place] if place >= 0 and is_alive(records[place]) else None


def diff_of(
    memory_id: str, records: Sequence[HistoryRecord], start: Moment, end: Moment
) -> MemoryDiff:
    """Return how a memory differs between two moments. Arguments and errors: as `state_at`."""
    first, last = sorted(_place(memory_id, records, when) for when in (start, end))
    return MemoryDiff(
        memory_id=memory_id,
        before=state_at(memory_id, records, start),
        after=state_at(memory_id, records, end),
        between=tuple(records[first + 1 : last + 1]),
    )


def can_be_restored(record: HistoryRecord | None) -> TypeGuard[HistoryRecord]:
    """Return whether a memory's last record at a moment says what to bring back."""
    return record is not None and is_alive(record) and record.new_memory is not None


def restoration(memory_id: str, to: Moment, actor_id: str | None) -> StoreOperation:
    """Return what the store logs of a memory that is restored."""
    moment = to if isinstance(to, int) else in_utc(to).isoformat()
    return new_operation("restore", {"memory_id": memory_id, "to": moment}, actor_id=actor_id)


def restoration_of(memory_id: str, records: Sequence[HistoryRecord], to: Moment) -> Restoration:
    """Return what brings a memory back to what it said at a moment.

    Raises:
        InvalidInput: the memory is unknown, was not there then, or its text is not in the history.
    """
    if not records:
        raise InvalidInput(f"there is no history of {memory_id!r}, so nothing to restore")
    wanted = state_at(memory_id, records, to)
    if wanted is None:
        was = "did not exist yet" if _place(memory_id, records, to) < 0 else "was deleted"
        raise InvalidInput(f"{memory_id!r} {was} at {_shown(to)}; restore to when it was there")
    if wanted.new_memory is None:
        raise InvalidInput(
            f"what {memory_id!r} said at {_shown(to)} is not in its history; restore to another "
            "version"
        )
    return Restoration(records[-1], wanted)


class RestorationTarget(Protocol):
    """What restoring takes of a history manager."""

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]:
        """Append records if nothing came after `if_latest`."""


async def append_restoration(
    history: RestorationTarget, plan: Restoration, actor_id: str | None, role: str | None
) -> HistoryRecord:
    """Append what restoring takes and return it; the memory's latest record where that is nothing.

    Raises:
        HistoryConflict: the memory changed since its history was read.
    """
    if not plan.is_needed:
        return plan.latest
    (record,) = await history.batch_add_history(
        [plan.record(actor_id, role)], if_latest=plan.latest
    )
    return record


async def records_of(
    pages: AsyncIterator[Sequence[HistoryRecord]], check: Callable[[], object]
) -> AsyncIterator[HistoryRecord]:
    """Yield the records of pages, one by one.

    Args:
        check: raises where a page may not be read: the manager is closed, or another loop's.
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
    """Yield the record in force at an instant, or the latest, of each memory that was there then.

    Args:
        newest_first: all records of the memories, the last recorded first. What it takes is kept
            of the memories: their ids.
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
        if has_details(record, (), cause):
            yield record


def _place(memory_id: str, records: Sequence[HistoryRecord], when: Moment) -> int:
    """Return the index of the last record of a moment or before; -1 where there is none.

    Raises:
        InvalidInput: there is no such version.
    """
    if isinstance(when, int):
        if when > len(records):
            many = "1 version" if len(records) == 1 else f"{len(records):,} versions"
            raise InvalidInput(f"{memory_id!r} has {many}, there is no version {when}")
        return when - 1
    return _place_in_time(records, when)


def _place_in_time(records: Sequence[HistoryRecord], when: datetime) -> int:
    """Return the index of the last record of an instant or before; -1 where there is none.

    Clocks step back, so the last in order counts, not the latest in time. A record without a time
    has that of the one before it; one without a known time was always there.
    """
    place = -1
    instant: datetime | None = None
    for index, record in enumerate(records):
        instant = record.occurred_at or instant
        if instant is None or instant <= when:
            place = index
    return place


def _shown(when: Moment) -> str:
    return f"version {when}" if isinstance(when, int) else when.isoformat()


class StatesReader(Protocol):
    """What a database does to read all memories as they were at an instant.

    One statement finds where each memory's record is, and the connection is free again. What is
    kept of it are places as text, about eight bytes a memory.
    """

    async def find(self, when: datetime) -> Sequence[str]:
        """Return the places of the records in force at an instant, in the order of recording.

        Each text is a page: the places that share a quotient by `PAGE_PLACES`, joined by commas.
        """

    async def fetch(self, places: str) -> Sequence[HistoryRecord]:
        """Return the records of a page's places, in order; fewer where some are gone or moved."""


async def states_at(reader: StatesReader, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
    """Yield pages of the records in force at an instant, of the memories that were there.

    Raises:
        CursorGone: a record that was found is gone, or has moved.
    """
    for places in await reader.find(when):
        records = await reader.fetch(places)
        if len(records) <= places.count(","):
            raise CursorGone(
                "records that were found are gone or have moved (a reset, a removal, a rebuilt "
                "file); ask again"
            )
        yield records
