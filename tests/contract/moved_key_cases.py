"""Rows of data keys, also those that someone with the tables changed, on any encrypted store."""

from typing import Any

import pytest

from async_history import Owner
from async_history._core.encryption.data_keys import LEASE
from async_history._core.encryption.key_ring import place_of_key
from async_history._core.encryption.key_statements import (
    INDEX,
    KEY_COLUMNS,
    StoredKey,
    owner_digest,
    owner_digests,
)
from async_history.errors import StorageCorrupt
from tests.support.encrypted_cases import ANN, BOB, texts
from tests.support.encrypted_stores import Open
from tests.support.keys import ring

OF_BOB = dict(zip(KEY_COLUMNS[1:], owner_digests(Owner(**BOB)), strict=False))


async def change_the_key_of_ann(history: Any, changed: dict[str, Any]) -> None:
    async def change(one: Any) -> None:
        owner, *_ = owner_digests(Owner(**ANN))
        (key,) = await one.table.of_owners([owner])
        await one.table.remove([key.id])
        await one.table.add([key._replace(**changed)])

    await history.store.encryption.texts.in_transaction(change)


class MovedKeyCases:
    """Moved keys. The fixture `open_store` opens managers of one store, with options."""

    async def test_a_key_that_was_moved_to_another_owner_is_refused(self, open_store: Open) -> None:
        """The other's texts would be readable until the first owner is erased, not the other."""
        async with open_store(keys=ring("one")) as history:
            await history.add_history("a", None, "tea", "ADD", owner=ANN)
            await change_the_key_of_ann(history, OF_BOB)
            with pytest.raises(StorageCorrupt, match="row was changed"):
                await history.add_history("b", None, "mate", "ADD", owner=BOB)
            await history.add_history("c", None, "milk", "ADD", owner={"user_id": "carl"})
        async with open_store(keys=ring("one")) as history:
            with pytest.raises(StorageCorrupt, match="row was changed"):
                await history.get_history("a")
            assert await texts(history, "c") == ["milk"]

    @pytest.mark.parametrize("scope", ["user_id", "agent_id", "run_id", "app_id"])
    async def test_a_key_of_a_changed_scope_is_refused(self, open_store: Open, scope: str) -> None:
        """An erasure of the owner would not find the key."""
        async with open_store(keys=ring("one")) as history:
            await history.add_history("a", None, "tea", "ADD", owner=ANN)
            await change_the_key_of_ann(history, {scope: "0" * 32})
        async with open_store(keys=ring("one")) as history:
            with pytest.raises(StorageCorrupt, match="row was changed"):
                await history.get_history("a")

    async def test_the_uses_of_all_owners_keys_are_counted_before_them(
        self, open_store: Open
    ) -> None:
        owners: list[Any] = [ANN, BOB, {"run_id": "r"}]
        batch = [{"memory_id": str(one), "event": "ADD", "owner": one} for one in owners]
        counted: list[int] = []

        async def count(one: Any) -> None:
            digests = [owner_digest(Owner(**owner)) for owner in owners]
            counted.extend(int(key.uses) for key in await one.table.of_owners(digests))

        for _ in range(2):
            async with open_store(keys=ring("one")) as history:
                await history.batch_add_history(batch)
                store: Any = history.store
                await store.encryption.texts.in_transaction(count)
        assert counted == [LEASE] * 3 + [2 * LEASE] * 3

    async def test_a_data_key_is_not_the_key_of_the_index(self, open_store: Open) -> None:
        async with open_store(keys=ring("one")) as history:
            await history.add_history("a", None, "tea", "ADD", owner=ANN)
            await change_the_key_of_ann(history, {"owner": INDEX, "uses": -1})
        with pytest.raises(StorageCorrupt, match="row was changed"):
            async with open_store(keys=ring("one")):
                pass

    async def test_keys_without_an_authenticated_owner_are_read_and_rotated(
        self, open_store: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As earlier versions wrapped them."""
        with monkeypatch.context() as earlier:
            earlier.setattr(StoredKey, "place", property(lambda key: place_of_key(key.id)))
            async with open_store(keys=ring("one")) as history:
                await history.add_history("a", None, "tea", "ADD", owner=ANN, cause={"run_id": "r"})
        async with open_store(keys=ring("one")) as history:
            await history.add_history("a", "tea", "milk", "UPDATE", cause={"run_id": "r"})
            assert await texts(history, "a") == ["tea", "milk"]
            assert await history.count_history(cause={"run_id": "r"}) == 2
            await history.encryption.rotate_keys()
            await change_the_key_of_ann(history, OF_BOB)
        async with open_store(keys=ring("one")) as history:
            with pytest.raises(StorageCorrupt, match="row was changed"):
                await history.get_history("a")
