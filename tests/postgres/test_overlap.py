"""The event loop works while PostgreSQL does: callers are woken once the next batch is sent."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from async_history._core.writing.new_submissions import UncheckedRecords, earlier_text
from async_history._core.writing.submissions import AddRecords, Submission
from async_history._core.writing.time_needed import time_for
from async_history._core.writing.writer_options import BATCH_RECORDS
from tests.support.postgres_batches import commit_on

WOKEN = "callers woken"


async def submission(number: int) -> AddRecords:
    record = {
        "memory_id": f"m{number}",
        "old_memory": "likes tea",
        "new_memory": "likes mate " * 50,
        "event": "UPDATE",
        "actor_id": "agent",
        "role": "assistant",
    }
    return await UncheckedRecords([record], None).check()


class Recorder:
    """A connection that notes the first word of each statement."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def execute(self, sql: str, *_: Any) -> str:
        self.seen.append(sql.split()[0].rstrip(";"))
        return "INSERT 0 2"


async def commit(
    connection: Recorder, batch: Sequence[Submission], settings: Sequence[str] = ()
) -> None:
    woken = partial(connection.seen.append, WOKEN)
    assert await commit_on(connection, "a", batch, settings=settings, sent=woken) == {}


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        pytest.param((), [WOKEN, "WITH"], id="one statement"),
        pytest.param(
            ("SET LOCAL lock_timeout TO 1",),
            ["BEGIN", WOKEN, "INSERT", "SET"],
            id="transaction",
        ),
    ],
)
async def test_callers_are_woken_as_the_records_are_sent(
    settings: Sequence[str], seen: Sequence[str]
) -> None:
    connection = Recorder()
    await commit(connection, [await submission(1), await submission(2)], settings)
    assert connection.seen == seen


class _EndError(Exception):
    pass


class EndsAtLookUp(Recorder):
    """A connection that is lost at the first look-up."""

    async def fetch(self, sql: str, *_: Any) -> list[Any]:
        self.seen.append(sql.split()[0])
        raise _EndError


async def test_callers_are_woken_before_a_batch_looks_anything_up() -> None:
    connection = EndsAtLookUp()
    with pytest.raises(_EndError):
        await commit(
            connection,
            [earlier_text(str(number), 1, actor_id=None, role=None) for number in range(2)],
        )
    assert connection.seen == ["BEGIN", WOKEN, "SELECT", "SELECT", "ROLLBACK"]


async def test_a_batch_of_usual_size_needs_no_settings() -> None:
    one = await submission(1)
    assert time_for([one] * BATCH_RECORDS) == 0
    assert time_for([one] * BATCH_RECORDS * 10) > BATCH_RECORDS * 10 / 1000
