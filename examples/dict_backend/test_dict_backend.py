"""The cases of `async_history.testing` for this backend, as a separate repository would have."""

from itertools import count

import pytest
from dict_backend import DictBackend, Kept

from async_history.backend import HistoryManager
from async_history.testing import BackendCases, NewStore, OpenStore


class TestDictBackend(BackendCases):
    examples = 20

    @pytest.fixture
    def new_store(self) -> NewStore:
        names = map(str, count(1))

        def new_store() -> OpenStore:
            backend = DictBackend(next(names), Kept())
            return lambda: HistoryManager(backend)

        return new_store
