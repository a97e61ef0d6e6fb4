"""Records of changes that have already happened are written, whatever owner they name."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime

import pytest

from async_history import HistoryRecord, Owner, OwnerConflict
from async_history._core.operations.operations import LogEntries
from async_history._core.records.new_records import new_fields
from async_history._core.records.records import MemoryState, made_record
from async_history._core.writing.batch import commit_in_steps
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import Buffer
from async_history._core.writing.new_submissions import checked_records
from async_history._core.writing.submissions import (
    AddRecords,
    RestoreMemory,
    SaveMessages,
    Submission,
)

ALICE, BOB = Owner(user_id="alice"), Owner(user_id="bob")


class Steps:
    """A `BatchTransaction` on an empty store in which some memories have owners."""

    def __init__(self, owners: Mapping[str, Owner]) -> None:
        self.given = owners
        self.records: list[HistoryRecord] = []
        self.new_owners: dict[str, Owner] = {}

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        return ()

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        return ()

    async def find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        raise AssertionError("nothing is restored by these submissions")

    async def owners(self, records: Sequence[HistoryRecord]) -> Mapping[str, Owner]:
        return self.given

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        return {}

    async def buffers(self, submissions: Sequence[SaveMessages]) -> Mapping[str, Buffer]:
        return {}

    def undone_if_refused(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[SaveMessages],
        owners: Mapping[str, Owner],
    ) -> None:
        self.records += records
        self.new_owners |= owners

    async def enter(self, entries: LogEntries) -> None:
        raise AssertionError("no operation is among these submissions")


def submission(*owners: Owner | None, memory_id: str = "m", must_match: bool) -> AddRecords:
    made = [made_record(*new_fields(memory_id, None, "x", "ADD", owner=owner)) for owner in owners]
    return checked_records(made, must_match_owner=must_match)


async def test_a_conflicting_owner_is_left_out_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps({"m": ALICE})
    batch = [
        submission(BOB, must_match=False),
        submission(BOB, must_match=True),
        submission(None, ALICE, BOB, must_match=False),
        submission(BOB, ALICE, memory_id="new", must_match=False),
        submission(ALICE, memory_id="new", must_match=True),
        submission(BOB, memory_id="new", must_match=True),
    ]
    refused = await commit_in_steps(batch, steps)
    assert {index: type(error) for index, error in refused.items()} == {
        1: OwnerConflict,
        4: OwnerConflict,
    }
    assert steps.new_owners == {"new": BOB}
    written = [(record.memory_id, record.owner) for record in steps.records]
    assert written == [("m", ALICE)] * 4 + [("new", BOB)] * 3
    assert [record.owner for record in batch[0].records] == [ALICE]
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "3 records were written without the given owner" in warning.getMessage()
    assert "'m'" in warning.getMessage()


async def test_without_a_conflict_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps({})
    assert not await commit_in_steps([submission(BOB, BOB, None, must_match=False)], steps)
    assert [record.owner for record in steps.records] == [BOB] * 3
    assert caplog.records == []
