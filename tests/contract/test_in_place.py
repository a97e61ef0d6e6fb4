"""Encrypting, decrypting and replacing data keys in place: on files and on PostgreSQL."""

from pathlib import Path

import pytest

from async_history import open_history
from async_history.errors import InvalidInput
from tests.contract.decryption_cases import DecryptionCases
from tests.contract.encryption_race_cases import EncryptionRaceCases
from tests.contract.replaced_key_cases import ReplacedKeyCases
from tests.support.keys import ring

pytestmark = pytest.mark.once


class TestDecryption(DecryptionCases): ...


class TestEncryptionRaces(EncryptionRaceCases): ...


class TestReplacedKeys(ReplacedKeyCases): ...


async def test_a_history_with_a_ledger_cannot_be_decrypted_in_place(tmp_path: Path) -> None:
    async with open_history(tmp_path / "history.db", keys=ring("one"), ledger=True) as history:
        with pytest.raises(InvalidInput, match=r"ledger.*copy_history"):
            await history.encryption.decrypt()
