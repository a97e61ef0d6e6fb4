"""Changes of keys in a history with clear texts that look encrypted, interrupted anywhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from async_history import HistoryManager, Owner
from async_history._core.encryption.key_statements import (
    INDEX,
    MARKS,
    OFF,
    TURNING_ON,
    StoredKey,
    owner_digest,
)
from async_history._core.encryption.stored_texts import TextLimits
from async_history.encryption import KeyRing
from async_history.errors import HistoryError, KeyMissing, StorageUnreachable
from tests.support.encrypted_stores import (
    ANN,
    Open,
    all_of,
    contents,
    cut_off,
    fill,
    until_complete,
    until_turned_off,
)
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.look_alikes import (
    LOOK_SEALED,
    add_look_alikes,
    all_texts,
    fill_with_look_alikes,
)
from tests.support.parts import Places, in_parts

SOME = TextLimits(rows=40)
_OTHERS = [
    *((one, one) for one in ("encrypt", "decrypt", "replace_data_keys")),
    ("decrypt", "encrypt"),
    ("encrypt", "replace_data_keys"),
]


async def marks_of(history: Any) -> list[str]:
    texts = history.store.encryption.texts
    return [key.id for key in await texts.in_transaction(lambda one: one.table.keys(MARKS))]


async def has_keys(history: Any) -> bool:
    texts = history.store.encryption.texts
    return bool(await texts.in_transaction(lambda one: one.table.wrapping()))


def rewrap_only_the_index_key(history: Any) -> None:
    """Let a rotation fail to rewrap each other key, as without its master key."""
    keys = history.store.encryption.keys
    rewrapped = keys.rewrapped

    def rewrap(key: StoredKey, by: bytes) -> Any:
        if key.owner != INDEX:
            raise KeyMissing("one", "the master key is missing")
        return rewrapped(key, by)

    keys.rewrapped = rewrap


async def remove_key_of_ann(texts: Any) -> None:
    (key,) = await texts.table.of_owners([owner_digest(Owner(**ANN))])
    await texts.table.remove([key.id])


@contextlib.asynccontextmanager
async def encrypted_twice(open_store: Open) -> AsyncIterator[tuple[HistoryManager, HistoryManager]]:
    """Open two managers of an encrypted store; the first one changes few texts at once."""
    async with (
        limited(open_store(keys=ring("one")), texts=SOME) as history,
        open_store(keys=ring("one")) as other,
    ):
        await history.encryption.encrypt()
        yield history, other


class UncertainService:
    """A key service of which one call fails."""

    def __init__(self, failing: int) -> None:
        self._left = failing
        self.has_failed = False

    async def wrap(self, key: bytes) -> bytes:
        return await self.unwrap(key)

    async def unwrap(self, wrapped: bytes) -> bytes:
        self._left -= 1
        if self._left == 0:
            self.has_failed = True
            raise OSError
        return wrapped[::-1]


class LookAlikeCases:
    """Texts that look encrypted. The fixture `open_store` opens managers of one store."""

    async def test_texts_that_look_encrypted(self, open_store: Open) -> None:
        """They can be changed in a clear history, and stay readable when it is encrypted."""
        async with open_store() as history:
            await fill_with_look_alikes(history)
            for n, text in enumerate(LOOK_SEALED):
                assert (await history.update_history(f"c{n}", "tea")).old_memory == text
                assert (await history.restore(f"c{n}", to=1)).new_memory == text
            before = await all_texts(history)
        for _ in range(2):
            async with open_store(keys=ring("one")) as history:
                assert await all_texts(history) == before
                assert not (await history.check()).problems
                for call in ("encrypt", "replace_data_keys", "rotate_keys"):
                    await getattr(history.encryption, call)()
                    assert await all_texts(history) == before
        async with open_store(keys=ring("one")) as history:
            assert await all_texts(history) == before

    @in_parts(7, nightly=1)
    async def test_a_decryption_interrupted_anywhere_is_completed(
        self, open_store: Open, places: Places
    ) -> None:
        """After its transactions in turn; others write such texts before and after."""
        async with open_store() as history:
            await fill_with_look_alikes(history)

        async def is_interrupted(stop_after: int) -> bool:
            async with encrypted_twice(open_store) as (history, other):
                before = await all_texts(other)
                is_cut_off = await cut_off(stop_after, history, "decrypt")
                assert await all_texts(history) == before
                assert await all_texts(other) == before
                for manager in (history, other):
                    await add_look_alikes(manager, f"{stop_after}")
                before = await all_texts(other)
                assert await all_texts(history) == before
                if await has_keys(other):  # otherwise it was completed
                    async with open_store(keys=ring("one")) as third:
                        assert await all_texts(third) == before
                        await third.encryption.decrypt()
                assert await all_texts(history) == before
                await add_look_alikes(other, f"{stop_after} later")
                before = await all_texts(other)
            async with open_store() as history:
                assert await all_texts(history) == before
                assert not (await history.check()).problems
            return is_cut_off

        await until_complete(places, is_interrupted)

    @in_parts(5, nightly=1)
    async def test_a_decryption_is_reversed_and_that_interrupted_anywhere(
        self, open_store: Open, places: Places
    ) -> None:
        async with open_store() as history:
            await fill_with_look_alikes(history)

        async def is_interrupted(stop_after: int) -> bool:
            async with encrypted_twice(open_store) as (history, other):
                assert await cut_off(5 + stop_after % 3, history, "decrypt")
                assert await marks_of(history) == [OFF]
                await add_look_alikes(other, f"{stop_after}")
                before = await all_texts(other)
                is_cut_off = await cut_off(stop_after, history, "encrypt")
                assert await all_texts(history) == before
                assert await all_texts(other) == before
            async with open_store(keys=ring("one")) as history:
                assert await all_texts(history) == before
                assert await marks_of(history) != [TURNING_ON]
                await history.encryption.encrypt()
                assert await marks_of(history) == []
                assert await all_texts(history) == before
                assert (await history.encryption.encrypt()).records == 0
            return is_cut_off

        await until_complete(places, is_interrupted)

    async def test_a_read_while_the_search_ends_is_repeated(self, open_store: Open) -> None:
        """Such a text was read in clear, and then counts as damaged."""
        async with open_store() as history:
            await fill_with_look_alikes(history)
        async with open_store(keys=ring("one")) as other, open_store(keys=ring("one")) as history:
            await other.encryption.encrypt()
            before = await all_of(other)
            await until_turned_off(other)
            assert await cut_off(5, other, "decrypt")
            assert await cut_off(1, other, "encrypt")
            assert await marks_of(other) == [TURNING_ON]
            keys: Any = history.store
            keys = keys.encryption.keys
            load, calls = keys.load, count(1)

            async def load_late(*given: Any) -> Any:
                if next(calls) == 2:
                    await other.encryption.encrypt()
                return await load(*given)

            keys.load = load_late
            assert await all_of(history) == before
            assert next(calls) > 2

    async def test_after_a_decryption_each_call_says_the_same(self, open_store: Open) -> None:
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            await history.encryption.decrypt()
            await history.encryption.decrypt()
            for call in ("encrypt", "replace_data_keys", "rotate_keys"):
                with pytest.raises(KeyMissing, match="no keys any more"):
                    await getattr(history.encryption, call)()

    async def test_a_text_without_a_key_leaves_encryption_on(self, open_store: Open) -> None:
        """Nothing is decrypted before it is known that everything can be."""
        async with open_store(keys=ring("one")) as history:
            await fill(history)
        async with open_store(keys=ring("two", "one")) as history:
            rewrap_only_the_index_key(history)
            with pytest.raises(KeyMissing):
                await history.encryption.rotate_keys()
            await history.add_history("new", None, "tea", "ADD", owner={"user_id": "bob"})
            before = await all_of(history)
        async with open_store(keys=ring("two")) as history:
            with pytest.raises(KeyMissing, match="one"):
                await history.encryption.decrypt()
            assert await marks_of(history) == []
            with pytest.raises(KeyMissing, match="one"):
                await history.encryption.replace_data_keys()
        async with open_store(keys=ring("two", "one")) as history:
            assert await all_of(history) == before
            await history.encryption.replace_data_keys()
            await history.encryption.decrypt()
        async with open_store() as history:
            assert await all_of(history) == before

    async def test_an_owner_whose_key_is_lost_stops_only_a_decryption(
        self, open_store: Open
    ) -> None:
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            others = [one for one in await all_of(history) if one.memory_id != "m1"]
            store: Any = history.store
            await store.encryption.texts.in_transaction(remove_key_of_ann)
        async with open_store(keys=ring("one")) as history:
            for call in ("encrypt", "replace_data_keys", "rotate_keys"):
                await getattr(history.encryption, call)()
            with pytest.raises(KeyMissing, match="no data key"):
                await history.encryption.decrypt()
            assert await marks_of(history) == []
            with pytest.raises(KeyMissing, match="no data key"):
                await history.get_history("m1")
            await history.add_history("new", None, "tea", "ADD", owner=ANN)
            assert (await history.get_history("new"))[0].new_memory == "tea"
            await history.erase(user_id="ann", reason="lost")
            await history.encryption.decrypt()
        async with open_store() as history:
            found = await all_of(history)
            assert [one for one in found if one.memory_id not in ("m1", "new")] == others

    async def test_a_rotation_within_another_loses_no_key(self, open_store: Open) -> None:
        """The second one removes the wrapping key that the first one has begun to use."""
        async with open_store(keys=ring("one")) as history, open_store(keys=ring("one")) as other:
            records = await fill(history)
            keys: Any = history.store
            keys = keys.encryption.keys
            refresh, calls = keys.refresh, count(1)

            async def refreshed(stored: Any) -> None:
                await refresh(stored)
                if next(calls) == 2:  # its wrapping key is in the store, and wraps one key
                    await other.encryption.rotate_keys()

            keys.refresh = refreshed
            await history.encryption.rotate_keys()
            assert next(calls) > 2
        async with open_store(keys=ring("one")) as history:
            assert await all_of(history) == records
            assert await history.count_history(cause={"run_id": "r"}) == 6

    @in_parts(3, nightly=1)
    async def test_a_key_service_that_fails_at_each_call(
        self, open_store: Open, places: Places
    ) -> None:
        async with open_store() as history:
            await fill_with_look_alikes(history)
            before = await all_texts(history)

        async def use(service: UncertainService) -> None:
            async with open_store(keys=KeyRing({"kms": service})) as history:
                assert await all_texts(history) == before
                await history.encryption.encrypt()
                await history.encryption.rotate_keys()
                await history.encryption.replace_data_keys()
                await history.encryption.decrypt()

        for place in places:
            service = UncertainService(place + 1)
            try:
                await use(service)
            except StorageUnreachable:
                await use(UncertainService(0))
            async with open_store() as history:
                assert await all_texts(history) == before
            if not service.has_failed:
                break
        assert place >= places.stride

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("encrypt", "decrypt"),
            ("replace_data_keys", "decrypt"),
            ("rotate_keys", "rotate_keys"),
            *(pytest.param(*one, marks=pytest.mark.nightly) for one in _OTHERS),
        ],
    )
    async def test_two_managers_change_keys_at_the_same_time(
        self, open_store: Open, first: str, second: str
    ) -> None:
        """Each call ends, or raises an error; nothing is lost, and the calls can be repeated."""
        async with open_store() as history:
            await fill_with_look_alikes(history)

        async def managers() -> list[HistoryManager]:
            opening = [
                limited(open_store(keys=ring("one")), texts=TextLimits(rows=5)) for _ in range(2)
            ]
            return [*await asyncio.gather(*(one.__aenter__() for one in opening))]

        both = await managers()
        for is_off in (False, True):
            if is_off:
                await both[0].encryption.encrypt()
                await until_turned_off(both[0])
            before = await all_texts(both[0])
            ended = await asyncio.gather(
                getattr(both[0].encryption, first)(),
                getattr(both[1].encryption, second)(),
                return_exceptions=True,
            )
            assert all(
                not isinstance(one, Exception) or isinstance(one, HistoryError) for one in ended
            )
            for one in both:
                assert await all_texts(one) == before
                await one.aclose()
            both = await managers()
            for one in both:
                assert await all_texts(one) == before
        await both[0].encryption.encrypt()
        await both[1].encryption.replace_data_keys()
        await both[0].encryption.decrypt()
        for one in both:
            assert await all_texts(one) == before
            await one.aclose()
        async with open_store() as history:
            assert await all_texts(history) == before
            assert await contents(history) == list(LOOK_SEALED)
            assert (await history.get_history("c0"))[0].owner is not None
            assert await history.count_history(**ANN) == len(LOOK_SEALED)
