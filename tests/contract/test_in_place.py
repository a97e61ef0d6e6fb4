"""Encrypting, decrypting and replacing data keys in place: on files and on PostgreSQL."""

import asyncio
from pathlib import Path

import pytest

from async_history import open_history
from async_history._core.encryption.sealing import DataKey
from async_history.errors import InvalidInput, StorageError
from tests.contract.decryption_cases import DecryptionCases
from tests.contract.encryption_race_cases import EncryptionRaceCases
from tests.contract.erased_key_cases import ErasedKeyCases
from tests.contract.look_alike_cases import LookAlikeCases
from tests.contract.moved_key_cases import MovedKeyCases
from tests.contract.replaced_key_cases import ReplacedKeyCases
from tests.support.encrypted_stores import ANN, FEW, Open, all_of, contents, fill
from tests.support.keys import ring
from tests.support.limits import limited

pytestmark = pytest.mark.once


class TestDecryption(DecryptionCases): ...


class TestEncryptionRaces(EncryptionRaceCases): ...


class TestLookAlikes(LookAlikeCases): ...


class TestReplacedKeys(ReplacedKeyCases): ...


class TestMovedKeys(MovedKeyCases): ...


class TestErasedKeys(ErasedKeyCases): ...


@pytest.mark.parametrize("damaged", ["text 7", '{"why":"tea"}', '{"run_id":"r"}', "hello"])
async def test_a_text_that_cannot_be_opened_after_encryption_replaces_nothing(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """As on a machine with faulty memory: no text is overwritten by a damaged one."""
    seal = DataKey.seal

    def seal_another(key: DataKey, text: str, place: bytes, nonce: bytes) -> str:
        return seal(key, text.swapcase() if text == damaged else text, place, nonce)

    async with open_store() as history:
        records = await fill(history)
    async with open_store(keys=ring("one")) as history:
        for call in (history.encryption.encrypt, history.encryption.replace_data_keys):
            with monkeypatch.context() as faulty:
                faulty.setattr(DataKey, "seal", seal_another)
                with pytest.raises(StorageError, match="did not open after it was encrypted"):
                    await call()
            assert await all_of(history) == records
            assert await contents(history) == ["hello"] * 2
            await call()
        assert await all_of(history) == records
        assert await contents(history) == ["hello"] * 2


async def test_a_history_with_a_ledger_cannot_be_decrypted_in_place(tmp_path: Path) -> None:
    async with open_history(tmp_path / "history.db", keys=ring("one"), ledger=True) as history:
        with pytest.raises(InvalidInput, match=r"ledger.*copy_history"):
            await history.encryption.decrypt()


async def test_a_manager_without_keys_writes_during_each_change(open_store: Open) -> None:
    """It was open before encryption was turned on. Through SQLAlchemy it is refused instead."""
    async with (
        open_store() as plain,
        limited(open_store(keys=ring("one")), texts=FEW) as history,
    ):
        records = await fill(plain)
        written: list[str] = []

        async def write(call: str) -> None:
            for number in range(10):
                name = f"{call} {number}"
                await plain.add_history(name, None, name, "ADD", owner=ANN, cause={"run_id": name})
                written.append(name)

        for call in ("encrypt", "replace_data_keys", "rotate_keys", "encrypt", "decrypt"):
            await asyncio.gather(
                getattr(history.encryption, call)(), write(f"{call} {len(written)}")
            )
            found = await all_of(history)
            assert found[: len(records)] == records
            assert [one.new_memory for one in found[len(records) :]] == written
            for name in written[::5]:
                assert await history.count_history(cause={"run_id": name}) == 1
    async with open_store() as history:
        assert await all_of(history) == found
        assert await contents(history) == ["hello"] * 2


async def test_causes_are_found_that_were_recorded_without_the_keys(open_store: Open) -> None:
    """Through SQLAlchemy a manager without the keys is refused instead."""
    cause = {"run_id": "r"}
    async with open_store() as clear, open_store(keys=ring("one")) as history:
        await history.add_history("sealed", None, "text", "ADD", cause=cause)
        assert await history.count_history(cause=cause) == 1
        await clear.add_history("clear", None, "text", "ADD", cause=cause)
        await clear.add_history("clear", None, None, "DELETE", cause=cause)
        assert await history.count_history(cause=cause) == 3
        await history.encryption.encrypt()
        assert await history.count_history(cause=cause) == 3
