"""Records that the library makes are like those that a caller makes."""

import copy
import dataclasses
import pickle

import pytest

from async_history import HistoryRecord
from async_history._core.records import fields_in_order, made_record, new_fields
from async_history._core.submissions import one_record


def test_a_new_record_is_one_like_any_other() -> None:
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


def test_a_queued_record_is_made_once_when_it_is_looked_at() -> None:
    fields = new_fields("m", "x", "y", "UPDATE", context={"a": 1}, actor_id="ann")
    queued = one_record(fields, None, None)
    assert queued.records is queued.records
    (record,) = queued.records
    assert fields_in_order(record) == fields
    assert (queued.ids, queued.names_ids, queued.decided_by) == ([record.id], False, None)
    named = one_record(fields, {"context": record.context}, None)
    assert (named.size_bytes, named.records) == (queued.size_bytes, queued.records)
    assert named.names_ids
