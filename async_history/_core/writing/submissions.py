"""Submissions: the checked changes of one call, written all or none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from async_history._core.operations.operations import LogEntry, actor_of
from async_history._core.reading.restoration import can_be_restored, restore_arguments
from async_history._core.reading.timeline import Moment
from async_history._core.records.messages import Message
from async_history._core.records.owners import Owner
from async_history._core.records.recording import RepeatedText, begun_at, repeated_text
from async_history._core.records.records import (
    OWNER,
    Event,
    Fields,
    HistoryRecord,
    Latest,
    MemoryState,
    give_owner,
    give_text,
    is_alive,
    made_at,
    made_record,
)
from async_history._core.writing.sizes import bytes_of

_UPDATE: Final = Event.UPDATE
_ALWAYS_COMPARED: Final = ("memory_id", "old_memory", "new_memory", "event")
NO_IDS: Final[Mapping[int, Mapping[str, Any]]] = {}
"""The value of `given` if every id is generated."""
_COMPARED_IF_GIVEN: Final = (
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
    "context",
)


class ExpectedLatest(NamedTuple):
    """The record that must be its memory's latest for a submission to be written.

    `text` is its new text as read, if the caller has read it: it must not have been erased since.
    """

    memory_id: str
    id: str
    text: str | None = None


@dataclass(slots=True, eq=False)
class AddRecords:
    """History records to append, in order. A repeated record is replaced by the stored one.

    `given` has, by index, the fields of records whose id the caller gave. A repeated id is the same
    record if these fields are the same. The cause is not compared: a retry may have another cause.

    Without `must_match_owner`, a record is written whatever its owner is: an owner that contradicts
    the memory's is omitted and logged. This is for changes that have already happened.
    """

    records: list[HistoryRecord]
    given: Mapping[int, Mapping[str, Any]]
    if_latest: ExpectedLatest | None
    record_count: int
    size_bytes: int
    must_match_owner: bool = field(default=True, kw_only=True)
    begun_at: datetime | None = field(default_factory=begun_at, kw_only=True)
    """When its operation began, if known."""
    repeats: RepeatedText | None = field(default_factory=repeated_text, kw_only=True)
    """The text that it records again, with `if_latest`: it must not have been erased since."""

    @property
    def wanted(self) -> Sequence[HistoryRecord]:
        """The records to write, unless they are already there."""
        return self.records

    @property
    def ids(self) -> Sequence[str]:
        return [record.id for record in self.wanted]

    @property
    def decided_by(self) -> str | None:
        """The memory whose latest record decides what is written, if any."""
        return None if self.if_latest is None else self.if_latest.memory_id

    @property
    def names_ids(self) -> bool:
        """Whether any id was given by the caller, and so may already exist."""
        return bool(self.given)

    def needs_record(self, state: MemoryState | None) -> bool:
        """Return whether the whole record is needed that decides, if its memory has this state.

        None: the state is not known.
        """
        return True

    def give_owners(self, owners: Sequence[Owner | None]) -> None:
        """Set the owner of each record whose memory has one."""
        for record, owner in zip(self.records, owners, strict=True):
            if owner is not None and record.owner is not owner:
                give_owner(record, owner)

    def is_same(self, index: int, stored: HistoryRecord) -> bool:
        """Return whether the stored record is the record at `index`.

        With a generated id it always is, even if erased since: an earlier try has written it.
        """
        given = self.given.get(index)
        if given is None:
            return True
        record = self.records[index]
        names = [name for name in _COMPARED_IF_GIVEN if given.get(name) is not None]
        return all(getattr(record, n) == getattr(stored, n) for n in (*_ALWAYS_COMPARED, *names))


@dataclass(slots=True, eq=False)
class CopyRecords(AddRecords):
    """Records of another history to append unchanged, in order, with any events and times.

    A stored record is the same only if all its columns are equal.
    """

    @property
    def names_ids(self) -> bool:
        return True

    @property
    def has_undated(self) -> bool:
        """Whether a record has no time, and its source has none either."""
        return any(record.occurred_at is None for record in self.records)

    def is_same(self, index: int, stored: HistoryRecord) -> bool:
        return self.records[index] == stored


class UpdateMemory(AddRecords):
    """A memory's new text, to be recorded as a change after its latest record.

    `new` has the text as an ADD. After the commit, `records` has the resulting record.
    """

    __slots__ = ("new",)

    if_latest = None
    record_count = 1
    must_match_owner = True
    repeats = None

    def __init__(
        self, new: HistoryRecord, size_bytes: int, given: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self.new = new
        self.records = [new]
        self.given = given
        self.size_bytes = size_bytes
        self.begun_at = begun_at()

    @property
    def wanted(self) -> Sequence[HistoryRecord]:
        return [self.new]

    @property
    def ids(self) -> Sequence[str]:
        # An earlier try may have found that another record already has the text.
        return list(dict.fromkeys((self.new.id, self.records[0].id)))

    @property
    def decided_by(self) -> str:
        return self.new.memory_id

    def is_text_of(self, latest: Latest) -> bool:
        """Return whether a memory that exists already has the text and context."""
        new = self.new
        return latest.new_memory == new.new_memory and (
            new.context is None or new.context == latest.context
        )

    def record_after(self, latest: Latest | None) -> HistoryRecord | None:
        """Return the record to append after `latest`; None if that already has the text."""
        new = self.new
        if latest is None or not is_alive(latest):
            return new
        if latest.new_memory == new.new_memory and self.is_text_of(latest):
            return None
        return made_record(
            new.id,
            new.memory_id,
            latest.new_memory,
            new.new_memory,
            _UPDATE,
            made_at(latest),
            new.created_at,
            False,
            new.actor_id,
            new.role,
            None,
            new.owner,
            new.context,
            new.cause,
        )

    def is_same(self, index: int, stored: HistoryRecord) -> bool:
        if index not in self.given:
            return True
        new = self.new
        changed_at = stored.created_at if stored.event == Event.ADD else stored.updated_at
        given = self.given[index]
        return (
            (stored.memory_id, stored.new_memory) == (new.memory_id, new.new_memory)
            and is_alive(stored)
            and (given.get("updated_at") is None or changed_at == new.created_at)
            and all(
                getattr(stored, name) == getattr(new, name)
                for name in ("actor_id", "role", "context")
                if given.get(name) is not None
            )
        )


class RestoreMemory(UpdateMemory):
    """A memory's text of a moment, to be restored.

    `new` has no text until the transaction finds it. Each try of a transaction finds it again,
    because it may have been erased since the last one. If it is not found, nothing is written. If a
    record is written, `log_entry` is added to the store's log.

    `to` is the moment for the transaction; `asked` is the caller's.
    """

    __slots__ = ("_expected", "asked", "to")

    given = NO_IDS

    def __init__(self, new: HistoryRecord, size_bytes: int, to: Moment) -> None:
        self.new = new
        self.records = [new]
        self.size_bytes = size_bytes
        self.begun_at = begun_at()
        self.to: Moment = to
        self.asked: Moment = to
        self._expected: str | None = None

    @property
    def wanted(self) -> Sequence[HistoryRecord]:
        return () if self.new.new_memory is None else [self.new]

    @property
    def is_found(self) -> bool:
        """Whether the memory's text was found."""
        return self.new.new_memory is not None

    def needs_record(self, state: MemoryState | None) -> bool:
        text = self.new.new_memory
        if text is None or state is None:
            return text is not None
        # A memory that has the text keeps its latest record, which is returned.
        return state.new_memory == text and not state.is_deleted and self.is_text_of(state)

    @property
    def is_decided(self) -> bool:
        """Whether the transaction found what to do, or an earlier try has done it."""
        return self.is_found or self.records[0] is not self.new

    @property
    def log_entry(self) -> LogEntry:
        """The log entry, after its record was written. It has the record's id and time."""
        new = self.new
        begun_at = new.created_at
        assert begun_at is not None  # noqa: S101 - a new text is an ADD, which has a time
        arguments = restore_arguments(new.memory_id, self.asked)
        return new.id, begun_at, actor_of(new.actor_id, new.cause), arguments

    def forget_text(self) -> None:
        """Forget the text that an earlier try has found."""
        give_text(self.new, None, None)
        self.records[:] = [self.new]

    def find(self, text: str | None, context: Mapping[str, Any] | None) -> None:
        """Use the memory's text and context of the moment."""
        if self._expected is None or text == self._expected:
            give_text(self.new, text, context)

    def find_in(self, then: HistoryRecord | None) -> None:
        """Use the text and context of the memory's last record as of the moment, if possible."""
        if can_be_restored(then):
            self.find(then.new_memory, then.context)

    def look_at(self, version: int, text: str | None) -> None:
        """Let the transaction find the text as that of a version, which the memory's records have
        shown to be its last one as of the moment.

        If the version has another text then, its text was erased or an earlier record was removed.
        """
        self.to, self._expected = version, text


@dataclass(slots=True, eq=False)
class SaveMessages:
    """Messages to append to a session scope's buffer, in order, each with an id.

    `newest_before` is the position of the last message at the first try.
    """

    messages: Sequence[Message]
    ids: Sequence[str]
    session_scope: str
    record_count: int
    size_bytes: int
    newest_before: int | None = None
    begun_at: datetime | None = field(default_factory=begun_at, kw_only=True)


@dataclass(slots=True, eq=False)
class GiveOwners:
    """Owners for memories with records but no owner. Existing owners are kept.

    After the commit, `given` has the memories whose owner is the one given here.
    """

    owners: Mapping[str, Owner]
    record_count: int
    size_bytes: int
    given: frozenset[str] = frozenset()

    @property
    def ids(self) -> Sequence[str]:
        """No ids: submitting it again changes nothing."""
        return ()


Submission = AddRecords | SaveMessages | GiveOwners


class AddFields(AddRecords):
    """One new record with a generated id. The record object is created when it is first read.

    Usually the caller reads it, after the commit. So a queued record is one object less for the
    garbage collector, and a batch's statement uses the fields directly.
    """

    __slots__ = ("_made", "fields")

    given = NO_IDS
    if_latest = None
    record_count = 1
    must_match_owner = True
    repeats = None

    def __init__(self, fields: Fields) -> None:
        self._made: list[HistoryRecord] | None = None
        self.fields = fields
        self.size_bytes = bytes_of(fields)
        self.begun_at = begun_at()

    @property
    def records(self) -> list[HistoryRecord]:  # type: ignore[override]
        """A list with the record, always the same list."""
        if self._made is None:
            self._made = [made_record(*self.fields)]
        return self._made

    def give_owners(self, owners: Sequence[Owner | None]) -> None:
        (owner,) = owners
        if owner is not None and owner is not self.fields[OWNER]:
            self.fields = (*self.fields[:OWNER], owner, *self.fields[OWNER + 1 :])
        if self._made is not None:
            super().give_owners(owners)
