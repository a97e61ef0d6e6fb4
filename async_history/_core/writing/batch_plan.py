"""The plan of what a batch's transaction writes, made from what it has read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from async_history._core.operations.operations import LogEntries, entries_at_their_end
from async_history._core.reading.restoration import RESTORE
from async_history._core.records.owners import Owner
from async_history._core.records.recording import RepeatedText
from async_history._core.records.records import HistoryRecord, Latest, MemoryState
from async_history._core.wording import counted
from async_history._core.writing.erased_names import (
    MEMORY,
    Name,
    require_not_erased,
    require_session_not_erased,
)
from async_history._core.writing.submissions import (
    AddRecords,
    ExpectedLatest,
    GiveOwners,
    RestoreMemory,
    SaveMessages,
    UpdateMemory,
)
from async_history.errors import Erased, HistoryConflict, HistoryError, IdConflict, OwnerConflict

_log: Final = logging.getLogger("async_history")
_NO_OWNERS: Final[tuple[dict[str, Owner], Sequence[OwnerConflict]]] = ({}, ())


class Plan:
    """What to write for some submissions, and what is known afterwards."""

    def __init__(
        self,
        known: dict[str, HistoryRecord],
        latest: dict[str, Latest | None],
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
        self.restored: list[RestoreMemory] = []
        self.refused: dict[int, HistoryError] = {}
        self.left_out: list[OwnerConflict] = []
        self.given: list[tuple[GiveOwners, frozenset[str]]] = []
        self.outcomes: dict[AddRecords, Sequence[HistoryRecord]] = {}

    def add(self, index: int, submission: AddRecords) -> None:
        """Plan to write the missing records of a submission, or refuse it.

        A restoration whose text was not found is left as it is.
        """
        try:
            if isinstance(submission, UpdateMemory):
                outcome, missing = self._update(submission)
                if not outcome:
                    return
            else:
                outcome, missing = self._outcome(submission)
                if missing and submission.if_latest is not None:
                    self._require_latest(submission.if_latest)
                    if submission.repeats is not None:
                        self._require_kept(submission.repeats)
            if self._erased:
                require_not_erased(submission, missing, self._erased)
            owners, left_out = _NO_OWNERS
            for record in missing:
                if record.owner is not None:
                    owners, left_out = self._owners_given(missing, submission)
                    break
        except (IdConflict, HistoryConflict, OwnerConflict, Erased) as error:
            self.refused[index] = error
            return
        if owners:
            self.new_owners |= owners
        if left_out:
            self.left_out += left_out
        self.outcomes[submission] = outcome
        if not missing:
            return
        self.records += missing
        if type(submission) is RestoreMemory:
            self.restored.append(submission)
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

    def log_entries(self) -> LogEntries:
        """Return the log entries of the restorations, which end now."""
        each = [submission.log_entry for submission in self.restored]
        return entries_at_their_end(RESTORE, each, records=1)

    def log_left_out(self) -> None:
        """Warn of the owners that records were written without."""
        if not self.left_out:
            return
        first = self.left_out[0]
        _log.warning(
            "%s without the given owner: memory %r has an owner with another %s, or without it, "
            "and an owner is given once",
            counted(len(self.left_out), "record was written", "records were written"),
            first.memory_id,
            " and ".join(first.scopes),
        )

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
        """Return the same as `_outcome` for a memory's new text; nothing if it was not found.

        Raises:
            IdConflict: as `_outcome`.
        """
        new = submission.new
        there = self.known.get(new.id)
        if there is not None:
            _require_same(submission, 0, there)
            return [there], ()
        # If an earlier try took effect, its record is stored.
        (outcome,) = submission.records
        if outcome is not new and outcome.id in self.known:
            return [self.known[outcome.id]], ()
        if new.new_memory is None:
            return (), ()
        latest = self.latest[new.memory_id]
        record = submission.record_after(latest)
        if record is not None:
            appended = [record]
            return appended, appended
        assert isinstance(latest, HistoryRecord)  # noqa: S101 - see `needs_record`
        return [latest], ()

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
        assert not isinstance(latest, MemoryState)  # noqa: S101 - see `needs_record`
        if latest is None or latest.id != expected.id:
            raise HistoryConflict(
                f"record {expected.id} is not the latest of memory {expected.memory_id!r}, "
                f"{'which has none' if latest is None else f'{latest.id} is'}; nothing was "
                "written, read again and decide"
            )
        if expected.text is not None and latest.new_memory is None:
            raise _lost_text(expected.id)

    def _require_kept(self, repeated: RepeatedText) -> None:
        there = self.known.get(repeated.record_id)
        if there is None or repeated.text not in (there.old_memory, there.new_memory):
            raise _lost_text(repeated.record_id)


def _lost_text(record_id: str) -> HistoryConflict:
    return HistoryConflict(
        f"the text of record {record_id} was erased, or the record was removed, after it was read; "
        "nothing was written, read again and decide"
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
