"""Other managers at work while encryption is turned on or off, or keys are replaced."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import pytest

from async_history import HistoryManager
from async_history._core.encryption.decrypting import turn_off
from async_history._core.encryption.encrypting import finish_turning_on, turn_on
from async_history._core.removing.erase_transaction import note
from async_history.encryption import KeyRing
from async_history.errors import KeyMissing, StorageError
from tests.support.encrypted_stores import ANN, FEW, Open, all_of, changes, contents, fill
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.patience import LONG_S


def before_transaction(
    history: Any, number: int, do: Callable[[], Awaitable[Any]], *, is_off: bool = False
) -> None:
    """Do something before a manager's transaction of this number that goes through texts.

    Args:
        is_off: count only transactions after it has turned encryption off.
    """
    texts, keys = history.store.encryption.texts, history.store.encryption.keys
    in_transaction = texts.in_transaction
    begun = count(1)

    async def with_it(work: Any) -> Any:
        if keys.is_off >= is_off and next(begun) == number:
            await do()
        return await in_transaction(work)

    texts.in_transaction = with_it


class Service:
    """A key service that makes a call before it unwraps a key."""

    def __init__(self, do: Callable[[], Awaitable[Any]]) -> None:
        self._do = do

    async def wrap(self, key: bytes) -> bytes:
        return key[::-1]

    async def unwrap(self, wrapped: bytes) -> bytes:
        await self._do()
        return wrapped[::-1]


async def states(history: HistoryManager) -> list[Any]:
    return [one async for one in history.memories_at(datetime.now(UTC))]


async def followed(history: HistoryManager) -> list[Any]:
    new = history.follow()
    return [await asyncio.wait_for(anext(new), LONG_S) for _ in range(12)]


class EncryptionRaceCases:
    """Races with changes of keys. The fixture `open_store` opens managers of one store."""

    async def test_a_decryption_stops_if_encryption_was_turned_on_meanwhile(
        self, open_store: Open
    ) -> None:
        """Texts that were encrypted then may be behind it, so the keys must stay."""
        for turn in (2, 5):
            async with (
                open_store(keys=ring("one")) as other,
                limited(open_store(keys=ring("one")), texts=FEW) as history,
            ):
                await history.encryption.encrypt()
                await history.batch_add_history(changes(12, f"{turn} "))

                async def seal_between(other: Any = other, turn: int = turn) -> None:
                    texts, keys = other.store.encryption.texts, other.store.encryption.keys
                    await texts.in_transaction(partial(turn_on, keys))
                    await finish_turning_on(texts, keys)
                    await other.add_history("m", None, "sealed", "ADD", id=f"!{turn}", owner=ANN)
                    await other.save_messages([{"content": "sealed"}], "user_id=ann")
                    await texts.in_transaction(partial(turn_off, keys))

                before_transaction(history, turn, seal_between, is_off=True)
                with pytest.raises(StorageError, match="turned on meanwhile"):
                    await history.encryption.decrypt()
                assert {one.new_memory for one in await other.get_history("m")} == {"sealed"}
        async with open_store(keys=ring("one")) as history:
            records = await all_of(history)
            await history.encryption.decrypt()
        async with open_store() as history:
            assert await all_of(history) == records
            assert set(await contents(history)) == {"sealed"}

    async def test_a_manager_with_removed_keys_does_not_turn_encryption_on(
        self, open_store: Open
    ) -> None:
        """It is told to open the history again. Others write in clear."""
        async with open_store(keys=ring("one")) as idle, open_store(keys=ring("one")) as other:
            await fill(other)
            async with open_store(keys=ring("one")) as history:
                await history.encryption.decrypt()
            with pytest.raises(KeyMissing, match="no keys any more"):
                await idle.encryption.encrypt()
            for manager in (idle, other):
                await manager.add_history("m0", None, "later", "ADD")
            assert (await idle.operations())[-1].error == "KeyMissing"

    async def test_a_manager_without_keys_copies_no_encrypted_text(self, open_store: Open) -> None:
        """In another record it would not open, and all reads of that would fail."""
        async with open_store() as stale:
            await stale.add_history("m", None, "tea", "ADD")
            async with open_store(keys=ring("one")) as history:
                await history.update_history("m", "mate")
                then = datetime.now(UTC)
                await history.update_history("m", "milk")
                records = await all_of(history)
                latest = (await stale.get_history("m"))[-1]
                change = {"memory_id": "m", "event": "UPDATE", "old_memory": latest.new_memory}
                for call in (
                    stale.update_history("m", "matcha"),
                    stale.restore("m", to=1),
                    stale.restore("m", to=2),
                    stale.rollback(to=then, memory_ids=["m"]),
                    stale.batch_add_history([change], if_latest=latest),
                ):
                    with pytest.raises(KeyMissing, match="is encrypted"):
                        await call
                assert await all_of(history) == records
                assert not (await history.check()).problems

    async def test_opening_while_a_decryption_ends_raises_key_missing(
        self, open_store: Open
    ) -> None:
        async def nothing() -> None: ...

        async with open_store(keys=KeyRing({"kms": Service(nothing)})) as history:
            await fill(history)
            decrypting = Service(history.encryption.decrypt)
            with pytest.raises(KeyMissing, match="no keys any more"):
                await open_store(keys=KeyRing({"kms": decrypting}))

    async def test_causes_are_found_after_encryption_was_turned_off_and_on(
        self, open_store: Open
    ) -> None:
        """Their tokens are computed with a new key."""
        async with open_store(keys=ring("one")) as idle:
            await fill(idle)
            async with open_store(keys=ring("one")) as history:
                await history.encryption.decrypt()
            async with open_store(keys=ring("one")) as history:
                await history.encryption.encrypt()
            assert await idle.count_history(cause={"run_id": "r"}) == 6
            await idle.encryption.encrypt()
            await idle.add_history("m0", None, "later", "ADD", cause={"run_id": "r"})
        async with open_store(keys=ring("one")) as history:
            assert await history.count_history(cause={"run_id": "r"}) == 7

    async def test_keys_of_an_unfinished_erasure_stay(self, open_store: Open) -> None:
        """Until it ends. An interrupted erasure leaves everything readable."""
        async with (
            open_store(keys=ring("one")) as other,
            limited(open_store(keys=ring("one")), texts=FEW) as history,
        ):
            records = await fill(history)

            async def begin() -> None:
                noted = partial(note, [("user_id", "ann")], datetime.now(UTC))
                await other.store.eraser.in_transaction(noted)

            before_transaction(history, 2, begin)
            await history.encryption.replace_data_keys()
        async with open_store(keys=ring("one")) as history:
            assert await all_of(history) == records
            await history.erase(user_id="ann", reason="asked")
            assert {one.new_memory for one in await history.get_history("m1")} == {None}

    async def test_an_erasure_leaves_keys_of_an_unfinished_one(self, open_store: Open) -> None:
        """An interrupted erasure continues when it is called again. Until then all is readable."""
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            await history.add_history("bob's", None, "tea", "ADD", owner={"user_id": "bob"})
            records = await all_of(history)
            noted = partial(note, [("user_id", "ann")], datetime.now(UTC))
            await history.store.eraser.in_transaction(noted)
            await history.erase(user_id="bob", reason="asked")
            await history.erase(session_scopes=["s"], reason="asked")
            left = {one.id: one for one in await all_of(history)}
            for one in records:
                assert left[one.id] == one or one.memory_id == "bob's"
            report = await history.erase(user_id="ann", reason="asked")
            assert any("data keys" in sentence for sentence in report.remains)
            assert {one.new_memory for one in await history.get_history("m1")} == {None}

    @pytest.mark.parametrize("call", ["replace_data_keys", "decrypt"])
    async def test_a_read_during_a_change_of_keys_is_repeated(
        self, open_store: Open, call: str
    ) -> None:
        """The texts were read under a key that is gone when it is looked up."""
        reads: list[Callable[[HistoryManager], Awaitable[Any]]] = [
            lambda history: history.get_history("m1"),
            all_of,
            contents,
            lambda history: states(history),
            lambda history: followed(history),
            lambda history: history.store.reader.rows(None, 100),
        ]
        for read in reads:
            async with open_store(keys=ring("one")) as other:
                await other.encryption.encrypt()
                await fill(other) if not await other.count_history() else None
                async with open_store(keys=ring("one")) as history:
                    expected = await read(other)
                    store: Any = history.store
                    load = store.encryption.keys.load
                    is_first = True

                    async def load_late(*given: Any, load: Any = load, other: Any = other) -> Any:
                        nonlocal is_first
                        if is_first:
                            is_first = False
                            await getattr(other.encryption, call)()
                        return await load(*given)

                    store.encryption.keys.load = load_late
                    assert await read(history) == expected
                    assert not is_first
