"""What one call wants written, checked and weighed: all of it or none."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from sys import getsizeof
from typing import Any, Final

from async_history._core.json_object import json_text
from async_history._core.messages import Message, new_message_id
from async_history._core.owners import GivenOwner, Owner
from async_history._core.recording import begun_at
from async_history._core.records import (
    DETAILS,
    OWNER,
    Event,
    Fields,
    HistoryRecord,
    fields_from_mapping,
    fields_in_order,
    give_owner,
    is_alive,
    made_at,
    made_record,
    new_fields,
)
from async_history._core.validation import check_iterable
from async_history._core.values import check_name, check_text, check_time, now_text
from async_history.errors import InvalidInput

MESSAGES_KEPT: Final = 10
"""Messages kept of a session scope (mem0ai 2.x, `memory/storage.py`)."""

_RECORD_BYTES: Final = 1024
"""Memory a queued record takes besides its texts: objects, future, timer. An estimate;
benchmarks/peers.py holds what is really taken against the queue's limits."""
_CHARACTER_BYTES: Final = 4
"""Most memory a character takes in a str; names are short, so this bound is near enough."""
_SLICE: Final = 500
"""Records checked before the event loop gets its turn: about 2 ms."""
_ALWAYS_COMPARED: Final = ("memory_id", "old_memory", "new_memory", "event")
_COMPARED_IF_GIVEN: Final = (
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
    "context",
)


@dataclass(frozen=True, slots=True)
class ExpectedLatest:
    """The record that must be its memory's latest for a submission to be written."""

    memory_id: str
    id: str


@dataclass(slots=True, eq=False)
class AddRecords:
    """History records to append, in order. A repeated one is replaced by the one that is there.

    `given` holds a record's fields as the caller gave them, by its index, where the caller also
    gave the id: a repeated id is the same record if those fields are the same. Its cause is not
    compared: a call may be repeated for another reason.

    Where not `must_match_owner`, a record is written whatever owner it gives: one that contradicts
    its memory's is left out, with a line in the log. So are records of what has happened already.
    """

    records: list[HistoryRecord]
    given: Mapping[int, Mapping[str, Any]]
    if_latest: ExpectedLatest | None
    record_count: int
    size_bytes: int
    must_match_owner: bool = field(default=True, kw_only=True)
    begun_at: datetime | None = field(default_factory=begun_at, kw_only=True)
    """When the operation began that this is part of, where that is noted."""

    @property
    def wanted(self) -> Sequence[HistoryRecord]:
        """The records to write, where they are not there yet."""
        return self.records

    @property
    def ids(self) -> Sequence[str]:
        return [record.id for record in self.wanted]

    @property
    def decided_by(self) -> str | None:
        """The memory whose latest record decides what is written, if one does."""
        return None if self.if_latest is None else self.if_latest.memory_id

    @property
    def names_ids(self) -> bool:
        """Whether any id was given, and may be taken."""
        return bool(self.given)

    def give_owners(self, owners: Sequence[Owner | None]) -> None:
        """Set the owner of each record, where its memory has one."""
        for record, owner in zip(self.records, owners, strict=True):
            if owner is not None and record.owner is not owner:
                give_owner(record, owner)

    def is_same(self, index: int, stored: HistoryRecord) -> bool:
        """Return whether the stored record is what the record at `index` wants under its id.

        Under an id of ours it is, even if it was erased since: an earlier try has written it.
        """
        given = self.given.get(index)
        if given is None:
            return True
        record = self.records[index]
        names = [name for name in _COMPARED_IF_GIVEN if given.get(name) is not None]
        return all(getattr(record, n) == getattr(stored, n) for n in (*_ALWAYS_COMPARED, *names))


@dataclass(slots=True, eq=False)
class CopyRecords(AddRecords):
    """Records of another history to append as they are, in order, whatever their events and times.

    A record that is there is the same only if all its columns are.
    """

    @property
    def names_ids(self) -> bool:
        return True

    @property
    def has_undated(self) -> bool:
        """Whether a record does not say when it happened, and its source does not know."""
        return any(record.occurred_at is None for record in self.records)

    def is_same(self, index: int, stored: HistoryRecord) -> bool:
        return self.records[index] == stored


@dataclass(slots=True, eq=False)
class UpdateMemory(AddRecords):
    """A memory's new text, to be recorded as the change that follows its latest record.

    `new` holds it as an ADD, and `records`, once it is committed, what became of it.
    """

    new: HistoryRecord

    @property
    def wanted(self) -> Sequence[HistoryRecord]:
        return [self.new]

    @property
    def ids(self) -> Sequence[str]:
        # An earlier try may have found that another record says it already.
        return list(dict.fromkeys((self.new.id, self.records[0].id)))

    @property
    def decided_by(self) -> str:
        return self.new.memory_id

    def record_after(self, latest: HistoryRecord | None) -> HistoryRecord:
        """Return what to record after `latest`; that itself where it has the text already."""
        new = self.new
        if latest is None or not is_alive(latest):
            return new
        if latest.new_memory == new.new_memory and new.context in (None, latest.context):
            return latest
        return HistoryRecord(
            new.id,
            new.memory_id,
            latest.new_memory,
            new.new_memory,
            Event.UPDATE,
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


@dataclass(slots=True, eq=False)
class SaveMessages:
    """Messages to append to a session scope's buffer, in order, with an id each.

    `newest_before` is the place of the last message that was there when it was first tried.
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
    """Owners for memories that have records and no owner. Memories that have one keep it.

    `given` holds, once it is committed, the memories whose owner is the one named here.
    """

    owners: Mapping[str, Owner]
    record_count: int
    size_bytes: int
    given: frozenset[str] = frozenset()

    @property
    def ids(self) -> Sequence[str]:
        """No record's: to submit it again changes nothing."""
        return ()


Submission = AddRecords | SaveMessages | GiveOwners


def one_record(
    fields: Fields,
    given: Mapping[str, Any] | None,
    if_latest: HistoryRecord | str | None,
) -> AddRecords:
    """Make a submission of one checked record. `given`: see `AddRecords`, None if we named it.

    Raises:
        InvalidInput: `if_latest` is neither a record nor an id.
    """
    if given is None and if_latest is None:
        return AddFields(fields)
    record = made_record(*fields)
    expected = None if if_latest is None else _expected(if_latest, [record])
    named = _NO_IDS if given is None else {0: given}
    return AddRecords([record], named, expected, 1, _bytes_of(fields))


_NO_IDS: Final[Mapping[int, Mapping[str, Any]]] = {}


class AddFields(AddRecords):
    """One new record under an id of ours, which is made when somebody looks at it.

    As a rule that is its caller, when it is durable. So a queued one has one object less for the
    garbage collector to visit, and a batch's statement takes its fields as they are.
    """

    __slots__ = ("_made", "fields")

    given = _NO_IDS
    if_latest = None
    record_count = 1
    must_match_owner = True

    def __init__(self, fields: Fields) -> None:
        self._made: list[HistoryRecord] | None = None
        self.fields = fields
        self.size_bytes = _bytes_of(fields)
        self.begun_at = begun_at()

    @property
    def records(self) -> list[HistoryRecord]:  # type: ignore[override]
        """The record, in a list that is always the same."""
        if self._made is None:
            self._made = [made_record(*self.fields)]
        return self._made

    def give_owners(self, owners: Sequence[Owner | None]) -> None:
        (owner,) = owners
        if owner is not None:
            self.fields = (*self.fields[:OWNER], owner, *self.fields[OWNER + 1 :])
        if self._made is not None:
            super().give_owners(owners)


def new_text(
    memory_id: str,
    new_memory: str,
    updated_at: datetime | str | None,
    actor_id: str | None,
    role: str | None,
    id: str | None,
    owner: GivenOwner | None,
    context: Mapping[str, Any] | None,
    cause: Mapping[str, str] | None,
) -> UpdateMemory:
    """Check a memory's new text.

    Raises:
        InvalidInput: a value can't be stored as given.
    """
    check_text("new_memory", new_memory)
    if updated_at is not None:
        updated_at = check_time("updated_at", updated_at)
    fields = new_fields(
        memory_id,
        None,
        new_memory,
        Event.ADD,
        updated_at,
        actor_id=actor_id,
        role=role,
        id=id,
        owner=owner,
        context=context,
        cause=cause,
    )
    record = made_record(*fields)
    given = {"updated_at": updated_at, "actor_id": actor_id, "role": role, "context": context}
    named = {} if id is None else {0: given}
    return UpdateMemory([record], named, None, 1, _record_bytes(record), record)


def owners_to_give(owners: Mapping[str, Owner]) -> GiveOwners:
    """Make a submission of owners, which are checked, by memory."""
    return GiveOwners(dict(owners), len(owners), len(owners) * _RECORD_BYTES)


def checked_records(
    records: Iterable[HistoryRecord], *, must_match_owner: bool = True
) -> AddRecords:
    """Make a submission of new records that are checked and have ids of ours."""
    added = list(records)
    size = sum(map(_record_bytes, added))
    return AddRecords(added, {}, None, len(added), size, must_match_owner=must_match_owner)


class UncheckedRecords:
    """Records that a caller gave, to be checked a slice at a time; those that are, in `records`.

    Raises:
        InvalidInput: `if_latest` is neither a record nor an id.
    """

    def __init__(
        self,
        items: Iterable[HistoryRecord | Mapping[str, Any]],
        if_latest: HistoryRecord | str | None,
    ) -> None:
        if if_latest is not None:
            _expected(if_latest, [])
        check_iterable("records", items)
        self._items = enumerate(items)
        self._if_latest = if_latest
        self.records: list[HistoryRecord] = []
        self._given: dict[int, Mapping[str, Any]] = {}
        self._size_bytes = 0
        self._now = now_text()

    def check_slice(self) -> AddRecords | None:
        """Check the next few; return the submission once there are no more.

        Raises:
            InvalidInput: with the index of the item that can't be used; or `if_latest` is an id,
                and the records are of several memories.
        """
        start = len(self.records)
        size = 0
        for index, item in islice(self._items, _SLICE):
            try:
                given = item if type(item) is dict else _mapping_of(item)
                fields = fields_from_mapping(given, self._now)
            except InvalidInput as error:
                raise InvalidInput(f"record {index}: {error}") from error
            if given.get("id") is not None:
                self._given[index] = dict(given)
            self.records.append(made_record(*fields))
            size += _bytes_of(fields)
        self._size_bytes += size
        count = len(self.records)
        if count - start == _SLICE:
            return None
        expected = None if self._if_latest is None else _expected(self._if_latest, self.records)
        return AddRecords(self.records, self._given, expected, count, self._size_bytes)

    async def check(self) -> AddRecords:
        """Check those that are left, giving the event loop its turn after each slice.

        Raises:
            InvalidInput: as `check_slice`.
        """
        while True:
            submission = self.check_slice()
            if submission is not None:
                return submission
            await asyncio.sleep(0)


def records_to_copy(records: Sequence[HistoryRecord], size_bytes: int) -> CopyRecords:
    """Make a submission of checked records, whose texts take `size_bytes`."""
    count = len(records)
    return CopyRecords(list(records), {}, None, count, count * _RECORD_BYTES + size_bytes)


def messages_to_save(messages: Iterable[Mapping[str, Any] | Message], scope: str) -> SaveMessages:
    """Check a scope's new messages; of more than the buffer keeps, the last ones.

    Raises:
        InvalidInput: with the index of the message that can't be used.
    """
    check_name("session_scope", scope)
    check_iterable("messages", messages)
    checked: list[Message] = []
    for index, item in enumerate(messages):
        given = item.as_dict() if isinstance(item, Message) else item
        if not isinstance(given, Mapping):
            raise InvalidInput(
                f"message {index}: must be a mapping or a Message, not {type(item).__name__}"
            )
        texts: dict[str, str | None] = {}
        for name in ("role", "content", "name"):
            value = given.get(name)
            try:
                texts[name] = None if value is None else check_text(name, value)
            except InvalidInput as error:
                raise InvalidInput(f"message {index}: {error}") from error
        is_json = isinstance(item, Message) and item.is_json
        checked.append(Message(**texts, is_json=is_json))
    return checked_messages(checked, scope)


def checked_messages(messages: Sequence[Message], scope: str) -> SaveMessages:
    """Make a submission of a scope's new messages, which are checked; the last ones, if too many.

    Each gets an instant of its own, a microsecond apart, so that plain mem0, which orders by
    time, keeps them in order too.
    """
    now = datetime.now(UTC)
    kept = [
        replace(
            message,
            created_at=(now + timedelta(microseconds=index)).isoformat(timespec="microseconds"),
        )
        for index, message in enumerate(messages[-MESSAGES_KEPT:])
    ]
    return _saved(kept, scope)


def messages_to_copy(messages: Sequence[Message], scope: str) -> SaveMessages:
    """Check messages that were read from another history, whose times stay as they are.

    Raises:
        InvalidInput: naming the scope, where a store can't hold one.
    """
    for message in messages:
        for name, value in message.as_dict().items():
            try:
                if value is not None:
                    check_text(name, value)
            except InvalidInput as error:
                raise InvalidInput(
                    f"a message of scope {scope!r} can't be copied: {error}"
                ) from error
    return _saved(messages, scope)


def _saved(messages: Sequence[Message], scope: str) -> SaveMessages:
    size = sum(_RECORD_BYTES + getsizeof(message.content) for message in messages)
    ids = [new_message_id(message) for message in messages]
    return SaveMessages(messages, ids, scope, len(messages), size)


def _expected(if_latest: object, records: Sequence[HistoryRecord]) -> ExpectedLatest:
    """Return which record must be the latest of which memory: an id is of the records' memory."""
    if isinstance(if_latest, HistoryRecord):
        return ExpectedLatest(if_latest.memory_id, if_latest.id)
    if not isinstance(if_latest, str):
        raise InvalidInput(
            "if_latest must be a HistoryRecord that was read, or its id, not "
            f"{type(if_latest).__name__}"
        )
    record_id = check_name("if_latest", if_latest)
    memory_ids = {record.memory_id for record in records}
    if len(memory_ids) > 1:
        raise InvalidInput(
            "if_latest must be a HistoryRecord where the records are of several memories: an id "
            "does not say which of them is meant"
        )
    return ExpectedLatest(next(iter(memory_ids), ""), record_id)


def _mapping_of(item: HistoryRecord | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(item, HistoryRecord):
        return {**item.as_dict(), **{name: getattr(item, name) for name in DETAILS}}
    if not isinstance(item, Mapping):
        raise InvalidInput(f"must be a HistoryRecord or a mapping, not {type(item).__name__}")
    return item


def _record_bytes(record: HistoryRecord) -> int:
    return _bytes_of(fields_in_order(record))


def _bytes_of(fields: Fields) -> int:
    _, memory_id, old, new, _, _, _, _, actor_id, role, _, _, context, cause = fields
    # `__sizeof__` takes a third of the time of `getsizeof`, which is the same for texts.
    size: int = (
        _RECORD_BYTES + old.__sizeof__() + new.__sizeof__() + _CHARACTER_BYTES * len(memory_id)
    )
    if actor_id is not None:
        size += _CHARACTER_BYTES * len(actor_id)
    if role is not None:
        size += _CHARACTER_BYTES * len(role)
    if context is not None:
        size += json_text(context).__sizeof__()
    if cause is not None:
        size += json_text(cause).__sizeof__()
    return size
