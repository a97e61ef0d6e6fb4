"""The contract on encrypted stores: the cases of `async_history.testing` that texts go through."""

from pathlib import Path

import pytest

from async_history.testing import (
    ContractCases,
    EraseOwnerCases,
    FollowCases,
    NewStore,
    OpenStore,
    OwnerCases,
    QueryCases,
    RandomCallCases,
    RecordCases,
    RollbackCases,
    TextCases,
)
from tests.conftest import new_stores
from tests.support.keys import ring

pytestmark = pytest.mark.once


class _EncryptedCases(
    ContractCases,
    RecordCases,
    TextCases,
    QueryCases,
    OwnerCases,
    EraseOwnerCases,
    RollbackCases,
    FollowCases,
    RandomCallCases,
):
    examples = 10
    store = "file"

    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
        new = new_stores(self.store, request, tmp_path)

        def new_store() -> OpenStore:
            open_store = new()
            return lambda: open_store(keys=ring("one"))

        return new_store


class TestEncryptedFile(_EncryptedCases): ...


@pytest.mark.postgres
class TestEncryptedPostgres(_EncryptedCases):
    examples = 3
    store = "postgres"
