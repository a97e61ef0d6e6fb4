"""JSON objects that belong to a record, and owners."""

import copy
import json
import pickle
from typing import Any

import pytest

from async_history import HistoryRecord, InvalidInput, Owner, StorageCorrupt
from async_history._core.records.json_object import JsonObject, json_object
from async_history._core.records.owners import new_owner, owner_from_text, owner_text
from async_history._core.records.recording import new_cause
from async_history._core.records.rows import record_of, row_of
from async_history.blocking._sanitize import Sanitizer


def test_an_object_equals_a_mapping_with_the_same_content() -> None:
    one = json_object("context", {"b": [1, {"c": None}], "a": "ü"})
    assert one == {"a": "ü", "b": [1, {"c": None}]}
    assert one == JsonObject('{"a": "ü", "b": [1, {"c": null}]}')
    assert one != {"a": "ü"}
    assert one != "text"
    assert hash(one) == hash(JsonObject('{"a": "ü", "b": [1, {"c": null}]}'))
    assert (len(one), list(one), one["a"]) == (2, ["a", "b"], "ü")
    assert repr(one) == "{'a': 'ü', 'b': [1, {'c': None}]}"
    assert json_object("context", one) is one
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
        assert again == one


def test_values_that_are_equal_but_differ_in_json_stay_apart() -> None:
    values = (1, True, 1.0, "1", 0, False, 0.0, -0.0, None, [1], [True], {"x": 1}, {"x": True})
    given = [{"a": "ü", "b": value} for value in values]
    for one in given * 2:
        assert json_object("context", one).text == json.dumps(
            one, ensure_ascii=False, separators=(",", ":")
        )


def test_an_object_does_not_change_with_what_was_given() -> None:
    given = {"a": "x", "b": "y"}
    first, cause = json_object("context", given), new_cause(given)
    given["a"] = "z"
    assert [dict(one or {}) for one in (first, cause)] == [{"a": "x", "b": "y"}] * 2
    assert json_object("context", given) == {"a": "z", "b": "y"}


def nested(levels: int) -> Any:
    value: Any = "x"
    for level in range(levels):
        value = {"[": value} if level % 2 else [value, "]"]
    return value


@pytest.mark.parametrize("levels", [98, 99, 100, 500, 100_000])
def test_the_depth_of_an_object_is_bounded(levels: int) -> None:
    given = {"x": nested(levels), "y": '[{"' * 200}
    if levels < 100:
        assert json_object("context", given) == given
    else:
        with pytest.raises(InvalidInput, match="context can't be stored"):
            json_object("context", given)
    kept = Sanitizer().json("metadata", given)
    assert kept["y"] == given["y"]
    assert isinstance(kept["x"], str) is (levels >= 100)


@pytest.mark.parametrize("text", ['{"x":' * 100_000 + "1" + "}" * 100_000, "{", ""])
def test_unreadable_json_of_other_programs(text: str) -> None:
    with pytest.raises(StorageCorrupt, match="can't be read as JSON"):
        JsonObject(text).get("x")


@pytest.mark.parametrize("text", ["{", "", "[]", "1", '{"user_id":1}'])
def test_an_unreadable_owner_of_other_programs(text: str) -> None:
    with pytest.raises(StorageCorrupt, match="can't be read"):
        owner_from_text(text)


def test_an_owner_has_at_least_one_scope() -> None:
    assert new_owner({}) is new_owner({"user_id": None}) is new_owner(Owner()) is None
    owner = new_owner({"user_id": "ann", "run_id": "1"})
    assert owner == new_owner(Owner(user_id="ann", run_id="1"))
    assert owner_from_text(owner_text(owner)) == owner
    assert owner is not None
    assert owner.contradictions(Owner(user_id="ann")) == ()
    assert owner.contradictions(Owner(user_id="bob", app_id="x")) == ("user_id", "app_id")
    with pytest.raises(InvalidInput, match="agent_id must be text, not list"):
        new_owner({"agent_id": ["a"]})  # type: ignore[dict-item]


def test_a_row_has_every_field_of_a_record() -> None:
    record = HistoryRecord(
        "1", "m", None, "x", "ADD", owner=Owner(app_id="a"), context=JsonObject('{"x":1}')
    )
    row = row_of(record)
    assert row[10:] == ('{"app_id":"a"}', '{"x":1}', None)
    again = record_of(row)
    assert (again, again.owner, again.context) == (record, record.owner, {"x": 1})
    assert again != HistoryRecord("1", "m", None, "x", "ADD")


@pytest.mark.parametrize(
    "record_id", ["", "1", "x" * 32, "018f" * 8, "zzzzzzzz-zzzz-7zzz-zzzz-" + "z" * 12]
)
def test_ids_that_are_not_uuid7_have_no_time(record_id: str) -> None:
    assert HistoryRecord(record_id, "m", None, "x", "ADD").recorded_at is None
