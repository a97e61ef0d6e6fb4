"""The connection that holds a process's locks on MySQL and MariaDB: `GET_LOCK`."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from async_history._core.locking.lock_connection import LockConnection, SessionOptions
from async_history._core.locking.session_locks import SessionLocks
from async_history._sql.connecting.connections import terminate
from async_history._sql.errors import DriverError, storage_error
from async_history.errors import StorageUnreachable

_IDLE_S: Final = 30.0
"""Seconds that a connection without locks is kept."""
_CHECK_S: Final = 1.0
"""Seconds between checks of a connection with locks: MySQL's drivers do not report its loss."""
_KEEP_ALIVE: Final = text("SET SESSION wait_timeout = 60")
"""Otherwise the server would keep the locks of a lost machine for eight hours."""


def new_locks(
    new_engine: Callable[[], AsyncEngine],
    schema: str | None,
    where: str,
    *,
    acquire_s: float,
    retry_timeout_s: float,
) -> SessionLocks:
    """Return the locks of a process.

    Args:
        new_engine: creates an engine without a pool, on the thread of the locks.
        schema: the database that the tables are in; None for the connection's own.
        where: the server, for messages.
        acquire_s: how long to wait for a connection or an answer.
        retry_timeout_s: how long to retry if the server can't be reached.
    """

    async def connect() -> LockConnection:
        return await NamedLockConnection.connect(new_engine(), schema, where, acquire_s)

    options = SessionOptions(
        connect=connect,
        where=where,
        idle_s=_IDLE_S,
        check_s=_CHECK_S,
        retry_timeout_s=retry_timeout_s,
    )
    return SessionLocks(options, "")


class NamedLockConnection:
    """A connection whose session holds named locks. Create one with `connect`."""

    descriptor: Final = -1  # a forked child closes nothing: the server ends an unused session

    def __init__(
        self, connection: AsyncConnection, database: str, where: str, timeout_s: float
    ) -> None:
        self._connection = connection
        self._database = database
        self._where = where
        self._timeout_s = timeout_s

    @classmethod
    async def connect(
        cls, engine: AsyncEngine, schema: str | None, where: str, timeout_s: float
    ) -> Self:
        """Connect.

        Raises:
            StorageError: the server refuses the connection, or does not answer in time.
        """
        connection: AsyncConnection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await engine.connect()
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(_KEEP_ALIVE)
                own = (await connection.execute(text("SELECT DATABASE()"))).scalar()
        except BaseException as error:
            if connection is not None:
                _terminate(connection)
            if isinstance(error, DriverError):
                raise storage_error(error, where) from error
            raise
        return cls(connection, schema or str(own), where, timeout_s)

    async def release_and_try(
        self, released: Sequence[int], tried: Sequence[int]
    ) -> dict[int, bool]:
        """Release locks, then try to take others; return whether each of these was taken.

        Raises:
            StorageUnreachable: the server did not answer.
        """
        calls = [f"RELEASE_LOCK('{self._name(number)}')" for number in released]
        calls += [f"GET_LOCK('{self._name(number)}', 0)" for number in tried]
        sql = f"SELECT {', '.join(calls or ['1'])}"
        try:
            async with asyncio.timeout(self._timeout_s):
                row: Any = (await self._connection.exec_driver_sql(sql)).one()
        except DriverError as error:
            raise StorageUnreachable(f"{self._where} did not answer ({error})") from error
        return {n: got == 1 for n, got in zip(tried, row[len(released) :], strict=False)}

    def _name(self, number: int) -> str:
        """Return a lock's name: unique in the server, not the database; at most 64 characters."""
        named = f"{self._database}\0{number}".encode()
        return f"async_history turn {blake2b(named, digest_size=20).hexdigest()}"

    def when_terminated(self, call: Callable[[], None]) -> None:
        """Do nothing: the driver does not report it."""

    def terminate(self) -> None:
        """Close the connection at once; the server then releases its locks."""
        _terminate(self._connection)


def _terminate(connection: AsyncConnection) -> None:
    with contextlib.suppress(Exception):  # the connection or its loop is gone
        terminate(connection)
