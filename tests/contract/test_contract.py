"""The contract: `async_history.testing`'s cases on every backend of ours."""

import pytest

from async_history.testing import (
    CheckCases,
    ContractCases,
    EraseOwnerCases,
    NewStore,
    OwnerCases,
    QueryCases,
    RecordCases,
    RollbackCases,
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


@pytest.mark.once
class TestOwners(OfStoresThatKeep, OwnerCases): ...


@pytest.mark.once
class TestEraseOwner(OfStoresThatKeep, EraseOwnerCases): ...


@pytest.mark.once
class TestRollback(OfStoresThatKeep, RollbackCases): ...


@pytest.mark.once
class TestCheck(OfStoresThatKeep, CheckCases): ...


class TestStates(OfStoresThatKeep, StateCases): ...
