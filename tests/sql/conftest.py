"""The stores of the SQL backend: on MariaDB, and through SQLAlchemy on SQLite and PostgreSQL."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history.sql import SqlHistoryManager
from async_history.testing import NewStore, OpenStore
from tests.support.mariadb_server import MariaDBServer, run_sql
from tests.support.sql_dialects import StatementChecks


@pytest.fixture(scope="session")
def statement_checks() -> StatementChecks:
    """The checked statements of earlier tests."""
    return StatementChecks()


@pytest.fixture(autouse=True)
def _every_statement_is_for_every_database(statement_checks: StatementChecks) -> Iterator[None]:
    """Check that a test's statements on one database also compile for, and suit, the others."""
    checks = statement_checks
    checks.faults.clear()
    event.listen(Engine, "before_execute", checks.before_execute)
    yield
    event.remove(Engine, "before_execute", checks.before_execute)
    assert checks.faults == []


@pytest.fixture
def new_mariadb_store(new_database: Callable[[], URL]) -> NewStore:
    """A function that makes empty stores in MariaDB: see `async_history.testing`."""

    def new_store() -> OpenStore:
        url = new_database()
        return lambda: SqlHistoryManager(url)

    return new_store


@pytest.fixture(scope="module")
def own_server() -> Iterator[MariaDBServer]:
    """A server that tests may crash: it keeps acknowledged transactions.

    With a binary log it also keeps what others have read. Without one, InnoDB shows a transaction
    before its log is written, and a follower may see records that a crash removes.
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
    """A function that makes engines, as an application does. They are closed at the end."""
    made: list[AsyncEngine] = []

    def engine(url: str) -> AsyncEngine:
        made.append(create_async_engine(url))
        return made[-1]

    yield engine
    for one in made:
        await one.dispose()
