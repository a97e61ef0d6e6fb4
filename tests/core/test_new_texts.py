"""Sealing of new records, of which some are sealed before their batch."""

import asyncio
import json
from collections.abc import Sequence
from threading import Lock

import pytest

from async_history._core.encryption.batch_sealing import NewTexts
from async_history._core.encryption.sealed_records import SealedTexts, opened_json, opened_text
from async_history._core.encryption.sealing import DataKey, Keys, token_under
from async_history._core.records.new_records import fields_from_mapping
from async_history._core.writing.submissions import AddFields
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

INDEX_KEY = b"i" * 32
MANY = 100


class Key(DataKey):
    """A data key that counts what it seals."""

    def __init__(self, digit: str) -> None:
        super().__init__(digit * 16, digit.encode() * 32)
        self.sealed = 0

    def seal(self, text: str, place: bytes, nonce: bytes) -> str:
        self.sealed += 1
        return super().seal(text, place, nonce)


def added(number: int, text: str = "likes tea") -> AddFields:
    given = {
        "id": f"id {number}",
        "memory_id": "m",
        "new_memory": f"{text} {number}",
        "event": "ADD",
        "cause": {"run_id": f"run {number}"},
    }
    return AddFields(fields_from_mapping(given))


def check(
    batch: Sequence[AddFields],
    texts: SealedTexts,
    keys: Sequence[Key],
    index_key: bytes = INDEX_KEY,
) -> None:
    """Check that each record's values open under its key, with their tokens."""
    token = token_under(index_key)
    for at, (one, key) in enumerate(zip(batch, keys, strict=True)):
        record, known = one.records[0], Keys({key.id: key})
        text, cause = texts.new_memory[at], texts.cause[at]
        assert opened_text(text, "new_memory", record.id, known) == record.new_memory != text
        assert cause is not None
        assert record.cause is not None
        assert json.loads(opened_json(cause, "cause", record.id, known)) == record.cause
        run = token("run_id", record.cause["run_id"])
        assert json.loads(cause)["run_id"] == run
        assert (texts.tokens[at] or {})["run_id"] == run
    assert {*texts.old_memory, *texts.context} == {None}


async def sealed(
    batch: Sequence[AddFields],
    new: NewTexts,
    keys: Sequence[Key | None],
    index_key: bytes = INDEX_KEY,
) -> SealedTexts:
    return await new.of([one.fields for one in batch], keys, index_key)


async def test_what_was_sealed_before_is_not_sealed_again() -> None:
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    batch = [*waiting[1:], added(MANY), waiting[0]]
    keys = [key] * len(batch)
    check(batch, await sealed(batch, new, keys), keys)
    assert key.sealed == 2 * (MANY + 1)


async def test_what_was_dropped_is_sealed_with_its_batch() -> None:
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    async with asyncio.timeout(LONG_S):
        while key.sealed < 2 * MANY:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
    new.drop()
    keys = [key] * MANY
    check(waiting, await sealed(waiting, new, keys), keys)
    assert key.sealed == 4 * MANY


async def test_a_record_that_gets_another_key_is_sealed_under_that() -> None:
    """Such as one whose owner was given meanwhile, or whose owner's key was replaced."""
    new, key, other = NewTexts(Lock()), Key("a"), Key("b")
    waiting = [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    keys = [other if n % 3 else key for n in range(MANY)]
    check(waiting, await sealed(waiting, new, keys), keys)
    assert key.sealed == 2 * MANY


async def test_a_record_without_a_key_stays_in_clear() -> None:
    """Encryption was turned off meanwhile."""
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    texts = await sealed(waiting, new, [None] * MANY)
    assert [*texts.new_memory] == [f"likes tea {n}" for n in range(MANY)]
    assert [*texts.cause] == [f'{{"run_id":"run {n}"}}' for n in range(MANY)]


async def test_causes_have_tokens_under_the_key_of_their_batch() -> None:
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    index_key, keys = b"j" * 32, [key] * MANY
    check(waiting, await sealed(waiting, new, keys, index_key), keys, index_key)


async def test_a_record_that_was_replaced_is_sealed_again() -> None:
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: key, INDEX_KEY)
    batch, keys = [*waiting[1:], added(0, "likes milk")], [key] * MANY
    check(batch, await sealed(batch, new, keys), keys)


async def test_records_whose_key_is_not_known_are_sealed_with_their_batch() -> None:
    new, key, waiting = NewTexts(Lock()), Key("a"), [added(n) for n in range(MANY)]
    new.begin(waiting, lambda _: None, INDEX_KEY)
    keys = [key] * MANY
    check(waiting, await sealed(waiting, new, keys), keys)
    assert key.sealed == 2 * MANY


async def test_a_batch_of_some_records_is_sealed_in_slices_between_which_the_loop_runs() -> None:
    new, key, batch = NewTexts(Lock()), Key("a"), [added(n) for n in range(20)]
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(key.sealed // 2)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    keys = [key] * len(batch)
    check(batch, await sealed(batch, new, keys), keys)
    looking.cancel()
    assert seen == [0, 8, 16]


async def test_a_batch_without_records_has_no_texts() -> None:
    assert await sealed([], NewTexts(Lock()), []) == SealedTexts((), (), (), (), ())
