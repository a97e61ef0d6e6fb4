"""The contract: `async_history.testing`'s cases on every backend of ours."""

import pytest

from async_history.testing import (
    ContractCases,
    NewStore,
    OwnerCases,
    QueryCases,
    RecordCases,
    StateCases,
    TextCases,
)

pytestmark = pytest.mark.versions


class OfStoresThatKeep:
    @pytest.fixture
    def new_store(self, new_keeping_store: NewStore) -> NewStore:
        return new_keeping_store


class TestEveryBackend(ContractCases): ...


class TestBackendsThatKeep(OfStoresThatKeep, RecordCases, TextCases): ...


class TestQueries(OfStoresThatKeep, QueryCases): ...


class TestOwners(OfStoresThatKeep, OwnerCases): ...


class TestStates(OfStoresThatKeep, StateCases): ...
