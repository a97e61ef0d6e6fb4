"""Random calls on each backend: the cases of `async_history.testing`."""

from pathlib import Path

import pytest

from async_history.testing import NewStore, RandomCallCases
from tests.conftest import new_stores

pytestmark = [pytest.mark.versions, pytest.mark.once]


class Here(RandomCallCases):
    store: str

    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
        return new_stores(self.store, request, tmp_path)


class TestMemory(Here):
    store = "memory"
    examples = 20


class TestFile(Here):
    store = "file"
    examples = 40


class TestNull(Here):
    store = "null"
    keeps_history = False
    examples = 20


@pytest.mark.postgres
class TestPostgres(Here):
    store = "postgres"
    examples = 30
