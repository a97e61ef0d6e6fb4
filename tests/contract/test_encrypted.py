"""The contract on encrypted stores: the cases of `async_history.testing` that read texts."""

from pathlib import Path

import pytest

from async_history.testing import NewStore, OpenStore
from tests.conftest import new_stores
from tests.support.encrypted_cases import EncryptedCases
from tests.support.keys import ring

pytestmark = pytest.mark.once


class _StoreCases(EncryptedCases):
    examples = 10
    store = "file"

    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
        new = new_stores(self.store, request, tmp_path)

        def new_store() -> OpenStore:
            open_store = new()
            return lambda: open_store(keys=ring("one"))

        return new_store


class TestEncryptedFile(_StoreCases): ...


@pytest.mark.postgres
class TestEncryptedPostgres(_StoreCases):
    examples = 3
    store = "postgres"
