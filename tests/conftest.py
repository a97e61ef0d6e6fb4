"""Fixtures for every test: the stores of the contract, and a guard against a blocked loop."""

import gc
import itertools
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# Imported here: the guard must not see the first test that opens a store read the modules.
import async_history._null
import async_history._postgres.manager
import async_history._sql.manager
import async_history._sqlite.manager  # noqa: F401
from async_history import HistoryManager, open_history
from async_history.sql import SqlHistoryManager
from tests.support import markers
from tests.support.mariadb_server import MariaDBServer, run_sql
from tests.support.patience import PATIENCE
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import VERSIONS, PostgresServer, drop_schemas, with_query

# pytest rewrites the assertions of test modules and no others by itself.
pytest.register_assert_rewrite("tests.contract")

# A shell's background job ignores SIGINT, and so would programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["MEM0_TELEMETRY"] = "False"  # mem0 reads it when it is first imported

OpenStore = Callable[..., HistoryManager]
_LAST_S = 120
"""A process that has run its tests must end within this time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the long endurance tests too")
    parser.addoption("--kills", type=int, default=60, help="kills under load (60)")


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads it
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("timeout") is None:
        config.option.timeout = float(config.getini("timeout")) * PATIENCE
    # A busy machine may be slow at any example. In CI the examples are always the same, but for
    # the nightly ones: a change is not refused for an older fault that chance finds that day.
    settings.register_profile(
        "async_history",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize="ASYNC_HISTORY_CI" in os.environ and not config.getoption("nightly"),
    )
    settings.load_profile("async_history")


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in (
            ("postgres", "postgres"),
            ("pooled", "pgbouncer"),
            ("mariadb", "mariadb"),
        ):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        for limit in list(item.iter_markers("timeout")):
            item.add_marker(pytest.mark.timeout(limit.args[0] * PATIENCE), append=False)
    if not config.getoption("--nightly"):
        items[:] = [item for item in items if not _repeats_statements(item)]
        skip = pytest.mark.skip(reason="long version: run with --nightly")
        for item in items:
            if "nightly" in item.keywords:
                item.add_marker(skip)


def _repeats_statements(item: pytest.Item) -> bool:
    """Return whether a test only checks SQL, on a store that runs another store's SQL."""
    callspec = getattr(item, "callspec", None)
    return (
        "statements" in item.keywords
        and callspec is not None
        and not {"pgbouncer", "rollback"}.isdisjoint(callspec.params.values())
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process that its threads keep alive, after a traceback of each of them.

    Not a worker's: it waits for the last test of the others, and is ended with the controller.
    """
    if not hasattr(config, "workerinput"):
        threading.Thread(target=_end_later, daemon=True).start()


def _end_later() -> None:
    time.sleep(_LAST_S * PATIENCE)
    names = {thread.ident: repr(thread) for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        print(names.get(ident, f"another thread, {ident}"), file=sys.__stderr__)
        traceback.print_stack(frame, file=sys.__stderr__)
    os._exit(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    markers.begin(item)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the collections that `nothing_left_open` asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """One in how many of a program's writes is tried: every one with `--nightly`."""
    return 1 if request.config.getoption("--nightly") else 11


@pytest.fixture(scope="module", autouse=True)
def blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose event loop makes a blocking call inside the library.

    Wrapping all blocking calls takes longer than many tests, so it is done once a module.
    """
    with blockbuster_ctx("async_history", excluded_modules=["async_history.testing"]) as guard:
        for blocking in guard.functions.values():
            # asyncpg looks for ~/.pgpass and certificates when it connects.
            blocking.can_block_in("asyncpg/connect_utils.py", _CONNECTING)
            # One stat, which `require_writable` makes for its caller.
            blocking.can_block_in("async_history/_sqlite/pool.py", "require_file")
            # A fork waits for our threads, also one by which uvloop starts a process.
            blocking.can_block_in("async_history/_sqlite/connecting/fork_pauses.py", "before_fork")
        yield guard


_CONNECTING = {"_read_password_file", "_parse_connect_dsn_and_args", "_create_ssl_context"}


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Let a connection that was not closed warn in the test that forgot it.

    What is left then stays (mostly imports). Collecting it after each test took a third of
    the time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL database for the tests: see `postgres_server`."""
    url = os.environ.get("TEST_POSTGRES_URL")
    if url:
        yield url
        return
    server = PostgresServer(int(os.environ.get("TEST_POSTGRES_VERSION", VERSIONS[0])))
    server.create().start()
    yield server.url()
    server.remove()


@pytest.fixture(scope="session")
def pooled(postgres: str) -> Iterator[str]:
    """The URL of the same database through a PgBouncer of two connections."""
    with pgbouncer(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb() -> Iterator[URL]:
    """The URL of a MariaDB server for the tests."""
    url = os.environ.get("TEST_MARIADB_URL")
    if url:
        yield make_url(url)
        return
    server = MariaDBServer().create().start()
    yield server.url()
    server.remove()


@pytest.fixture
def new_database(mariadb: URL) -> Iterator[Callable[[], URL]]:
    """A function that makes an empty database and returns its URL."""
    markers.require("mariadb")
    names: list[str] = []

    def url() -> URL:
        names.append(f"test_{secrets.token_hex(8)}")
        run_sql(mariadb, f"CREATE DATABASE {names[-1]}")
        return mariadb.set(database=names[-1])

    yield url
    if names and "TEST_MARIADB_URL" in os.environ:  # the tests' own server is removed at the end
        run_sql(mariadb, *(f"DROP DATABASE {name}" for name in names))


@pytest.fixture
def new_schema(postgres: str) -> Iterator[Callable[[], str]]:
    """A function that returns the URL of an unused schema; they are dropped afterwards."""
    markers.require("postgres")
    schemas: list[str] = []

    def url() -> str:
        schemas.append(f"test_{secrets.token_hex(8)}")
        return with_query(postgres, schema=schemas[-1])

    yield url
    drop_schemas(postgres, schemas)


_MARKS = {
    "postgres": [pytest.mark.postgres],
    "pool": [pytest.mark.postgres],
    "mariadb": [pytest.mark.mariadb, pytest.mark.once],
    "sqlalchemy": [pytest.mark.once],
    "sqlalchemy postgres": [pytest.mark.postgres, pytest.mark.once],
    "pooler": [pytest.mark.postgres, pytest.mark.pgbouncer, pytest.mark.once],
    "pgbouncer": [pytest.mark.postgres, pytest.mark.pgbouncer, pytest.mark.once],
    # They run a file's statements and writer, so one CPython version is enough.
    "memory": [pytest.mark.once],
    "null": [pytest.mark.once],
    "rollback": [pytest.mark.once],
    "rollback journal": [pytest.mark.once],
}


def stores(*names: str) -> list[Any]:
    """Return stores to parametrize tests with, each with the markers of what it needs."""
    return [pytest.param(name, marks=_MARKS.get(name, [])) for name in names]


def examples(store: str, count: int) -> int:
    """Return how many random histories to try: a quarter on a store without SQL of its own.

    Memory and a rollback journal run the same SQL as a file in WAL, PgBouncer that of a server.
    """
    return count // 4 if store in ("memory", "rollback", "pgbouncer") else count


def url_of(store: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the URL of a new store of one backend."""
    if store == "file":
        return str(folder / "history.db")
    if store == "rollback":
        return f"sqlite:///{folder / 'history.db'}?journal=delete"
    if store == "mariadb":
        new_database: Callable[[], URL] = request.getfixturevalue("new_database")
        return new_database().render_as_string(hide_password=False)
    if store in ("postgres", "pgbouncer"):
        new_schema: Callable[[], str] = request.getfixturevalue("new_schema")
        url = new_schema()
        if store == "pgbouncer":
            pooled: str = request.getfixturevalue("pooled")
            return with_query(pooled, schema=parse_qs(urlsplit(url).query)["schema"][0])
        return url
    return f"{store}://"


def new_stores(store: str, request: pytest.FixtureRequest, folder: Path) -> Callable[[], OpenStore]:
    """Return a function that makes new stores of one backend."""
    folders = (folder / str(number) for number in itertools.count(1))

    def new_store() -> OpenStore:
        own_folder = next(folders)
        own_folder.mkdir()
        if store == "sqlalchemy":
            file = f"sqlite+aiosqlite:///{own_folder / 'history.db'}"
            # Without a pool, whose connections would stay open: nothing disposes of the engine.
            engine = partial(create_async_engine, file, poolclass=NullPool)
            return lambda **options: open_history(engine=engine(), **options)
        if store == "sqlalchemy postgres":
            server = make_url(url_of("postgres", request, own_folder))
            schema = str(server.query["schema"])
            plain = server.difference_update_query(["schema"]).set(drivername="postgresql+asyncpg")
            return lambda **options: SqlHistoryManager(plain, schema=schema, **options)
        url = url_of(store, request, own_folder)
        return lambda **options: open_history(url, **options)

    return new_store


@pytest.fixture(params=stores("file", "memory", "null", "postgres", "pgbouncer", "rollback"))
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], OpenStore]:
    """A function that makes new stores of one backend: see `async_history.testing`."""
    return new_stores(request.param, request, tmp_path)


@pytest.fixture(params=stores("file", "memory", "postgres", "pgbouncer", "rollback"))
def new_keeping_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], OpenStore]:
    """As `new_store`, of the backends that keep history."""
    return new_stores(request.param, request, tmp_path)


@pytest.fixture
def open_store(new_store: Callable[[], OpenStore]) -> OpenStore:
    """A function that opens a new manager of one backend: on the same store, where that lasts."""
    return new_store()


@pytest.fixture
def open_keeping_store(new_keeping_store: Callable[[], OpenStore]) -> OpenStore:
    """As `open_store`, of the backends that keep history."""
    return new_keeping_store()
