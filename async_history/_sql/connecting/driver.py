"""Statements that the driver executes itself, without SQLAlchemy's work for each.

A server parses a prepared statement once, and gets its values in binary form. In bulk, a prepared
INSERT gets all rows of a batch in one message. asyncmy has both for MariaDB.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_PREPARED: Final = 64
"""Most statements that a connection keeps prepared."""
_PLACEHOLDER: Final = re.compile("%(.)")


class DriverErrors:
    """A context in which a driver's errors are raised as SQLAlchemy raises them.

    It is a class because each lone record enters it, and a generator takes three times as long.
    """

    def __init__(self, dialect: Dialect) -> None:
        driver: Any = dialect.dbapi
        self._dialect = dialect
        self._error = driver.Error

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, self._error):
            is_lost = self._dialect.is_disconnect(error, None, None)
            raise DBAPIError.instance(
                None,
                None,
                error,
                self._error,
                connection_invalidated=is_lost,
                dialect=self._dialect,
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

    with DriverErrors(connection.dialect):
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

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._errors = DriverErrors(dialect)
        self._driver: Any = None
        self._prepared: dict[str, Any] = {}

    async def execute(self, connection: AsyncConnection, sql: str, values: Sequence[Any]) -> int:
        """Execute a statement, and return the number of changed rows."""
        with self._errors:
            statement = await self._statement(connection, sql)
            if statement is not None:
                return int((await statement.execute(values)).affected_rows)
        return await execute(connection, sql, values)

    async def add(
        self, connection: AsyncConnection, sql: str, rows: Sequence[Sequence[Any]]
    ) -> None:
        """Execute an INSERT for all rows; each column must have a value in one of them."""
        driver: Any = self._dialect.dbapi
        with self._errors:
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
            statement = await self._prepare(sql)
            if len(self._prepared) == _MOST_PREPARED:
                oldest = self._prepared.pop(next(iter(self._prepared)))
                if oldest is not None:
                    await oldest.close()
        self._prepared[sql] = statement
        return statement

    async def _prepare(self, sql: str) -> Any | None:
        dbapi: Any = self._dialect.dbapi
        try:
            return await self._driver.prepare(_PLACEHOLDER.sub(_native, sql))
        except dbapi.Error as error:
            if self._dialect.is_disconnect(error, None, None):
                raise
            return None  # an older server prepares no blocks; or it has too many statements


def _native(placeholder: re.Match[str]) -> str:
    """Return a placeholder as servers have it: `?` for `%s`, and `%` for `%%`."""
    return "?" if placeholder[1] == "s" else placeholder[1]
