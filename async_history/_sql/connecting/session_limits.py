"""Limits of the writing connection's lock waits and statements, which the server enforces.

Without them, a statement that we no longer wait for would go on at the server, in a transaction
that keeps others from writing. PostgreSQL's driver asks the server to cancel such a statement, and
SQLite's is interrupted.
"""

from math import ceil
from typing import Any, Final, NamedTuple

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._sql.connecting import driver
from async_history._sql.dialects import is_mysql

_OWN_MYSQL: Final = "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"
_LOCKS_MYSQL: Final = "SET SESSION innodb_lock_wait_timeout = {}, lock_wait_timeout = {}"
_OWN_MARIADB: Final = f"{_OWN_MYSQL}, @@max_statement_time"
_MARIADB: Final = f"{_LOCKS_MYSQL}, max_statement_time = {{}}"
"""MariaDB limits each statement, also in its lock waits and triggers; MySQL only SELECT."""
_POSTGRESQL: Final = """
SELECT pg_catalog.set_config(name, '{ms}', true) FROM pg_catalog.pg_settings
WHERE name = '{name}' AND (setting = '0' OR CAST(setting AS pg_catalog.int8) > {ms})
"""
_OWN_POSTGRESQL: Final = """
SELECT setting, pg_catalog.pg_backend_pid() AS process FROM pg_catalog.pg_settings
WHERE name = 'idle_in_transaction_session_timeout'
"""
_SET_POSTGRESQL: Final = "pg_catalog.set_config('{}', '{}', {})"
_JIT, _IDLE = "jit", "idle_in_transaction_session_timeout"


class Limits(NamedTuple):
    """The seconds that a lock wait and a statement may take; None: the session's own limit."""

    lock_s: float | None = None
    statement_s: float | None = None


OWN_LIMITS: Final = Limits()


class SessionLimits:
    """The limits of one session after another. A lower limit that a session has is kept.

    But on PostgreSQL a transaction may be idle for as long as a write may take: Python encodes,
    encrypts and hashes a large call in it. The server compiles no statements there (`jit`). Behind
    a pooler, which may give the session to others, that is set in each transaction.

    Databases other than MySQL, MariaDB and PostgreSQL have none.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._is_mysql = is_mysql(dialect)
        self._idle_ms = 0
        self._is_pooled = False
        self._own: tuple[float, ...] = ()
        self._now = OWN_LIMITS

    @property
    def _is_mariadb(self) -> bool:
        return getattr(self._dialect, "is_mariadb", False)  # known once it is connected

    @property
    def limits_statements(self) -> bool:
        """Whether the server ends a statement that takes too long, as far as is known."""
        return self._is_mariadb or self._dialect.name == "postgresql"

    async def begin(self, connection: AsyncConnection) -> None:
        """Read the own limits of a new session, which we keep until it ends."""
        if self._is_mysql:
            own = text(_OWN_MARIADB if self._is_mariadb else _OWN_MYSQL)
            self._own = tuple(map(float, (await connection.execute(own)).one()))
            await connection.rollback()
        elif self._dialect.name == "postgresql":
            row = (await connection.execute(text(_OWN_POSTGRESQL))).one()
            await connection.rollback()
            self._idle_ms = int(row.setting)
            raw = await connection.get_raw_connection()
            self._is_pooled = is_pooled(raw.driver_connection, int(row.process))
            if self._is_pooled:
                event.listen(connection.sync_connection, "begin", self._set_of_transaction)
            else:
                await self._set_of_session(connection, _JIT, "off")
        self._now = OWN_LIMITS

    async def wait_for_client(self, connection: AsyncConnection, within_s: float) -> None:
        """Let transactions of the session be idle for `within_s`, on PostgreSQL.

        The limit is only raised, and to a power of two of seconds, so that few writes do so.
        """
        if not 0 < self._idle_ms < within_s * 1000:
            return
        self._idle_ms = 1000 << ceil(within_s).bit_length()
        if not self._is_pooled:
            await self._set_of_session(connection, _IDLE, self._idle_ms)

    async def _set_of_session(
        self, connection: AsyncConnection, name: str, value: str | int
    ) -> None:
        await connection.execute(text(f"SELECT {_SET_POSTGRESQL.format(name, value, 'false')}"))
        await connection.commit()

    def _set_of_transaction(self, connection: Connection) -> None:
        settings = [_SET_POSTGRESQL.format(_JIT, "off", "true")]
        if self._idle_ms:
            settings.append(_SET_POSTGRESQL.format(_IDLE, self._idle_ms, "true"))
        connection.execute(text(f"SELECT {', '.join(settings)}"))

    async def set(self, connection: AsyncConnection, limits: Limits) -> None:
        """Limit the statements of the session, on MySQL and MariaDB."""
        if limits == self._now or not self._is_mysql:
            return
        statement = _MARIADB if self._is_mariadb else _LOCKS_MYSQL
        await driver.execute(connection, statement.format(*self._values(limits)), ())
        self._now = limits

    def _values(self, limits: Limits) -> list[float]:
        """Return the values of the settings: whole seconds for lock waits."""
        rows, tables, *statement = self._own
        values: list[float] = [int(rows), int(tables)]
        if limits.lock_s is not None:
            least_s = 0 if self._is_mariadb else 1
            lock_s = max(int(limits.lock_s), least_s)
            values = [min(own, lock_s) for own in values]
        return values + [_least(own, limits.statement_s) for own in statement]

    async def set_within(self, connection: AsyncConnection, limits: Limits) -> None:
        """Limit the statements of the transaction that has begun, or also later ones."""
        await self.set(connection, limits)
        if self._dialect.name == "postgresql":
            for name, seconds in zip(("lock_timeout", "statement_timeout"), limits, strict=True):
                if seconds is not None:
                    ms = max(1, int(seconds * 1000))
                    await connection.execute(text(_POSTGRESQL.format(name=name, ms=ms)))


def _least(own: float, ours: float | None) -> float:
    """Return the lower one of two limits; an `own` of 0 is none."""
    if ours is None:
        return own
    return min(own, ours) if own else ours


def is_pooled(driver: Any, process: int) -> bool:
    """Return whether a pooler is between us and a PostgreSQL server.

    A pooler names a server process that it has made up when a connection is made. Only asyncpg and
    psycopg show that; with other drivers the answer is no.

    Args:
        driver: the driver's connection.
        process: the server process, by its own word.
    """
    if hasattr(driver, "get_server_pid"):
        return int(driver.get_server_pid()) != process
    info = getattr(driver, "info", None)
    return info is not None and int(info.backend_pid) != process
