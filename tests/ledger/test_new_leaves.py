"""Leaves of new records, of which some are computed before their batch."""

import asyncio
import os
from threading import Lock

import pytest

from async_history._core.ledger.leaves import Bundle, record_values
from async_history._core.ledger.new_leaves import NewLeaves
from async_history._core.records.new_records import fields_from_mapping
from async_history._core.records.owners import new_owner
from async_history._core.records.records import Fields
from async_history._core.writing.submissions import AddFields

pytestmark = pytest.mark.once
KEY = b"k" * 32
MANY = 100


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of random bytes that were drawn: 16 for each leaf that is computed."""
    numbers: list[int] = []
    draw = os.urandom

    def noted(size: int) -> bytes:
        numbers.append(size)
        return draw(size)

    monkeypatch.setattr(os, "urandom", noted)
    return numbers


def fields(text: str, record_id: str) -> Fields:
    given = {"memory_id": "m", "new_memory": text, "event": "ADD", "id": record_id}
    return fields_from_mapping(given)


def submissions(count: int = MANY) -> list[AddFields]:
    return [AddFields(fields(f"likes {n}", f"id {n}")) for n in range(count)]


def holds(bundle: Bundle, of: list[Fields], key: bytes | None = None) -> bool:
    return bundle.leaf_names() == [one[0] for one in of] and bundle.holds(
        [record_values(one) for one in of], key
    )


@pytest.mark.parametrize("key", [None, KEY])
async def test_leaves_that_were_begun_are_not_computed_again(
    key: bytes | None, drawn: list[int]
) -> None:
    waiting, leaves = submissions(), NewLeaves(Lock(), lambda: key)
    leaves.begin(waiting)
    batch = [one.fields for one in [*waiting[1:], *submissions(1), *waiting[:1]]]
    (bundle,) = await leaves.of(batch, {})
    assert holds(bundle, batch, key)
    assert drawn == [16 * MANY, 16]


async def test_a_record_that_was_replaced_is_hashed_again() -> None:
    waiting, leaves = submissions(), NewLeaves(Lock(), lambda: None)
    leaves.begin(waiting)
    batch = [one.fields for one in waiting]
    batch[7] = fields("likes milk", "id 7")
    (bundle,) = await leaves.of(batch, {})
    assert holds(bundle, batch)


async def test_leaves_that_could_not_be_computed_ahead_are_computed_with_their_batch() -> None:
    waiting, leaves = submissions(), NewLeaves(Lock(), lambda: None)
    leaves.begin(waiting)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    batch = [one.fields for one in waiting]
    (bundle,) = await leaves.of(batch, {})
    assert holds(bundle, batch)


async def test_leaves_under_another_key_are_computed_again() -> None:
    keys: list[bytes | None] = [None]
    waiting, leaves = submissions(), NewLeaves(Lock(), lambda: keys[-1])
    leaves.begin(waiting)
    keys.append(KEY)
    batch = [one.fields for one in waiting]
    (bundle,) = await leaves.of(batch, {})
    assert bundle.is_keyed
    assert holds(bundle, batch, KEY)


async def test_few_records_are_hashed_with_their_batch(drawn: list[int]) -> None:
    waiting, leaves = submissions(3), NewLeaves(Lock(), lambda: None)
    leaves.begin(waiting)
    batch = [one.fields for one in waiting]
    owner = new_owner({"user_id": "ann"})
    records, owners = await leaves.of(batch, {"m": owner, "other": None})
    assert holds(records, batch)
    assert owners.leaf_names() == ["m"]
    assert drawn == [16 * 3, 16]
