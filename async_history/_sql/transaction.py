"""A transaction that writes, with the row of `state` that it locks."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from random import randrange
from typing import Any, Final

from sqlalchemy import Executable, Select, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.concurrency.timed import timed, unreported
from async_history._sql.dialects import claim, latest_committed
from async_history._sql.tables import Tables
from async_history.errors import StorageCorrupt

_STEP: Final = 1 << 32
"""Versions begin, and go up, by random steps below this, so that other tables, made in the place of
those that a writer has cached, have other versions."""

Counters = tuple[int, int, int, int, int | None]


def version_step() -> int:
    """Return a random number by which a version differs from the one before."""
    return randrange(1, _STEP)  # noqa: S311 - not a secret


async def fetch_on(
    connection: AsyncConnection, statement: Executable, values: Any = None
) -> Sequence[Any]:
    """Execute a statement on a connection, and return its rows."""
    done = await connection.execute(statement, values)
    return done.all() if done.returns_rows else ()


class TransactionEnded(Exception):
    """The cause of an error after which the server has rolled back the whole transaction."""


@contextlib.asynccontextmanager
async def savepoint(connection: AsyncConnection) -> AsyncIterator[None]:
    """Provide a savepoint, rolled back if the body raises.

    A deadlock, and with `innodb_rollback_on_timeout` a lock timeout, ends the whole transaction of
    MySQL and MariaDB, and its savepoints with it. Then the body's error has the cause
    `TransactionEnded`. Statements after it would run in another transaction.
    """
    raised: Exception | None = None
    try:
        async with connection.begin_nested():
            try:
                yield
            except Exception as error:
                raised = error
                raise
    except DBAPIError as error:
        if raised is None or raised is error:
            raise
        raise raised from TransactionEnded(str(error.orig))


class Transaction:
    """A transaction that writes, with the counters of `state`.

    Args:
        is_ours: False for the program's own transaction, which may have any isolation level.
        waited: called with the seconds that locking `state` took.

    Attributes:
        last, last_message: the numbers of the newest record and message.
        version: the caches of writers are valid while it is unchanged. Before the first owner it is
            negative, or 0 in older tables.
        last_version: the highest version so far.
        erased_at: when a name was last erased, in microseconds since 1970; None: never.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        tables: Tables,
        *,
        is_ours: bool,
        waited: Callable[[float], None] = unreported,
    ) -> None:
        self.connection = connection
        self._waited = waited
        self.tables = tables
        self.is_ours = is_ours
        self.last = self.last_message = self.version = self.last_version = 0
        self.erased_at: int | None = None
        self._written = self.counters

    async def execute(self, statement: Executable, rows: Any = None) -> CursorResult[Any]:
        """Execute a statement."""
        return await self.connection.execute(statement, rows)

    async def fetch(self, statement: Any, values: Any = None) -> Sequence[Any]:
        """Return the rows of a statement. A SELECT sees all commits before the lock."""
        if not self.is_ours and isinstance(statement, Select):
            statement = latest_committed(self.connection.dialect, statement)
        return await fetch_on(self.connection, statement, values)

    async def claim(self, count: int, version: int, least: int) -> int | None:
        """Lock `state` and reserve `count` numbers: see `dialects.claim`."""
        with timed(self._waited):
            return await claim(self.connection, self.tables, count, version, least)

    async def lock(self) -> None:
        """Lock the row of `state` until the transaction ends, and read it.

        Raises:
            StorageCorrupt: the table has lost its row.
        """
        state = self.tables.state
        with timed(self._waited):
            await self.execute(update(state).where(state.c.id == 1).values(last=state.c.last))
        rows = await self.fetch(
            select(
                state.c.last,
                state.c.last_message,
                state.c.version,
                state.c.last_version,
                state.c.erased_at,
            )
        )
        if not rows:
            raise StorageCorrupt(
                f"the table {state.name} has lost its row, without which the next record's number "
                "and the erased names are not known: restore it from a backup"
            )
        self.counters = self._written = tuple(rows[0])

    async def write_state(self) -> None:
        """Write the counters if they have changed."""
        if self.counters == self._written:
            return
        state = self.tables.state
        await self.execute(
            update(state)
            .where(state.c.id == 1)
            .values(
                last=self.last,
                last_message=self.last_message,
                version=self.version,
                last_version=self.last_version,
                erased_at=self.erased_at,
            )
        )

    @property
    def counters(self) -> Counters:
        """The values of the row."""
        return self.last, self.last_message, self.version, self.last_version, self.erased_at

    @counters.setter
    def counters(self, values: Counters) -> None:
        self.last, self.last_message, self.version, self.last_version, self.erased_at = values

    @property
    def has_owners(self) -> bool:
        """Whether a memory may have an owner."""
        return self.version > 0

    def forget_known(self) -> None:
        """Invalidate the caches of writers, as `next_version` does, and nothing else."""
        if self.has_owners:
            self.next_version()
        else:
            self.version -= 1

    def next_version(self, erased_at: int | None = None) -> None:
        """Invalidate the caches of owners and erased names of all writers."""
        self.last_version += version_step()
        self.version = self.last_version
        if erased_at is not None:
            self.erased_at = max(erased_at, self.erased_at or erased_at)
