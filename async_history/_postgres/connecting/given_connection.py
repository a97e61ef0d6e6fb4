# mypy: disable-error-code=import-untyped
"""The asyncpg connection of the program's own transaction, also through SQLAlchemy."""

import sys
from typing import Any

import asyncpg

from async_history.errors import InvalidInput


async def asyncpg_connection(given: Any) -> Any:
    """Return the asyncpg connection of a given connection or session, in its transaction.

    Args:
        given: an asyncpg connection, or SQLAlchemy's `AsyncSession` or `AsyncConnection` on one. A
            session is flushed. SQLAlchemy's transaction is begun if needed.

    Raises:
        InvalidInput: it is another type, or not in a transaction.
    """
    sqlalchemy = sys.modules.get("sqlalchemy.ext.asyncio")
    connection = given
    if sqlalchemy is not None:
        if isinstance(given, sqlalchemy.AsyncSession):
            await given.flush()
            given = await given.connection()
        if isinstance(given, sqlalchemy.AsyncConnection):
            connection = (await given.get_raw_connection()).driver_connection
    if not isinstance(connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
        raise InvalidInput(
            f"{type(given).__name__} is not an asyncpg connection, nor SQLAlchemy's AsyncSession "
            "or AsyncConnection on asyncpg"
        )
    if given is not connection and not connection.is_in_transaction():
        await given.exec_driver_sql("SELECT 1")  # SQLAlchemy begins with the first statement
    if not connection.is_in_transaction():
        raise InvalidInput("the connection is in no transaction; begin one, or use the queue")
    return connection
