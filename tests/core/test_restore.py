"""A restoration whose text the transaction can't find by itself: see `restore_after_reading`."""

from typing import Any

import pytest

from async_history import HistoryConflict, HistoryRecord
from async_history._core.undoing.restore import restore_after_reading
from async_history._core.writing.new_submissions import earlier_text
from async_history._core.writing.submissions import RestoreMemory

STORED = HistoryRecord("1", "m", None, "a", "ADD")


class Decides:
    """A writer whose transactions find the text at a given try only."""

    def __init__(self, at: int | None) -> None:
        self.tries = 0
        self.reads = 0
        self._at = at

    async def submit(self, submission: RestoreMemory) -> None:
        self.tries += 1
        if self.tries == self._at:
            submission.find("a", None)

    async def read(self, memory_id: str) -> list[HistoryRecord]:
        self.reads += 1
        return [STORED]


@pytest.mark.parametrize("at", [1, 3, 5])
async def test_it_ends_with_the_try_that_finds_the_text(at: int) -> None:
    store: Any = Decides(at)
    submission = earlier_text("m", 1, actor_id=None, role=None)
    await restore_after_reading(submission, store, store.read)
    assert (store.tries, store.reads) == (at, at)
    assert submission.records[0].new_memory == "a"


async def test_it_is_a_conflict_after_five_reads() -> None:
    store: Any = Decides(None)
    submission = earlier_text("m", 1, actor_id=None, role=None)
    with pytest.raises(HistoryConflict, match="each of 5 times"):
        await restore_after_reading(submission, store, store.read)
    assert (store.tries, store.reads) == (5, 5)
