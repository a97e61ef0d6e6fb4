"""The backend: it connects, and creates or checks the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.locking.locks import ProcessLocks
from async_history._core.writing.writer_options import WriterOptions
from async_history._sql import schema
from async_history._sql.connecting.connections import Connections
from async_history._sql.connecting.lock_connection import new_locks
from async_history._sql.connecting.session_limits import is_pooled
from async_history._sql.connecting.url import driver_url, parameters_refused, shown
from async_history._sql.dialects import MYSQL, check_settings
from async_history._sql.key_statements import is_encrypted
from async_history._sql.store import SqlStore
from async_history._sql.table_settings import check_tables
from async_history._sql.tables import Tables, tables_in
from async_history.errors import KeyMissing, MigrationError

_SYSTEMS: Final = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
"""Databases whose `db.system.name` differs from SQLAlchemy's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlBackend:
    """The tables in a database that SQLAlchemy supports.

    Either `url` or `user_engine` is set. With `may_migrate`, opening creates missing tables and
    migrates older ones. With `may_extend` and `asks_for_ledger`, opening adds a ledger to existing
    tables. The other fields are the arguments of `SqlHistoryManager`.
    """

    url: Any
    user_engine: AsyncEngine | None
    schema_name: str | None
    may_migrate: bool
    pool_size: int
    acquire_timeout_s: float
    retry_timeout_s: float
    writer_options: WriterOptions
    keys: KeyRing | None = None
    asks_for_ledger: bool = False
    may_extend: bool = False

    @property
    def system(self) -> str:
        """The name of the database system."""
        url = self.url if self.user_engine is None else self.user_engine.url
        name = url.get_backend_name()
        return _SYSTEMS.get(name, name)

    @property
    def where(self) -> str:
        """The store's name in messages."""
        url = self.url if self.user_engine is None else self.user_engine.url
        return shown(url)

    @property
    def store_name(self) -> tuple[str, ...] | None:
        """Database, host, port and schema; None for a user's engine."""
        if self.url is None:
            return None
        url = self.url
        kind = "mysql" if url.get_backend_name() in MYSQL else url.get_backend_name()
        socket = url.query.get("unix_socket") or ""
        parts = (url.host, url.port, url.database, socket, self.schema_name)
        return (kind, *("" if part is None else str(part) for part in parts))

    def new_locks(self) -> ProcessLocks | None:
        """Return named locks with their own session, on MySQL and MariaDB.

        None on other databases, and for a user's engine: its URL may lack some settings.
        """
        if self.url is None or self.url.get_backend_name() not in MYSQL:
            return None
        return new_locks(
            partial(self._own_engine, poolclass=NullPool),
            self.schema_name,
            self.where,
            acquire_s=self.acquire_timeout_s,
            retry_timeout_s=self.retry_timeout_s,
        )

    def _new_engine(self) -> AsyncEngine:
        if self.user_engine is not None:
            return self.user_engine
        return self._own_engine(
            pool_size=self.pool_size,
            max_overflow=0,
            pool_timeout=self.acquire_timeout_s,
            pool_use_lifo=True,
        )

    def _own_engine(self, **pool: Any) -> AsyncEngine:
        url, arguments = driver_url(self.url)
        with parameters_refused(self.url):
            engine = create_async_engine(
                url, connect_args=dict(arguments), hide_parameters=True, **pool
            )
        if url.get_backend_name() == "postgresql":
            event.listen(engine.sync_engine, "connect", _turn_jit_off)
        return engine

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> "SqlStore":
        """Connect, and create the tables or check their version."""
        tables = tables_in(self.schema_name)
        connections = Connections(
            self._new_engine(),
            self.where,
            owns_engine=self.user_engine is None,
            acquire_s=self.acquire_timeout_s,
            try_s=self.retry_timeout_s,
        )
        try:
            statement_bytes, has_ledger = await self._prepare(connections, tables)
        except BaseException:
            await to_the_end(connections.aclose())
            raise
        store = SqlStore(
            connections,
            tables,
            keys=self.keys,
            statement_bytes=statement_bytes,
            has_ledger=has_ledger,
            writer_options=self.writer_options,
            retry_timeout_s=self.retry_timeout_s,
            committed=committed,
            ended=ended,
        )
        if store.encryption is not None:
            try:
                await store.encryption.open()
            except BaseException:
                await to_the_end(store.aclose(CLOSE_TIMEOUT_S))
                raise
        return store

    async def _prepare(self, connections: Connections, tables: Tables) -> tuple[int | None, bool]:
        async def prepare(connection: AsyncConnection) -> tuple[int | None, bool]:
            statement_bytes = await check_settings(connection, self.where)
            if self.may_migrate:
                await schema.migrate(connection, tables, self.where)
            else:
                await schema.require_current(connection, tables, self.where)
            await self._check_keys(connection, tables)
            has_ledger = await self._prepare_ledger(connection, tables)
            await check_tables(connection, tables, self.where, has_ledger=has_ledger)
            return statement_bytes, has_ledger

        with parameters_refused(self.url):
            await connections.connect_to_write()
        return await connections.set_up(prepare)

    async def _check_keys(self, connection: AsyncConnection, tables: Tables) -> None:
        """Check that keys are given if the history is encrypted, and only then.

        Raises:
            KeyMissing, MigrationError: the keys do not fit the history. Nothing was changed.
        """
        there = await is_encrypted(connection, tables)
        if there and self.keys is None:
            raise KeyMissing("", f"{self.where} {OPEN_WITH_KEYS}")
        if self.keys is not None and not there and not self.may_migrate:
            raise MigrationError(
                f"{self.where} is not encrypted, and migrate=False keeps it as it is; open it with "
                "migrate=True once, or without keys"
            )

    async def _prepare_ledger(self, connection: AsyncConnection, tables: Tables) -> bool:
        """Add a ledger to the history if requested; return whether it has one.

        Raises:
            MigrationError: it has no ledger, and `migrate=False` forbids adding one.
        """
        if await schema.has_ledger(connection, tables):
            return True
        if not self.asks_for_ledger:
            return False
        if not self.may_extend:
            raise MigrationError(
                f"{self.where} has no ledger, and migrate=False keeps it as it is; open it with "
                "migrate=True once, or without a ledger"
            )
        await schema.make_ledger(connection, tables)
        return True


def _turn_jit_off(driver: Any, _: object) -> None:
    """Make the server compile none of a new session's statements.

    Its choice costs more time than they take: see `async_history._postgres.transaction`. A pooler's
    session, which others may get too, keeps its setting.
    """
    cursor = driver.cursor()
    cursor.execute("SELECT pg_catalog.pg_backend_pid()")
    if not is_pooled(driver.driver_connection, int(cursor.fetchone()[0])):
        cursor.execute("SET jit TO off")
    cursor.close()
    driver.commit()
