"""What every test may use: the stores of the contract, and a guard against a blocked loop."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

# Imported here, or the first test to open a store would be blamed for reading the modules.
import async_history.backends.null
import async_history.backends.sqlite  # noqa: F401
from async_history import HistoryManager, open_history

OpenStore = Callable[..., HistoryManager]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the long endurance tests too")
    parser.addoption("--kills", type=int, default=500, help="kills under load (500)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--nightly"):
        skip = pytest.mark.skip(reason="long version: run with --nightly")
        for item in items:
            if "nightly" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the collections that `nothing_left_open` asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose event loop makes a blocking call inside the library."""
    with blockbuster_ctx("async_history") as guard:
        yield guard


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Let a connection that was not closed warn in the test that forgot it."""
    yield
    gc.collect()


STORES = ("file", "memory", "null")


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """A function that opens a new manager of one backend: on the same store, where that lasts."""
    urls = {"file": str(tmp_path / "history.db"), "memory": "memory://", "null": "null://"}
    url = urls[request.param]
    return lambda **options: open_history(url, **options)


@pytest.fixture(params=[store for store in STORES if store != "null"])
def open_keeping_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """As `open_store`, of the backends that keep history."""
    url = str(tmp_path / "history.db") if request.param == "file" else "memory://"
    return lambda **options: open_history(url, **options)
