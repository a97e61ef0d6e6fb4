"""Statements that the driver executes itself, without SQLAlchemy's work for each.

A server parses a prepared statement once, and gets its values in binary form. In bulk, a prepared
INSERT gets all rows of a batch in one message. asyncmy has both for MariaDB.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_PREPARED: Final = 64
"""Most statements that a connection keeps prepared."""
_PLACEHOLDER: Final = re.compile("%(.)")


@contextlib.contextmanager
def errors_of(dialect: Dialect) -> Iterator[None]:
    """Raise a driver's errors as SQLAlchemy does."""
    driver: Any = dialect.dbapi
    try:
        yield
    except driver.Error as error:
        is_lost = dialect.is_disconnect(error, None, None)
        raise DBAPIError.instance(
            None, None, error, driver.Error, connection_invalidated=is_lost, dialect=dialect
        ) from error


async def execute(connection: AsyncConnection, sql: str, values: Sequence[Any]) -> int:
    """Execute a statement, and return the number of changed rows."""

    def run(sync: Connection) -> int:
        cursor = sync.connection.cursor()
        try:
            cursor.execute(sql, values)
            return cursor.rowcount
        finally:
            cursor.close()

    with errors_of(connection.dialect):
        return await connection.run_sync(run)


def prepares(dialect: Dialect) -> bool:
    """Return whether the driver of a connected database has prepared statements and bulk.

    asyncmy has them since 0.2.13.
    """
    if dialect.driver != "asyncmy" or not getattr(dialect, "is_mariadb", False):
        return False
    dbapi: Any = dialect.dbapi
    return hasattr(dbapi.asyncmy.Connection, "prepare")


class PreparedStatements:
    """The prepared statements of the writing connection, by their SQL.

    Their SQL has the driver's own placeholders.
    """

    def __init__(self) -> None:
        self._driver: Any = None
        self._prepared: dict[str, Any] = {}

    async def execute(self, connection: AsyncConnection, sql: str, values: Sequence[Any]) -> int:
        """Execute a statement, and return the number of changed rows."""
        with errors_of(connection.dialect):
            statement = await self._statement(connection, sql)
            if statement is not None:
                return int((await statement.execute(values)).affected_rows)
        return await execute(connection, sql, values)

    async def add(
        self, connection: AsyncConnection, sql: str, rows: Sequence[Sequence[Any]]
    ) -> None:
        """Execute an INSERT for all rows; each column must have a value in one of them."""
        driver: Any = connection.dialect.dbapi
        with errors_of(connection.dialect):
            statement = await self._statement(connection, sql)
            if statement is not None:
                with contextlib.suppress(driver.NotSupportedError):  # raised before it is sent
                    await statement.execute_bulk(rows)
                    return
        await connection.exec_driver_sql(sql, list(map(tuple, rows)))

    async def _statement(self, connection: AsyncConnection, sql: str) -> Any | None:
        """Return a prepared statement; None if the server refuses to prepare it."""
        sync: Any = connection.sync_connection
        driver = sync.connection.driver_connection
        if driver is not self._driver:
            self._driver, self._prepared = driver, {}
        if sql in self._prepared:
            statement = self._prepared.pop(sql)
        else:
            statement = await self._prepare(connection.dialect, sql)
            if len(self._prepared) == _MOST_PREPARED:
                oldest = self._prepared.pop(next(iter(self._prepared)))
                if oldest is not None:
                    await oldest.close()
        self._prepared[sql] = statement
        return statement

    async def _prepare(self, dialect: Dialect, sql: str) -> Any | None:
        dbapi: Any = dialect.dbapi
        try:
            return await self._driver.prepare(_PLACEHOLDER.sub(_native, sql))
        except dbapi.Error as error:
            if dialect.is_disconnect(error, None, None):
                raise
            return None  # an older server prepares no blocks; or it has too many statements


def _native(placeholder: re.Match[str]) -> str:
    """Return a placeholder as servers have it: `?` for `%s`, and `%` for `%%`."""
    return "?" if placeholder[1] == "s" else placeholder[1]
