"""A store of each kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import new_stores
from tests.support.encrypted_stores import Open


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.postgres)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    new_store: Callable[[], Open] = new_stores(request.param, request, tmp_path)
    return new_store()
