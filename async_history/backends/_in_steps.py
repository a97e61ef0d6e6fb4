"""A batch decided submission by submission, inside one transaction, for every database alike.

Batches of nothing but new records have a faster way in each backend. This one is for the others:
ids that are taken, `if_latest`, messages, and what a rule of the database refuses.

Lives here: who is refused, what is there already, what is written together. Not here: any SQL.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from async_history.errors import HistoryConflict, HistoryError, IdConflict, StorageRefused
from async_history.records import HistoryRecord
from async_history.submissions import AddRecords, SaveMessages, Submission


class Steps(Protocol):
    """What a backend does inside the transaction."""

    async def existing(self, submissions: Sequence[AddRecords]) -> dict[str, HistoryRecord]:
        """Return, by id, the records of these submissions' ids that are there."""

    async def latest_id(self, memory_id: str) -> str | None:
        """Return the id of a memory's latest record."""

    async def saved(self, submissions: Sequence[SaveMessages]) -> set[str]:
        """Return the ids of these submissions' last messages that are there."""

    def undone_if_refused(self) -> AbstractAsyncContextManager[None]:
        """Undo what was written inside, and raise `StorageRefused`, where a rule refuses it."""

    async def write(
        self, records: Sequence[HistoryRecord], messages: Sequence[SaveMessages]
    ) -> None:
        """Write in order."""


async def commit_in_steps(batch: Sequence[Submission], steps: Steps) -> Mapping[int, HistoryError]:
    """Write a batch; return the refused submissions by index. The caller has the transaction."""
    additions = [submission for submission in batch if isinstance(submission, AddRecords)]
    messages = [submission for submission in batch if isinstance(submission, SaveMessages)]
    decided = _Decided(steps, await steps.existing(additions) if additions else {})
    unsaved = _unsaved(messages, await steps.saved(messages)) if messages else ()
    for index, submission in enumerate(batch):
        if isinstance(submission, AddRecords):
            await decided.add(index, submission)
        elif submission in unsaved:
            decided.pending[index] = _Pending((), (submission,))
    await decided.write_pending()
    return decided.refused


@dataclass(frozen=True, slots=True)
class _Pending:
    """What of one submission is to be written."""

    records: Sequence[HistoryRecord]
    messages: Sequence[SaveMessages]


class _Decided:
    """What has become of a batch's submissions so far."""

    def __init__(self, steps: Steps, known: dict[str, HistoryRecord]) -> None:
        self.refused: dict[int, HistoryError] = {}
        self.pending: dict[int, _Pending] = {}
        self._steps = steps
        self._known = known
        self._pending_ids: set[str] = set()

    async def add(self, index: int, submission: AddRecords) -> None:
        """Put what is missing of a submission with the pending ones, or refuse it."""
        if not self._pending_ids.isdisjoint(submission.ids):
            await self.write_pending()
        try:
            missing = _missing(submission, self._known)
            if missing and submission.if_latest is not None:
                await self.write_pending()
                await _require_latest(submission.if_latest, self._steps)
        except (IdConflict, HistoryConflict) as error:
            self.refused[index] = error
        else:
            self.pending[index] = _Pending(missing, ())
            self._pending_ids.update(record.id for record in missing)

    async def write_pending(self) -> None:
        """Write what is pending; what a rule refuses is known to nobody after it."""
        pending, self.pending = self.pending, {}
        self._pending_ids.clear()
        await self._write_or_refuse(pending)
        for index, one in pending.items():
            if index not in self.refused:
                self._known.update((record.id, record) for record in one.records)

    async def _write_or_refuse(self, pending: Mapping[int, _Pending]) -> None:
        """Write submissions; halve them until the ones that a rule refuses are alone."""
        records = [record for one in pending.values() for record in one.records]
        messages = [message for one in pending.values() for message in one.messages]
        if not records and not messages:
            return
        try:
            async with self._steps.undone_if_refused():
                await self._steps.write(records, messages)
        except StorageRefused as error:
            items = list(pending.items())
            if len(items) == 1:
                self.refused[items[0][0]] = error
                return
            half = len(items) // 2
            await self._write_or_refuse(dict(items[:half]))
            await self._write_or_refuse(dict(items[half:]))


def _missing(submission: AddRecords, known: Mapping[str, HistoryRecord]) -> list[HistoryRecord]:
    """Return the submission's records that are not there yet, once each.

    Raises:
        IdConflict: one is there with other content.
    """
    missing: dict[str, HistoryRecord] = {}
    for index, record in enumerate(submission.records):
        there = known.get(record.id) or missing.get(record.id)
        if there is None:
            missing[record.id] = record
        elif submission.is_same(index, there):
            submission.records[index] = there
        else:
            raise IdConflict(
                f"id {record.id} is taken by a record with other content; nothing of the "
                "submission was written. Leave the id out to get a fresh one"
            )
    return list(missing.values())


async def _require_latest(expected: HistoryRecord, steps: Steps) -> None:
    latest = await steps.latest_id(expected.memory_id)
    if latest != expected.id:
        raise HistoryConflict(
            f"record {expected.id} is not the latest of memory {expected.memory_id!r}, "
            f"{latest or 'which has none'} is; nothing was written, read again and decide"
        )


def _unsaved(submissions: Sequence[SaveMessages], saved: set[str]) -> set[SaveMessages]:
    """Return the submissions that an earlier try of this batch has not saved.

    One that is there was saved with all before it, though those may be evicted already.
    """
    unsaved: set[SaveMessages] = set()
    done: set[str] = set()
    for submission in reversed(submissions):
        if submission.ids[-1] in saved:
            done.add(submission.session_scope)
        if submission.session_scope not in done:
            unsaved.add(submission)
    return unsaved
