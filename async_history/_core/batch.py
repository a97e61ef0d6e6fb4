"""The commit of a batch in steps inside one transaction, the same for every database.

Backends have a faster path for batches that only add new records. This one is for all others:
existing ids, changes that depend on a memory's latest record, messages, and rows that the database
refuses. It takes a few statements, whatever the number of submissions. Each submission sees what
those before it in the batch write.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from async_history._core.erased_names import (
    MEMORY,
    Name,
    names_in,
    require_not_erased,
    require_session_not_erased,
)
from async_history._core.messages import MESSAGES_KEPT
from async_history._core.operations import StoreOperation
from async_history._core.owners import Owner
from async_history._core.records import DETAILS, Fields, HistoryRecord, fields_in_order
from async_history._core.submissions import (
    AddFields,
    AddRecords,
    ExpectedLatest,
    GiveOwners,
    RestoreMemory,
    SaveMessages,
    Submission,
    UpdateMemory,
)
from async_history._core.timeline import MemoryMoment
from async_history._core.wording import counted
from async_history.errors import (
    Erased,
    HistoryConflict,
    HistoryError,
    IdConflict,
    OwnerConflict,
    StorageError,
)


@dataclass(frozen=True, slots=True)
class Buffer:
    """The stored messages of a session scope: their number, the first and last position in the
    order of saving, and which of the submissions' last messages are among them."""

    count: int
    oldest: int
    newest: int
    there: Set[str]


_log = logging.getLogger("async_history")

MessageRow = tuple[str, str, str | None, str | None, str | None, str | None]
"""The columns of a message: id, session_scope, role, content, name and created_at."""

_EMPTY: Final = Buffer(0, 0, 0, frozenset())


def only_new_records(batch: Sequence[Submission]) -> Sequence[AddRecords] | None:
    """Return a batch's submissions if all of them only add records; otherwise None."""
    additions = [s for s in batch if isinstance(s, AddRecords) and s.decided_by is None]
    return additions if len(additions) == len(batch) else None


def records_of(additions: Iterable[AddRecords]) -> list[HistoryRecord]:
    """Return the records of submissions, in order."""
    return [record for submission in additions for record in submission.records]


def fields_of(additions: Iterable[AddRecords]) -> Iterator[Fields]:
    """Yield the fields of submissions' records, in order, without creating the records."""
    for submission in additions:
        if type(submission) is AddFields:
            yield submission.fields
        else:
            yield from map(fields_in_order, submission.records)


def have_details(additions: Iterable[AddRecords]) -> bool:
    """Return whether any record has values outside mem0's columns."""
    for submission in additions:
        if type(submission) is AddFields:
            if submission.fields[-len(DETAILS) :] != _NO_DETAILS:
                return True
        elif any(map(has_details, submission.records)):
            return True
    return False


def has_details(record: HistoryRecord) -> bool:
    """Return whether a record has values outside mem0's columns."""
    return record.owner is not None or record.cause is not None or record.context is not None


_NO_DETAILS: Final = (None,) * len(DETAILS)


def ids_of(additions: Iterable[AddRecords]) -> list[str]:
    """Return the ids of submissions' records, in order."""
    return [record_id for submission in additions for record_id in submission.ids]


def ids_to_find(additions: Iterable[AddRecords], *, is_repeated: bool) -> list[str]:
    """Return the ids of submissions' records that may be stored.

    An id that was generated for a submission is only stored if an earlier try has written it.

    Args:
        is_repeated: whether an earlier try of the batch may have been committed.
    """
    return ids_of(one for one in additions if is_repeated or one.names_ids)


def message_rows(submissions: Iterable[SaveMessages]) -> list[MessageRow]:
    """Return the rows of submissions' messages, in order."""
    return [
        (message_id, submission.session_scope, m.role, m.content, m.name, m.created_at)
        for submission in submissions
        for message_id, m in zip(submission.ids, submission.messages, strict=True)
    ]


class BatchTransaction(Protocol):
    """The steps of a database inside the transaction."""

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records with the ids of these submissions."""

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""

    async def last_changes(
        self, asked: Sequence[MemoryMoment]
    ) -> Mapping[MemoryMoment, HistoryRecord | None]:
        """Return memories' last records as of moments: see `last_change_at`.

        None also if that needs all records of a memory.
        """

    async def owners(self, records: Sequence[HistoryRecord]) -> Mapping[str, Owner]:
        """Return the owners of these records' memories, where they have one."""

    async def erased(self, names: Sequence[Name]) -> Mapping[Name, datetime]:
        """Return when erased ones of these names were erased: see `EraseTransaction.note`."""

    async def buffers(self, submissions: Sequence[SaveMessages]) -> Mapping[str, "Buffer"]:
        """Return the stored buffers of these submissions' scopes."""

    def undone_if_refused(self) -> AbstractAsyncContextManager[None]:
        """Provide a savepoint, rolled back if the database refuses a write of the body.

        Raises:
            StorageError: the database refused a write. Any other error is one of the whole batch.
        """

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[SaveMessages],
        owners: Mapping[str, Owner],
    ) -> None:
        """Write records and messages, in order.

        Args:
            owners: new owners of memories that had none. Such a memory may already have records,
                and may have none in `records`.
        """

    async def enter(self, operations: Sequence[StoreOperation]) -> None:
        """Add operations to the store's log; the written records end them."""


async def commit_in_steps(
    batch: Sequence[Submission], steps: BatchTransaction
) -> Mapping[int, HistoryError]:
    """Write a batch in the caller's transaction; return the refused submissions by index."""
    additions = [submission for submission in batch if isinstance(submission, AddRecords)]
    messages = [submission for submission in batch if isinstance(submission, SaveMessages)]
    existing = await steps.existing(additions) if additions else ()
    known = {record.id: record for record in existing}
    latest: dict[str, HistoryRecord | None] = {
        one.decided_by: None for one in additions if one.decided_by is not None
    }
    gifts: dict[str, Owner] = {}
    for submission in batch:
        if isinstance(submission, GiveOwners):
            gifts |= submission.owners
    latest |= dict.fromkeys(gifts)
    found = await steps.latest(list(latest)) if latest else ()
    latest |= {one.memory_id: one for one in found}
    restored = [one for one in additions if isinstance(one, RestoreMemory)]
    if restored:
        then = await steps.last_changes([(one.decided_by, one.to) for one in restored])
        for one in restored:
            one.find(then[one.decided_by, one.to])
    wanted = [record for submission in additions for record in submission.wanted]
    wanted += [replace(one, owner=gifts[one.memory_id]) for one in found if one.memory_id in gifts]
    owners = await steps.owners(wanted) if wanted else {}
    unsaved = _unsaved(messages, await steps.buffers(messages)) if messages else set()
    names = names_in(batch)
    erased = await steps.erased(names) if names else {}
    decided = _Decided(steps, known, latest, owners, unsaved, erased)
    await decided.write(list(enumerate(batch)))
    return decided.refused


class _Decided:
    """The state of a batch's submissions so far.

    Args:
        known: the existing records, by id.
        latest: the latest record of each memory that a submission depends on; None: no record.
        owners: the memories' owners, where they have one.
        unsaved: the messages to save.
        erased: the erased names.
    """

    def __init__(
        self,
        steps: BatchTransaction,
        known: dict[str, HistoryRecord],
        latest: dict[str, HistoryRecord | None],
        owners: Mapping[str, Owner],
        unsaved: set[SaveMessages],
        erased: Mapping[Name, datetime],
    ) -> None:
        self.refused: dict[int, HistoryError] = {}
        self._steps = steps
        self._known = known
        self._latest = latest
        self._owners = owners
        self._unsaved = unsaved
        self._erased = erased

    async def write(self, part: Sequence[tuple[int, Submission]]) -> None:
        """Plan and write a part of the batch, assuming that the database refuses none of it.

        If the database refuses it, the part is rolled back, and its halves are planned and written
        one after the other, until the refused submissions are found.
        """
        plan = _Plan(dict(self._known), dict(self._latest), self._owners, self._erased)
        for index, submission in part:
            if isinstance(submission, AddRecords):
                plan.add(index, submission)
            elif isinstance(submission, GiveOwners):
                plan.give(submission)
            elif submission in self._unsaved:
                plan.save(index, submission)
        try:
            if plan.records or plan.messages or plan.new_owners:
                async with self._steps.undone_if_refused():
                    records = plan.owned(plan.records)
                    await self._steps.write(records, plan.messages, plan.new_owners)
                    if plan.operations:
                        await self._steps.enter(plan.operations)
        except StorageError as error:
            if len(part) == 1:
                self.refused[part[0][0]] = error
                return
            half = len(part) // 2
            await self.write(part[:half])
            await self.write(part[half:])
        else:
            self._known, self._latest = plan.known, plan.latest
            self._owners = {**self._owners, **plan.new_owners}
            self.refused |= plan.refused
            for gift, given in plan.given:
                gift.given = given
            for submission, outcome in plan.outcomes:
                submission.records[:] = plan.owned(outcome)
            if plan.left_out:
                _log_left_out(plan.left_out)


class _Plan:
    """What to write for some submissions, and what is known afterwards."""

    def __init__(
        self,
        known: dict[str, HistoryRecord],
        latest: dict[str, HistoryRecord | None],
        owners: Mapping[str, Owner],
        erased: Mapping[Name, datetime],
    ) -> None:
        self.known = known
        self.latest = latest
        self.new_owners: dict[str, Owner] = {}
        self._owners = owners
        self._erased = erased
        self.records: list[HistoryRecord] = []
        self.messages: list[SaveMessages] = []
        self.operations: list[StoreOperation] = []
        self.refused: dict[int, HistoryError] = {}
        self.left_out: list[OwnerConflict] = []
        self.given: list[tuple[GiveOwners, frozenset[str]]] = []
        self.outcomes: list[tuple[AddRecords, Sequence[HistoryRecord]]] = []
        self._now = datetime.now(UTC)

    def add(self, index: int, submission: AddRecords) -> None:
        """Plan to write the missing records of a submission, or refuse it."""
        if not submission.wanted:
            return  # the text to restore was not found
        try:
            if isinstance(submission, UpdateMemory):
                outcome, missing = self._update(submission)
            else:
                outcome, missing = self._outcome(submission)
            if missing and submission.if_latest is not None:
                self._require_latest(submission.if_latest)
            if self._erased:
                require_not_erased(submission, missing, self._erased)
            owners, left_out = self._owners_given(missing, submission)
        except (IdConflict, HistoryConflict, OwnerConflict, Erased) as error:
            self.refused[index] = error
            return
        self.new_owners |= owners
        self.left_out += left_out
        self.outcomes.append((submission, outcome))
        self.records += missing
        if missing and isinstance(submission, RestoreMemory):
            self.operations.append(submission.operation(self._now))
        for record in missing:
            self.known[record.id] = record
            if record.memory_id in self.latest:
                self.latest[record.memory_id] = record

    def give(self, submission: GiveOwners) -> None:
        """Plan to give owners to the memories that have a record but no owner."""
        given: set[str] = set()
        for memory_id, owner in submission.owners.items():
            names = ((MEMORY, memory_id), *owner.as_dict().items())
            if any(name in self._erased for name in names):
                continue
            if self._owner(memory_id) is None and self.latest.get(memory_id) is not None:
                self.new_owners[memory_id] = owner
            if self._owner(memory_id) == owner:
                given.add(memory_id)
        self.given.append((submission, frozenset(given)))

    def save(self, index: int, submission: SaveMessages) -> None:
        """Plan to save messages, or refuse them."""
        try:
            require_session_not_erased(submission, self._erased)
        except Erased as error:
            self.refused[index] = error
        else:
            self.messages.append(submission)

    def _outcome(
        self, submission: AddRecords
    ) -> tuple[Sequence[HistoryRecord], Sequence[HistoryRecord]]:
        """Return a submission's records as they will be, and those that are not stored yet.

        Raises:
            IdConflict: a record with the same id has other content.
        """
        outcome: list[HistoryRecord] = []
        missing: dict[str, HistoryRecord] = {}
        for index, wanted in enumerate(submission.records):
            there = self.known.get(wanted.id) or missing.get(wanted.id)
            if there is None:
                there = missing[wanted.id] = wanted
            else:
                _require_same(submission, index, there)
            outcome.append(there)
        return outcome, list(missing.values())

    def _update(
        self, submission: UpdateMemory
    ) -> tuple[Sequence[HistoryRecord], Sequence[HistoryRecord]]:
        """Return the same as `_outcome` for a memory's new text.

        Raises:
            IdConflict: as `_outcome`.
        """
        new = submission.new
        there = self.known.get(new.id)
        if there is not None:
            _require_same(submission, 0, there)
            return [there], ()
        # If an earlier try took effect, its record is stored.
        earlier = self.known.get(submission.records[0].id)
        if earlier is not None:
            return [earlier], ()
        latest = self.latest[new.memory_id]
        record = submission.record_after(latest)
        return [record], () if record is latest else (record,)

    def _owner(self, memory_id: str) -> Owner | None:
        return self._owners.get(memory_id) or self.new_owners.get(memory_id)

    def owned(self, records: Sequence[HistoryRecord]) -> Sequence[HistoryRecord]:
        """Return records with their memories' owners."""
        if not self._owners and not self.new_owners:
            return records  # none of them has an owner
        owners = [self._owner(record.memory_id) for record in records]
        return [
            record if record.owner == owner else replace(record, owner=owner)
            for record, owner in zip(records, owners, strict=True)
        ]

    def _owners_given(
        self, records: Sequence[HistoryRecord], submission: AddRecords
    ) -> tuple[dict[str, Owner], Sequence[OwnerConflict]]:
        """Return the owners that these records give to memories that have none.

        Also return the conflicts of records whose owners are left out.

        Raises:
            OwnerConflict: a record of a submission with `must_match_owner` has another owner than
                its memory.
        """
        given: dict[str, Owner] = {}
        left_out: list[OwnerConflict] = []
        for record in records:
            if record.owner is None:
                continue
            owner = self._owner(record.memory_id) or given.setdefault(
                record.memory_id, record.owner
            )
            differing = owner.contradictions(record.owner)
            if differing:
                conflict = OwnerConflict(record.memory_id, differing)
                if submission.must_match_owner:
                    raise conflict
                left_out.append(conflict)
        return given, left_out

    def _require_latest(self, expected: ExpectedLatest) -> None:
        latest = self.latest[expected.memory_id]
        if latest is None or latest.id != expected.id:
            raise HistoryConflict(
                f"record {expected.id} is not the latest of memory {expected.memory_id!r}, "
                f"{'which has none' if latest is None else latest.id + ' is'}; nothing was "
                "written, read again and decide"
            )


def _require_same(submission: AddRecords, index: int, there: HistoryRecord) -> None:
    """Check that the stored record with an id is the one that the submission wants there.

    Raises:
        IdConflict: it has other content.
    """
    if not submission.is_same(index, there):
        raise IdConflict(
            f"id {there.id} is taken by a record with other content; nothing of the submission "
            "was written. Leave the id out to get a fresh one"
        )


def _log_left_out(conflicts: Sequence[OwnerConflict]) -> None:
    first = conflicts[0]
    _log.warning(
        "%s without the given owner: memory %r has an owner with another %s, or without it, and an "
        "owner is given once",
        counted(len(conflicts), "record was written", "records were written"),
        first.memory_id,
        " and ".join(first.scopes),
    )


def _unsaved(
    submissions: Sequence[SaveMessages], buffers: Mapping[str, Buffer]
) -> set[SaveMessages]:
    """Return the submissions that an earlier try of this batch has not saved.

    A stored one was saved together with all before it, even if those were evicted since. One that
    is not stored may have been evicted, if the buffer is full of messages saved since the first
    try. Then it counts as saved: it could have been saved and evicted meanwhile.
    """
    unsaved: set[SaveMessages] = set()
    done: set[str] = set()
    for submission in reversed(submissions):
        scope = submission.session_scope
        buffer = buffers.get(scope, _EMPTY)
        if submission.ids[-1] in buffer.there or _is_pushed_out(submission, buffer):
            done.add(scope)
        if scope not in done:
            unsaved.add(submission)
        if submission.newest_before is None:
            submission.newest_before = buffer.newest
    return unsaved


def _is_pushed_out(submission: SaveMessages, buffer: Buffer) -> bool:
    before = submission.newest_before
    return before is not None and buffer.count >= MESSAGES_KEPT and buffer.oldest > before
