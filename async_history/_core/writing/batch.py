"""The commit of a batch in steps inside one transaction, the same for every database.

Backends have a faster path for batches that only add new records. This one is for all others:
existing ids, changes that depend on a memory's latest record, messages, and rows that the database
refuses. It takes a few statements, whatever the number of submissions. Each submission sees what
those before it in the batch write.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from async_history._core.operations.operations import LogEntries
from async_history._core.records.owners import Owner
from async_history._core.records.records import HistoryRecord, Latest, MemoryState
from async_history._core.writing.batch_plan import Plan
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import Buffer, unsaved
from async_history._core.writing.submissions import (
    AddRecords,
    GiveOwners,
    RestoreMemory,
    SaveMessages,
    Submission,
)
from async_history.errors import HistoryError, StorageError


class BatchTransaction(Protocol):
    """The steps of a database inside the transaction."""

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records with the ids of these submissions."""

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""

    async def find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        """Find the texts to restore, and return the states of some of these memories.

        `RestoreMemory.find` is called unless there is no text, or finding it needs all records of
        the memory. The latest records of the other memories are asked for.
        """

    async def owners(self, records: Sequence[HistoryRecord]) -> Mapping[str, Owner]:
        """Return the owners of these records' memories, where they have one."""

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        """Return those of `names_in(batch)` that were erased, each with the instant: see
        `EraseTransaction.note`."""

    async def buffers(self, submissions: Sequence[SaveMessages]) -> Mapping[str, Buffer]:
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

    async def enter(self, entries: LogEntries) -> None:
        """Add operations to the store's log; the written records end them."""


async def commit_in_steps(
    batch: Sequence[Submission], steps: BatchTransaction
) -> Mapping[int, HistoryError]:
    """Write a batch in the caller's transaction; return the refused submissions by index."""
    additions: list[AddRecords] = []
    messages: list[SaveMessages] = []
    given_owners: dict[str, Owner] = {}
    for submission in batch:
        if isinstance(submission, AddRecords):
            additions.append(submission)
        elif isinstance(submission, SaveMessages):
            messages.append(submission)
        else:
            given_owners |= submission.owners
    restored = [one for one in additions if isinstance(one, RestoreMemory)]
    for one in restored:
        if one.is_found:
            one.forget_text()
    existing = await steps.existing(additions) if additions else ()
    known = {record.id: record for record in existing}
    states = await steps.find_texts(restored) if restored else {}
    deciding = [
        name
        for one in additions
        if (name := one.decided_by) is not None and one.needs_record(states.get(name))
    ]
    unread = list(dict.fromkeys([*deciding, *given_owners]))
    records = await steps.latest(unread) if unread else ()
    whole = {record.memory_id: record for record in records}
    latest = {**states, **dict.fromkeys(unread), **whole}
    wanted = [record for submission in additions for record in submission.wanted]
    wanted += [
        replace(one, owner=given_owners[name])
        for name, one in whole.items()
        if name in given_owners
    ]
    owners = await steps.owners(wanted) if wanted else {}
    to_save = unsaved(messages, await steps.buffers(messages)) if messages else set()
    erased = await steps.erased(batch)
    decided = _Decided(batch, steps, known, latest, owners, to_save, erased)
    await decided.write(range(len(batch)))
    return decided.refused


class _Decided:
    """The state of a batch's submissions so far.

    Args:
        known: the existing records, by id.
        latest: the latest record of each memory that a submission depends on, or its state if that
            is all that is needed; None: no record.
        owners: the memories' owners, where they have one.
        unsaved: the messages to save.
        erased: the erased names.
    """

    def __init__(
        self,
        batch: Sequence[Submission],
        steps: BatchTransaction,
        known: dict[str, HistoryRecord],
        latest: dict[str, Latest | None],
        owners: Mapping[str, Owner],
        unsaved: set[SaveMessages],
        erased: Mapping[Name, datetime],
    ) -> None:
        self.refused: dict[int, HistoryError] = {}
        self._batch = batch
        self._steps = steps
        self._known = known
        self._latest = latest
        self._owners = owners
        self._unsaved = unsaved
        self._erased = erased

    async def write(self, part: range) -> None:
        """Plan and write a part of the batch, assuming that the database refuses none of it.

        If the database refuses it, the part is rolled back, and its halves are planned and written
        one after the other, until the refused submissions are found.
        """
        plan = Plan(dict(self._known), dict(self._latest), self._owners, self._erased)
        for index in part:
            submission = self._batch[index]
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
                    if plan.restored:
                        await self._steps.enter(plan.log_entries())
        except StorageError as error:
            if len(part) == 1:
                self.refused[part[0]] = error
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
            for changed, outcome in plan.outcomes.items():
                changed.records[:] = plan.owned(outcome)
            plan.log_left_out()
