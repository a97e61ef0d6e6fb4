"""Values from mem0 that no column takes unchanged: each is kept and found again."""

import enum
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from async_history._core.records.new_records import record_from_mapping
from async_history._core.records.records import Event
from async_history._core.records.rows import row_of
from async_history._core.validation import shown
from async_history._core.writing.new_submissions import checked_messages, messages_to_save
from async_history.blocking import BlockingHistoryManager
from async_history.blocking._sanitize import Sanitizer, complete_records, message_as_given
from async_history.errors import InvalidInput

pytestmark = [pytest.mark.mem0, pytest.mark.once]


class Role(str, enum.Enum):  # noqa: UP042 - StrEnum is shown by its value
    USER = "user"


class Kind(enum.Enum):
    FACT = "fact"
    PLACE = ("a", 1)


class Level(int, enum.Enum):
    HIGH = 7


class Text(str):
    __slots__ = ()


class Untold:
    """A value that has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("it has none")


class NotATime(datetime):
    """Like pandas' NaT, which is a datetime."""

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return "NaT"


NOW = "2026-11-21T10:00:00.000000+00:00"
INSIDE_ITSELF: list[Any] = []
INSIDE_ITSELF.append(INSIDE_ITSELF)

VALUES: list[tuple[Any, str]] = [
    ("text", "text"),
    ("a\0b\ud800", "a\ufffdb\ufffd"),
    (Role.USER, "user"),
    (Kind.FACT, "fact"),
    (Kind.PLACE, '["a", 1]'),
    (Level.HIGH, "7"),
    (7, "7"),
    (True, "1"),
    (1.5, "1.5"),
    (["admin", "owner"], '["admin", "owner"]'),
    ({"name": "admin"}, '{"name": "admin"}'),
    ({("a", "b"): "\ud800"}, "\"{('a', 'b'): '\\\\ud800'}\""),
    (INSIDE_ITSELF, '"[[...]]"'),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Decimal("1.50"), "1.50"),
    (b"\xff", "b'\\xff'"),
    (date(2026, 11, 20), "2026-11-20"),
    (datetime(2026, 11, 20, tzinfo=UTC), "2026-11-20 00:00:00+00:00"),
    (16**4_000, f"0x1{'0' * 4_000}"),
    ([16**4_000], '"list without a text"'),
    (Untold(), "Untold without a text"),
]


def _name(value: Any) -> str:
    """Return a name that is the same in each process of a test run."""
    return type(value).__name__ if shown(value).startswith("<") else shown(value)[:30]


TEXTS = ("memory_id", "old_memory", "new_memory", "actor_id", "role")


@pytest.mark.parametrize(("value", "kept"), VALUES, ids=_name)
class TestAnyValue:
    def test_a_value_in_any_column_does_not_lose_the_record(self, value: Any, kept: str) -> None:
        for column in (*TEXTS, "created_at", "updated_at", "is_deleted"):
            given = {"memory_id": "m", "new_memory": "x", "event": "ADD", column: value}
            record = Sanitizer().record(given)
            assert record_from_mapping(record.as_dict()) == record  # as the contract checks it
            assert {type(text) for text in row_of(record)} <= {str, Event, bool, type(None)}
            if column in TEXTS:
                assert getattr(record, column) == kept
                assert type(getattr(record, column)) is str

    def test_a_value_in_a_message_does_not_lose_the_message(self, value: Any, kept: str) -> None:
        for key in ("role", "name", "content"):
            given = {"role": "user", "content": "x", "name": None, key: value}
            message = Sanitizer().message(given)
            (saved,) = messages_to_save([message], "s").messages
            (same,) = checked_messages([message], "s").messages
            assert replace(saved, created_at=None) == replace(same, created_at=None) == message
            assert {type(message.role), type(message.content)} == {str}
            if key != "content":
                assert getattr(message, key) == kept
            elif not isinstance(value, str):
                assert message.is_json
                message_as_given(message)

    def test_a_record_is_found_by_the_value_that_was_given(self, value: Any, kept: str) -> None:
        history = BlockingHistoryManager()
        try:
            history.add_history(value, None, "x", "ADD")
            history.save_messages([{"role": "user", "content": "x"}], value)
            (record,) = history.get_history(value)
            assert record["memory_id"] == kept
            assert history.get_history(kept) == [record]
            assert history.get_last_messages(value) == history.get_last_messages(kept) != []
        finally:
            history.close()


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 11, 20),  # noqa: DTZ001
        datetime(2026, 11, 20, 9, tzinfo=UTC),
        "2026-11-20",
        "2026-11-20\u300009:41",
        "2026-11-20\ud80009:41",
        "2026-11-20\x0009:41",
        "20261120",
        "yesterday",
        "",
        "\ud800",
        Text("2026-11-20"),
        Text("2026-11-20\x0009:41"),
        NotATime(2026, 11, 20, tzinfo=UTC),
        16**4_000,
        Untold(),
        1763596800,
        0,
        False,
        [],
    ],
    ids=_name,
)
@pytest.mark.parametrize("event", list(Event))
def test_any_time_is_kept_or_left_out(value: Any, event: Event) -> None:
    given = {"memory_id": "m", "event": event, "created_at": value, "updated_at": value}
    columns = Sanitizer().columns(given)
    assert columns["created_at"] == columns["updated_at"]
    assert type(columns["created_at"]) in {str, type(None)}
    record = Sanitizer().record(given, NOW)
    assert record_from_mapping(record.as_dict()) == record
    assert record == record_from_mapping({**columns, "id": record.id}, NOW)


@pytest.mark.parametrize(
    "given",
    [{"memory_id": None}, {"memory_id": ""}, {"event": None}, {"event": "MERGE"}, {"event": 7}],
    ids=repr,
)
def test_a_value_that_is_not_an_event_is_refused_by_every_call(given: dict[str, Any]) -> None:
    change = {"memory_id": "m", "old_memory": None, "new_memory": "x", "event": "ADD", **given}
    history = BlockingHistoryManager()
    try:
        with pytest.raises(InvalidInput, match="|".join(given)):
            history.add_history(**change)
        with pytest.raises(InvalidInput, match=f"record 1: ({'|'.join(given)})"):
            history.batch_add_history([{**change, "memory_id": "m", "event": "ADD"}, change])
        assert history.get_history("m") == []
        history.batch_add_history([])
    finally:
        history.close()


def test_a_changed_value_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with Sanitizer() as sanitizer:
        sanitizer.record({"memory_id": "m", "event": "ADD", "role": ["a"]})
        sanitizer.record({"memory_id": "n", "event": "ADD", "role": ["a"]})
    assert [record.getMessage() for record in caplog.records] == [
        "recorded with changes: role was not text, and is stored as text: ['a']"
    ]


@pytest.mark.parametrize("value", [["admin"], {"name": "admin"}, 7, None, "", ("x",)])
def test_a_batch_does_not_take_actor_and_role_from_metadata(value: Any) -> None:
    """Plain mem0 gives a batch neither. A user's metadata may have anything under these keys."""
    batch = [{"memory_id": "m", "new_memory": "x", "event": "ADD", "created_at": "2026-11-20"}]
    (given,) = complete_records(batch, {"actor_id": value, "role": value}, [])
    assert (given["actor_id"], given["role"]) == (None, None)
    spoken = [{"role": "user", "content": "x", "name": value}]
    (given,) = complete_records(batch, {"role": value}, spoken)
    assert (given["actor_id"], given["role"]) == (None, "user")


def test_a_batch_has_the_actor_and_role_of_all_its_messages() -> None:
    batch = [{"memory_id": "m", "new_memory": "x", "event": "ADD", "created_at": "2026-11-20"}]
    spoken = [{"role": Role.USER, "content": "x", "name": "ann"}, {"role": "system"}]
    (given,) = complete_records(batch, {}, spoken)
    assert (given["actor_id"], given["role"], type(given["role"])) == ("ann", "user", str)
    (given,) = complete_records(batch, {}, [*spoken, {"role": "assistant"}])
    assert (given["actor_id"], given["role"]) == (None, None)
