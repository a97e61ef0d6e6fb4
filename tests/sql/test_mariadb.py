"""`async_history.testing`'s cases on MariaDB."""

import pytest

from async_history.testing import (
    BackendCases,
    NewStore,
    OpenStore,
    RollbackCases,
    RollbackMeanwhileCases,
)

pytestmark = [pytest.mark.mariadb, pytest.mark.once]


class TestMariaDB(BackendCases):
    examples = 5

    @pytest.fixture
    def new_store(self, new_mariadb_store: NewStore) -> NewStore:
        return new_mariadb_store

    # The two longest cases of rollback take as long as all its others.

    @pytest.mark.nightly
    def test_random_histories_are_rolled_back(self, open_store: OpenStore) -> None:
        RollbackCases.test_random_histories_are_rolled_back(self, open_store)

    @pytest.mark.nightly
    async def test_a_rollback_cancelled_anywhere_can_be_repeated(
        self, open_store: OpenStore
    ) -> None:
        await RollbackMeanwhileCases.test_a_rollback_cancelled_anywhere_can_be_repeated(
            self, open_store
        )
