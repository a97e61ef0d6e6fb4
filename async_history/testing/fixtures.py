"""What the importer of the cases provides, and what the cases share."""

import inspect
import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from async_history import HistoryManager, HistoryRecord

OpenStore = Callable[[], HistoryManager]
"""Return a new manager, not open yet. Each call's is on the same store, where the store lasts
longer than its manager; else each has an empty store of its own."""

NewStore = Callable[[], OpenStore]
"""Make an empty store, and return what opens it."""

LONG_S: Final = 120 * float(os.environ.get("TEST_PATIENCE", "1"))
"""More than anything takes that is not stuck. `TEST_PATIENCE` multiplies it on a slow machine."""


class Cases:
    """Test cases of one topic. They ask for one fixture, `new_store`, which returns a `NewStore`.

    Define it in a subclass, in the module or in `conftest.py`.
    """

    def __init_subclass__(cls) -> None:
        """Mark what is asynchronous, so that the cases also run in pytest-asyncio's strict mode."""
        super().__init_subclass__()
        for name, case in vars(cls).items():
            if name.startswith("test_") and inspect.iscoroutinefunction(case):
                pytest.mark.asyncio(case)

    @pytest.fixture
    def open_store(self, new_store: NewStore) -> OpenStore:
        """A function that opens managers of one store, which was empty."""
        return new_store()


async def found(history: HistoryManager, **wanted: Any) -> list[HistoryRecord]:
    """Return the records that a query finds."""
    return [record async for record in history.query_history(**wanted)]
