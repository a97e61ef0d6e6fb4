"""The fixture that the importer of the cases provides, and code shared by the cases."""

import inspect
import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from async_history import HistoryManager, HistoryRecord

OpenStore = Callable[[], HistoryManager]
"""Returns a new manager, not open yet. If the store outlives its manager, all managers have the
same store; otherwise each has its own empty store.
"""

NewStore = Callable[[], OpenStore]
"""Makes an empty store, and returns a function that opens it."""

LONG_S: Final = 120 * float(os.environ.get("TEST_PATIENCE", "1"))
"""Seconds that are enough for everything that does not hang. `TEST_PATIENCE` multiplies it."""


class Cases:
    """Test cases of one topic. They ask for one fixture, `new_store`, which returns a `NewStore`.

    Define it in a subclass, in the module or in `conftest.py`.
    """

    def __init_subclass__(cls) -> None:
        """Mark asynchronous cases, so that they also run in pytest-asyncio's strict mode."""
        super().__init_subclass__()
        for name, case in vars(cls).items():
            if name.startswith("test_") and inspect.iscoroutinefunction(case):
                pytest.mark.asyncio(case)

    @pytest.fixture
    def open_store(self, new_store: NewStore) -> OpenStore:
        """A function that opens managers of one initially empty store."""
        return new_store()


async def found(history: HistoryManager, **wanted: Any) -> list[HistoryRecord]:
    """Return the records that a query finds."""
    return [record async for record in history.query_history(**wanted)]
