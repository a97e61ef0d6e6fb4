"""Submissions from callers' arguments, with checks and an estimate of their bytes."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from sys import getsizeof
from typing import Any, Final

from async_history._core.reading.timeline import Moment, check_moment
from async_history._core.records.messages import MESSAGES_KEPT, Message, new_message_id
from async_history._core.records.new_records import fields_from_mapping, new_fields
from async_history._core.records.owners import GivenOwner, Owner
from async_history._core.records.records import DETAILS, Event, Fields, HistoryRecord, made_record
from async_history._core.records.values import check_name, check_text, check_time, now_text
from async_history._core.validation import check_iterable
from async_history._core.writing.sizes import RECORD_BYTES, bytes_of, record_bytes
from async_history._core.writing.submissions import (
    NO_IDS,
    AddFields,
    AddRecords,
    CopyRecords,
    ExpectedLatest,
    GiveOwners,
    RestoreMemory,
    SaveMessages,
    UpdateMemory,
)
from async_history.errors import InvalidInput

_ADD: Final = Event.ADD.value
_SLICE: Final = 500
"""Records checked before other tasks may run: about 2 ms."""


def one_record(
    fields: Fields,
    given: Mapping[str, Any] | None,
    if_latest: HistoryRecord | str | None,
) -> AddRecords:
    """Make a submission of one checked record.

    `given`: see `AddRecords`; None if the id was generated.

    Raises:
        InvalidInput: `if_latest` is neither a record nor an id.
    """
    if given is None and if_latest is None:
        return AddFields(fields)
    record = made_record(*fields)
    expected = None if if_latest is None else _expected(if_latest, [record])
    named = NO_IDS if given is None else {0: given}
    return AddRecords([record], named, expected, 1, bytes_of(fields))


def new_text(
    memory_id: str,
    new_memory: str,
    updated_at: datetime | str | None = None,
    *,
    actor_id: str | None,
    role: str | None,
    id: str | None = None,
    owner: GivenOwner | None = None,
    context: Mapping[str, Any] | None,
    cause: Mapping[str, str] | None = None,
) -> UpdateMemory:
    """Check a memory's new text.

    Raises:
        InvalidInput: a value cannot be stored as given.
    """
    check_text("new_memory", new_memory)
    if updated_at is not None:
        updated_at = check_time("updated_at", updated_at)
    fields = new_fields(
        memory_id,
        None,
        new_memory,
        _ADD,
        updated_at,
        actor_id=actor_id,
        role=role,
        id=id,
        owner=owner,
        context=context,
        cause=cause,
    )
    record = made_record(*fields)
    named = NO_IDS
    if id is not None:
        given = {"updated_at": updated_at, "actor_id": actor_id, "role": role, "context": context}
        named = {0: given}
    return UpdateMemory(record, bytes_of(fields), named)


def earlier_text(
    memory_id: str, to: Moment, *, actor_id: str | None, role: str | None
) -> RestoreMemory:
    """Check a request to restore a memory's text of a moment.

    Raises:
        InvalidInput: a value can't be used.
    """
    check_moment("to", to)
    fields = new_fields(memory_id, None, None, _ADD, actor_id=actor_id, role=role)
    record = made_record(*fields)
    return RestoreMemory(record, bytes_of(fields), to)


def owners_to_give(owners: Mapping[str, Owner]) -> GiveOwners:
    """Make a submission of checked owners by memory."""
    return GiveOwners(dict(owners), len(owners), len(owners) * RECORD_BYTES)


def checked_records(
    records: Iterable[HistoryRecord], *, must_match_owner: bool = True
) -> AddRecords:
    """Make a submission of new records that are checked and have generated ids."""
    added = list(records)
    size = sum(map(record_bytes, added))
    return AddRecords(added, {}, None, len(added), size, must_match_owner=must_match_owner)


class UncheckedRecords:
    """A caller's records, checked slice by slice; `records` has the checked ones.

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
        """Check the next slice; return the submission when none is left.

        Raises:
            InvalidInput: an item is not valid (with its index), or `if_latest` is an id and the
                records are of several memories.
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
            size += bytes_of(fields)
        self._size_bytes += size
        count = len(self.records)
        if count - start == _SLICE:
            return None
        expected = None if self._if_latest is None else _expected(self._if_latest, self.records)
        return AddRecords(self.records, self._given, expected, count, self._size_bytes)

    async def check(self) -> AddRecords:
        """Check the remaining records, yielding to the event loop after each slice.

        Raises:
            InvalidInput: as `check_slice`.
        """
        while True:
            submission = self.check_slice()
            if submission is not None:
                return submission
            await asyncio.sleep(0)


def records_to_copy(records: Sequence[HistoryRecord], size_bytes: int) -> CopyRecords:
    """Make a submission of checked records with `size_bytes` bytes of texts."""
    count = len(records)
    return CopyRecords(list(records), {}, None, count, count * RECORD_BYTES + size_bytes)


def messages_to_save(messages: Iterable[Mapping[str, Any] | Message], scope: str) -> SaveMessages:
    """Check a scope's new messages; keep only the last ones that fit the buffer.

    Raises:
        InvalidInput: a message is not valid (with its index).
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
    """Make a submission of a scope's checked new messages: the last ones, if there are too many.

    Their times are a microsecond apart, so that plain mem0, which orders by time, keeps their order
    too.
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
    """Check messages from another history, whose times are kept.

    Raises:
        InvalidInput: a store cannot hold a message; the scope is named.
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
    size = sum(RECORD_BYTES + getsizeof(message.content) for message in messages)
    ids = [new_message_id(message) for message in messages]
    return SaveMessages(messages, ids, scope, len(messages), size)


def _expected(if_latest: object, records: Sequence[HistoryRecord]) -> ExpectedLatest:
    """Return the record that must be the latest, and its memory: an id belongs to the records'
    memory.
    """
    if isinstance(if_latest, HistoryRecord):
        return ExpectedLatest(if_latest.memory_id, if_latest.id, if_latest.new_memory)
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
    return dict(item)
