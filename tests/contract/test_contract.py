"""The contract: the cases of `async_history.testing` on every backend."""

import pytest

from async_history.testing import (
    CheckCases,
    ContractCases,
    EraseOwnerCases,
    LateCallCases,
    NewStore,
    OperationCases,
    OwnerCases,
    OwnerQueryCases,
    QueryCases,
    RecordCases,
    RollbackCases,
    RollbackMeanwhileCases,
    StateCases,
    TextCases,
    UndoCases,
)

pytestmark = pytest.mark.versions

statements = pytest.mark.statements
"""Random calls run the same statements through PgBouncer and in a rollback journal."""


class OfStoresThatKeep:
    @pytest.fixture
    def new_store(self, new_keeping_store: NewStore) -> NewStore:
        return new_keeping_store


@statements
class TestEveryBackend(ContractCases): ...


@statements
class TestBackendsThatKeep(OfStoresThatKeep, RecordCases, TextCases): ...


@statements
class TestQueries(OfStoresThatKeep, QueryCases): ...


@statements
@pytest.mark.once
class TestOwners(OfStoresThatKeep, OwnerCases, OwnerQueryCases): ...


@pytest.mark.once
class TestEraseOwner(OfStoresThatKeep, EraseOwnerCases, LateCallCases): ...


@pytest.mark.once
class TestRollback(OfStoresThatKeep, RollbackCases, RollbackMeanwhileCases, UndoCases): ...


@statements
@pytest.mark.once
class TestCheck(OfStoresThatKeep, CheckCases): ...


@statements
class TestStates(OfStoresThatKeep, StateCases): ...


@statements
@pytest.mark.once
class TestOperations(OfStoresThatKeep, OperationCases): ...
