"""`async_history.testing`'s cases on MariaDB.

Those of rollback and undo are left out: they run on calls that these cases try.
"""

import pytest

from async_history.testing import (
    BackendCases,
    NewStore,
    RollbackCases,
    RollbackMeanwhileCases,
    UndoCases,
)

pytestmark = [pytest.mark.mariadb, pytest.mark.once]
_LEFT_OUT = (RollbackCases, RollbackMeanwhileCases, UndoCases)
_TOPICS = tuple(one for one in BackendCases.__bases__ if one not in _LEFT_OUT)


class TestMariaDB(*_TOPICS):  # type: ignore[misc]
    examples = 5

    @pytest.fixture
    def new_store(self, new_mariadb_store: NewStore) -> NewStore:
        return new_mariadb_store

    test_what_a_run_did_is_taken_back = UndoCases.test_what_a_run_did_is_taken_back
