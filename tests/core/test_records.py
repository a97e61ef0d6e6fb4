"""Records that the library makes are like records that a caller makes."""

import copy
import dataclasses
import pickle
import time
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import pytest

from async_history import HistoryRecord
from async_history._core.records.new_records import new_fields
from async_history._core.records.records import fields_in_order, made_at, made_record
from async_history._core.records.values import check_name, check_text, now_text, parse_time
from async_history._core.writing.new_submissions import UncheckedRecords, one_record
from async_history.errors import InvalidInput


def test_a_record_that_the_library_makes_is_like_any_other() -> None:
    made = made_record(
        *new_fields("m", "x", "y", "UPDATE", owner={"user_id": "ann"}, cause={"reason": "asked"})
    )
    values = [getattr(made, field.name) for field in dataclasses.fields(HistoryRecord)]
    for other in (HistoryRecord(*values), made_record(*values)):
        assert type(other) is HistoryRecord
        assert (other, other.owner, hash(other)) == (made, made.owner, hash(made))
    for again in (copy.copy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):  # noqa: S301
        assert (type(again), again, again.owner) == (HistoryRecord, made, made.owner)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.role = "user"  # type: ignore[misc]


def test_a_queued_record_is_made_once_when_it_is_read() -> None:
    fields = new_fields("m", "x", "y", "UPDATE", context={"a": 1}, actor_id="ann")
    queued = one_record(fields, None, None)
    assert queued.records is queued.records
    (record,) = queued.records
    assert fields_in_order(record) == fields
    assert (queued.ids, queued.names_ids, queued.decided_by) == ([record.id], False, None)
    named = one_record(fields, {"context": record.context}, None)
    assert (named.size_bytes, named.records) == (queued.size_bytes, queued.records)
    assert named.names_ids


class Spelled(str, Enum):  # noqa: UP042 - a str that is not only one
    """Texts by name."""

    TEA = "tea"


class Disguised(str):
    """A text whose methods tell of another one."""

    __slots__ = ()

    def __contains__(self, part: object) -> bool:
        return False

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"milk"


def _checked(name: str, given: Any) -> tuple[str, str | None]:
    """Return the text of a field, or why it is refused."""
    try:
        return (check_name if name in ("id", "memory_id") else check_text)(name, given), None
    except InvalidInput as error:
        return "", str(error)


@pytest.mark.parametrize(
    "given",
    ["tea", "", "é", "日本", "a\0b", "é\0", "\ud800", Spelled.TEA, 5, b"tea", True],
    ids=ascii,
)
def test_texts_are_checked_in_the_same_way_alone_and_in_a_batch(given: Any) -> None:
    usual = {"memory_id": "m", "old_memory": "x", "new_memory": "y", "event": "UPDATE"}
    for name in ("id", "memory_id", "old_memory", "new_memory", "actor_id", "role"):
        call = {**usual, name: given}
        expected, refusal = _checked(name, given)
        if refusal is not None:
            with pytest.raises(InvalidInput) as one:
                new_fields(**call)
            with pytest.raises(InvalidInput) as many:
                UncheckedRecords([usual, call], None).check_slice()
            assert (str(one.value), str(many.value)) == (refusal, f"record 1: {refusal}")
            continue
        unchecked = UncheckedRecords([call], None)
        assert unchecked.check_slice() is not None
        for record in (made_record(*new_fields(**call)), *unchecked.records):
            value = getattr(record, name)
            assert (type(value), value) == (str, expected)


@pytest.mark.parametrize("text", ["tea", "a\0b", "\ud800"], ids=ascii)
def test_a_text_with_methods_of_its_own_is_checked_as_any_other(text: str) -> None:
    assert _checked("role", Disguised(text)) == _checked("role", text)
    assert (_checked("role", text)[1] is None) is (text == "tea")


def test_now_is_the_clocks_time_to_the_microsecond(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = datetime(2026, 12, 31, 23, 59, 59, 999_000, UTC)
    steps = (0, 1, 9, 10, 998, 999, 1_000, 1_001, 59_999_999, 999, -1, -1_000, -86_400_000_000)
    for step in steps:
        moment = begun + timedelta(microseconds=step)
        since_1970 = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        monkeypatch.setattr(time, "time_ns", lambda now=since_1970: now * 1_000 + 999)
        assert now_text() == moment.isoformat(timespec="microseconds")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-30T12:18:22.123456+00:00",
        "2026-11-30T12:18:22.000000+00:00",
        "2026-11-30T12:18:22.123+00:00",
        "2026-11-30T12:18:22,123456+00:00",
        "2026-11-30 12:18:22.123456+00:00",
        "2026-W48-1T12:18:22.123456+00:00",
        "2026-11-30T12:18:22.123456+02:00",
        "2026-11-30T12:18:22.123456-00:00",
        "2026-11-30T12:18:22.123456Z",
        "2026-11-30",
    ],
)
def test_an_updated_memory_keeps_its_instant_as_isoformat_writes_it(text: str) -> None:
    latest = HistoryRecord("1", "m", None, "x", "ADD", text)
    moment = parse_time(text)
    assert moment is not None
    assert made_at(latest) == moment.isoformat()


@pytest.mark.parametrize("text", [None, "", "2026-13-30T12:18:22.123456+00:00", "yesterday"])
def test_an_updated_memory_without_a_valid_time_gets_none(text: str | None) -> None:
    assert made_at(HistoryRecord("1", "m", None, "x", "ADD", text)) is None
