"""The connections of an open history: one for writing, the others for reading."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.deadline import TimeLimit
from async_history._core.concurrency.until_free import until_free
from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._sql.connecting.session_limits import OWN_LIMITS, Limits, SessionLimits
from async_history._sql.connecting.sqlite_cancellation import (
    connect_interruptible,
    run_interruptible,
)
from async_history._sql.dialects import begin_write, is_sqlite
from async_history._sql.errors import (
    DriverError,
    is_connection_lost,
    is_full,
    may_work_later,
    package_missing,
    storage_error,
)
from async_history.errors import HistoryClosed, StorageError, StorageUnreachable

T = TypeVar("T")

Work = Callable[[AsyncConnection], Awaitable[T]]
"""A coroutine function that uses a connection."""

_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CLOSE_S: Final = 5.0
"""How long closing a connection may take."""


class Committing:
    """A context that commits: a connection lost in it leaves the outcome unknown.

    It is a class because each lone record enters it, and a generator takes three times as long.
    """

    def __init__(self) -> None:
        self.has_begun = False

    def __enter__(self) -> None:
        self.has_begun = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.has_begun = kind is not None


class Connections:
    """Connections of an engine, with timeouts and typed errors.

    Args:
        owns_engine: whether the engine is ours, and is disposed of at the end.
        where: the server, for messages.
        acquire_s: how long to wait for a connection.
        try_s: how long a read may take.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        where: str,
        *,
        owns_engine: bool,
        acquire_s: float,
        try_s: float,
    ) -> None:
        self._engine = engine
        self._owns_engine = owns_engine
        self.where = where
        driver = engine.dialect.dbapi
        self._raw_errors: tuple[type[Exception], ...] = () if driver is None else (driver.Error,)
        self._any_error: tuple[type[Exception], ...] = (*DriverError, *self._raw_errors)
        """The driver's own errors too: SQLAlchemy does not wrap those raised by setting options."""
        self._acquire_s = acquire_s
        self._try_s = try_s
        self._writing: AsyncConnection | None = None
        self._is_sqlite = is_sqlite(engine.dialect)
        self._write_limit = TimeLimit()
        self.session_limits = SessionLimits(engine.dialect)
        self.committing = Committing()
        self._is_closed = False
        self._reads = 0
        self._none_reads = asyncio.Event()
        self._none_reads.set()
        self._reading: set[AsyncConnection] = set()

    @property
    def dialect(self) -> Dialect:
        """The engine's dialect."""
        return self._engine.dialect

    async def _connect(self) -> AsyncConnection:
        if self._is_sqlite:
            return await connect_interruptible(self._engine)
        try:
            return await until_free(lambda _: self._engine.connect(), is_full, self._acquire_s)
        except RuntimeError as error:
            missing = package_missing(error, self.where)
            if missing is None:
                raise
            raise missing from error

    async def _run(self, work: Awaitable[T], connection: AsyncConnection) -> T:
        return await (run_interruptible(work, connection) if self._is_sqlite else work)

    # Writing

    async def write(
        self,
        work: "Work[T]",
        within_s: float,
        limits: Limits = OWN_LIMITS,
    ) -> T:
        """Do work in one transaction on the writing connection, and commit it.

        Args:
            within_s: seconds that the work may take.
            limits: the server's limits for its lock waits and statements.

        Raises:
            TryAgain: nothing was written, and the same work may succeed soon.
            OutcomeUnknown: the connection was lost during the commit.
            StorageError: nothing was written.
        """
        connection = self._writing
        if connection is None or connection.closed or connection.invalidated:
            connection = await self._ready()
        self.committing.has_begun = False
        try:
            with self._write_limit.within(within_s):
                await self.session_limits.wait_for_client(connection, within_s)
                await self.session_limits.set(connection, limits)
                if self._is_sqlite:
                    done = await run_interruptible(_begun(work, connection), connection)
                else:
                    done = await work(connection)
                if connection.in_transaction():  # else a statement has committed its own writes
                    with self.committing:
                        await connection.commit()
                return done
        except DriverError as error:
            await self._undo(connection, error)
            failure = storage_error(error, self.where)
            if self.committing.has_begun and is_connection_lost(error):
                raise OutcomeUnknown(str(failure)) from error
            if may_work_later(error):
                raise TryAgain(failure) from error
            raise failure from error
        except asyncio.CancelledError:
            # The writer tries again. Records that were committed then count as written.
            await self._drop(connection)
            raise
        except BaseException:
            await self._undo(connection, None)
            raise

    async def _ready(self) -> AsyncConnection:
        try:
            return await self.connect_to_write()
        except StorageUnreachable as error:
            raise TryAgain(error) from error

    async def connect_to_write(self) -> AsyncConnection:
        """Return the writing connection, a new one if needed.

        Each of its statements sees what was committed before it.

        Raises:
            StorageError: it can't connect.
        """
        connection = self._writing
        if connection is not None and (connection.closed or connection.invalidated):
            await self._drop(connection)
            connection = None
        if connection is not None:
            return connection
        try:
            async with asyncio.timeout(self._acquire_s):
                connection = await self._connect()
                if not self._is_sqlite:
                    await connection.execution_options(isolation_level="READ COMMITTED")
                await self.session_limits.begin(connection)
                await self.session_limits.wait_for_client(connection, self._try_s)
        except self._any_error as error:
            if connection is not None:
                await _end(connection)
            raise storage_error(error, self.where) from error
        except asyncio.CancelledError:
            if connection is not None:
                await to_the_end(_end(connection))
            raise
        self._writing = connection
        return connection

    async def set_up(self, work: "Work[T]") -> T:
        """Do work on the writing connection that commits by itself, with the timeout of a read.

        Raises:
            StorageError: there is no connection, or the work failed.
        """
        connection = await self.connect_to_write()
        try:
            async with asyncio.timeout(max(self._try_s, self._acquire_s)):
                done = await self._run(work(connection), connection)
                await connection.rollback()
                return done
        except DriverError as error:
            await self._drop(connection)
            raise storage_error(error, self.where) from error
        except BaseException:
            await self._drop(connection)
            raise

    async def _undo(self, connection: AsyncConnection, error: BaseException | None) -> None:
        """Roll back; drop a connection that can no longer be used."""
        if error is None or not is_connection_lost(error):
            with contextlib.suppress(*DriverError):
                async with asyncio.timeout(_CLOSE_S):
                    await connection.rollback()
                return
        await self._drop(connection)

    async def _drop(self, connection: AsyncConnection) -> None:
        if self._writing is connection:
            self._writing = None
        await to_the_end(_end(connection))

    # Reading

    async def read(self, work: "Work[T]", extra_s: float = 0.0) -> T:
        """Do work that only reads. If the connection is lost, do it once more.

        Args:
            extra_s: extra seconds that the work may take, because it is large.

        Raises:
            StorageError: the read failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._try_s + extra_s
        pause = _PAUSE_S
        while True:
            try:
                async with self.reading(extra_s) as connection:
                    return await self._run(work(connection), connection)
            except StorageUnreachable:
                if loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def reading(self, extra_s: float = 0.0) -> AsyncIterator[AsyncConnection]:
        """Provide a connection, and return it to the pool afterwards; `extra_s` is as in `read`.

        Raises:
            StorageError: there is no connection, or the body failed.
        """
        if self._is_closed:
            raise HistoryClosed("the manager is closed; open another")
        self._reads += 1
        self._none_reads.clear()
        try:
            async with self._read_connection(extra_s) as connection:
                yield connection
        finally:
            self._reads -= 1
            if not self._reads:
                self._none_reads.set()

    @contextlib.asynccontextmanager
    async def _read_connection(self, extra_s: float) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(self._acquire_s):
                connection = await self._connect()
        except DriverError as error:
            raise storage_error(error, self.where) from error
        self._reading.add(connection)
        try:
            async with asyncio.timeout(self._try_s + extra_s):
                yield connection
        except DriverError as error:
            lost = is_connection_lost(error)
            await to_the_end(_end(connection) if lost else _close(connection))
            raise storage_error(error, self.where) from error
        except asyncio.CancelledError:
            await to_the_end(_close(connection) if self._is_sqlite else _end(connection))
            raise
        except BaseException:
            await to_the_end(_close(connection))
            raise
        else:
            await to_the_end(_close(connection))
        finally:
            self._reading.discard(connection)

    # Closing

    async def aclose(self) -> None:
        """End the writing connection, and wait for reads that are under way."""
        self._is_closed = True
        self._write_limit.stop()
        connection, self._writing = self._writing, None
        if connection is not None:
            # Returning it to the pool would first reset its isolation level. If that failed, the
            # pool would never get it back.
            await _end(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._none_reads.wait()
        for connection in list(self._reading):
            await _end(connection)
        if self._owns_engine:
            with contextlib.suppress(*DriverError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._engine.dispose()

    def abandon(self) -> None:
        """Release the connections without waiting for anything."""
        connection, self._writing = self._writing, None
        for one in (connection, *self._reading):
            if one is not None:
                with contextlib.suppress(Exception):  # the connection or its loop is gone
                    terminate(one)


async def _begun(work: "Work[T]", connection: AsyncConnection) -> T:
    """Do work in a transaction that it begins, which the driver would begin too late."""
    await begin_write(connection)
    return await work(connection)


def terminate(connection: AsyncConnection) -> None:
    """End the driver's connection without using its loop, and remove it from the pool."""
    sync: Any = connection.sync_connection
    pooled = sync.connection
    try:
        pooled.dbapi_connection.terminate()
    finally:
        pooled.detach()


async def _close(connection: AsyncConnection) -> None:
    """Return a connection to its pool."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await connection.close()
    except DriverError:
        await _end(connection)


async def _end(connection: AsyncConnection) -> None:
    """End a connection in any state."""
    with contextlib.suppress(*DriverError, StorageError, DBAPIError):
        async with asyncio.timeout(_CLOSE_S):
            if not connection.closed:
                if not connection.invalidated:
                    await connection.invalidate()
                await connection.close()
