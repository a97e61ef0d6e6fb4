"""Test cases that a backend must pass, for authors of backends. They need the extra `testing`.

A test file of another repository runs all of them like this:

    import pytest
    from async_history.backend import HistoryManager
    from async_history.testing import BackendCases, NewStore, OpenStore

    class TestMine(BackendCases):
        @pytest.fixture
        def new_store(self) -> NewStore:
            def new_store() -> OpenStore:
                backend = MyBackend(...)  # of an empty store
                return lambda: HistoryManager(backend)
            return new_store

Each class of cases can also be used alone. `BackendCases` will include future cases.
"""

import pytest

# Before the cases are imported, so that failing assertions show their values.
for _module in (
    "checks",
    "contract",
    "erasing",
    "examples",
    "follow",
    "late_calls",
    "lifecycle",
    "operations",
    "owner_queries",
    "owners",
    "queries",
    "records",
    "rollback",
    "rollback_meanwhile",
    "stateful",
    "states",
    "texts",
    "undo",
):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from async_history.testing.checks import CheckCases  # noqa: E402
from async_history.testing.contract import ContractCases  # noqa: E402
from async_history.testing.erasing import EraseOwnerCases  # noqa: E402
from async_history.testing.fixtures import Cases, NewStore, OpenStore  # noqa: E402
from async_history.testing.follow import FollowCases, FollowerEndCases  # noqa: E402
from async_history.testing.late_calls import LateCallCases  # noqa: E402
from async_history.testing.lifecycle import InterruptionCases, LifecycleCases  # noqa: E402
from async_history.testing.operations import OperationCases  # noqa: E402
from async_history.testing.owner_queries import OwnerQueryCases  # noqa: E402
from async_history.testing.owners import OwnerCases  # noqa: E402
from async_history.testing.queries import QueryCases  # noqa: E402
from async_history.testing.records import RecordCases  # noqa: E402
from async_history.testing.rollback import RollbackCases  # noqa: E402
from async_history.testing.rollback_meanwhile import RollbackMeanwhileCases  # noqa: E402
from async_history.testing.stateful import RandomCallCases  # noqa: E402
from async_history.testing.states import StateCases  # noqa: E402
from async_history.testing.texts import TextCases  # noqa: E402
from async_history.testing.undo import UndoCases  # noqa: E402

__all__ = [
    "BackendCases",
    "Cases",
    "CheckCases",
    "ContractCases",
    "EraseOwnerCases",
    "FollowCases",
    "FollowerEndCases",
    "InterruptionCases",
    "LateCallCases",
    "LifecycleCases",
    "NewStore",
    "OpenStore",
    "OperationCases",
    "OwnerCases",
    "OwnerQueryCases",
    "QueryCases",
    "RandomCallCases",
    "RecordCases",
    "RollbackCases",
    "RollbackMeanwhileCases",
    "StateCases",
    "TextCases",
    "UndoCases",
]


class BackendCases(
    ContractCases,
    RecordCases,
    TextCases,
    QueryCases,
    OwnerCases,
    OwnerQueryCases,
    EraseOwnerCases,
    LateCallCases,
    RollbackCases,
    RollbackMeanwhileCases,
    UndoCases,
    CheckCases,
    StateCases,
    OperationCases,
    LifecycleCases,
    InterruptionCases,
    FollowCases,
    FollowerEndCases,
    RandomCallCases,
):
    """All cases for a backend that stores records."""
