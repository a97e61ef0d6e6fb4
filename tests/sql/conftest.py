"""The stores of the SQL backend: on MariaDB, and through SQLAlchemy on SQLite and PostgreSQL."""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# Imported here, or the first test to open a store would be blamed for reading the modules.
import async_history._sql.manager  # noqa: F401
from async_history.sql import SqlHistoryManager
from async_history.testing import NewStore, OpenStore
from tests.support import markers
from tests.support.mariadb_server import MariaDBServer, run_sql


@pytest.fixture(scope="session")
def mariadb() -> Iterator[URL]:
    """The URL of a MariaDB whose databases the tests may fill."""
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
    if names and "TEST_MARIADB_URL" in os.environ:  # a server of our own is removed at the end
        run_sql(mariadb, *(f"DROP DATABASE {name}" for name in names))


@pytest.fixture
def new_mariadb_store(new_database: Callable[[], URL]) -> NewStore:
    """A function that makes empty stores in MariaDB: see `async_history.testing`."""

    def new_store() -> OpenStore:
        url = new_database()
        return lambda: SqlHistoryManager(url)

    return new_store


@pytest.fixture(scope="module")
def own_server() -> Iterator[MariaDBServer]:
    """A server that may be crashed: it keeps what it acknowledges.

    With a binary log it keeps what others saw, too: without, InnoDB shows a transaction before its
    log is written, and a follower may see what a crash takes away.
    """
    durable = {"innodb-flush-log-at-trx-commit": "1", "log-bin": "binlog", "sync-binlog": "1"}
    server = MariaDBServer(**durable).create().start()
    yield server
    server.remove()


@pytest.fixture
def new_own_database(own_server: MariaDBServer) -> Callable[[], URL]:
    """A function that makes an empty database on that server."""

    def url() -> URL:
        name = f"test_{secrets.token_hex(8)}"
        run_sql(own_server.url(), f"CREATE DATABASE {name}")
        return own_server.url(name)

    return url


@pytest.fixture
async def engines() -> AsyncIterator[Callable[[str], AsyncEngine]]:
    """A function that makes engines, as an application has them; they are closed at the end."""
    made: list[AsyncEngine] = []

    def engine(url: str) -> AsyncEngine:
        made.append(create_async_engine(url))
        return made[-1]

    yield engine
    for one in made:
        await one.dispose()
