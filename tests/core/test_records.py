"""Records that the library makes are like those that a caller makes."""

import copy
import dataclasses
import pickle

import pytest

from async_history import HistoryRecord
from async_history._core.records import made_record, new_record


def test_a_new_record_is_one_like_any_other() -> None:
    made = new_record("m", "x", "y", "UPDATE", owner={"user_id": "ann"}, cause={"reason": "asked"})
    values = [getattr(made, field.name) for field in dataclasses.fields(HistoryRecord)]
    for other in (HistoryRecord(*values), made_record(*values)):
        assert type(other) is HistoryRecord
        assert (other, other.owner, hash(other)) == (made, made.owner, hash(made))
    for again in (copy.copy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):  # noqa: S301
        assert (type(again), again, again.owner) == (HistoryRecord, made, made.owner)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.role = "user"  # type: ignore[misc]
