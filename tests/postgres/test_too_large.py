"""What a call's message takes is estimated before it is sent: all columns of its records."""

from collections.abc import Sequence
from typing import Any

import pytest

from async_history import Owner
from async_history._core.records.messages import Message
from async_history._core.records.new_records import new_fields
from async_history._core.records.records import MEMORY_ID, OWNER, Fields, made_record
from async_history._core.writing.sizes import bytes_of
from async_history._core.writing.submissions import AddRecords, GiveOwners, SaveMessages
from async_history._core.writing.time_needed import time_for
from async_history._postgres.detail_columns import detail_columns
from async_history._postgres.rows import joined_columns
from async_history._postgres.writing.too_large import find_too_large

MOST = 1_000_000
LIMIT = MOST * 1.073  # the server's, for a limit of a thousandth
LONG = "n" * 200
OWNED: dict[str, Any] = {"owner": Owner(user_id=LONG, run_id=LONG), "actor_id": LONG}


def submission(fields: Sequence[Fields]) -> AddRecords:
    size = sum(map(bytes_of, fields))
    return AddRecords([made_record(*one) for one in fields], {}, None, len(fields), size)


def sent_bytes(fields: Sequence[Fields]) -> int:
    owners = {one[MEMORY_ID]: one[OWNER] for one in fields}
    columns = joined_columns(fields, None, *detail_columns(fields, None, owners))
    return sum(len(column.encode()) for column in columns if column is not None)


@pytest.mark.parametrize(
    "given",
    [
        {"new_memory": "t"},
        {"new_memory": "t" * 500},
        {"new_memory": "é" * 500},
        {"new_memory": "t" * 20_000},
        {"new_memory": "t", **OWNED},
        {"new_memory": "t", "context": {"k": LONG}, "cause": {"request_id": LONG, "run_id": "r"}},
    ],
    ids=["one character", "ASCII", "Latin-1", "long", "names", "details"],
)
def test_a_call_that_exceeds_a_message_is_refused(given: dict[str, Any]) -> None:
    def records(count: int) -> list[Fields]:
        return [new_fields(f"m{n:035d}", None, event="ADD", **given) for n in range(count)]

    count = int(LIMIT / sent_bytes(records(50)) * 50) + 2
    fields = records(count)
    assert sent_bytes(fields) > LIMIT
    assert list(find_too_large([submission(fields)], "it", 1.0, MOST)) == [0]
    half = submission(fields[: count // 2])
    assert find_too_large([half, half], "it", 1.0, MOST) == {}


def test_a_batch_without_extra_time_has_no_call_that_is_too_large() -> None:
    """Others are not looked through."""
    size = 1_000_000_000 // 3  # nothing smaller can be too large
    assert time_for([SaveMessages([], [], "s", 0, size)]) > 0


def test_names_of_messages_and_owners_count() -> None:
    size = 1024 * 2000
    message = Message("user", "tea", LONG * 3)
    saving = SaveMessages([message] * 2000, [LONG] * 2000, "s", 2000, size)
    owners = GiveOwners({f"{n}{LONG}": Owner(app_id=LONG * 2) for n in range(2000)}, 2000, size)
    assert list(find_too_large([saving, owners], "it", 1.0, MOST)) == [0, 1]
