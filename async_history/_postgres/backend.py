"""The PostgreSQL backend: it connects, and migrates or checks the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.locking.lock_connection import SessionOptions
from async_history._core.locking.locks import ProcessLocks
from async_history._core.locking.session_locks import SessionLocks
from async_history._core.writing.writer_options import WriterOptions
from async_history._postgres.connecting.codecs import (
    USED,
    USED_WITH_KEYS_OR_LEDGER,
    require_own_codecs,
)
from async_history._postgres.connecting.connect import in_time
from async_history._postgres.connecting.lock_connection import LockConnection
from async_history._postgres.connecting.opening import Prepare, open_pool, use_pool
from async_history._postgres.connecting.pool import ConnectionPool
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.encryption_sql import HAS_CLEAR_INDEX, IS_ENCRYPTED
from async_history._postgres.key_statements import CLEAR_INDEX
from async_history._postgres.schema import in_schema, migrations, quoted
from async_history._postgres.schema.indexes import make
from async_history._postgres.store import PostgresStore
from async_history._postgres.store_options import StoreOptions
from async_history.errors import InvalidInput, KeyMissing, MigrationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The optional parts of a schema: what not every history has."""

    is_distributed: bool = False
    has_clear_index: bool = False
    is_encrypted: bool = False
    has_ledger: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresBackend:
    """The tables in one schema, on a server or in the database of a user's pool.

    Either `server` or `user_pool` is set. With `may_migrate`, opening creates missing tables and
    migrates older ones. With `may_extend` and `asks_for_ledger`, opening adds a ledger to existing
    tables. The other fields are the arguments of `PostgresHistoryManager`.
    """

    server: ServerUrl | None
    user_pool: Any
    read_server: ServerUrl | None
    schema_name: str
    may_migrate: bool
    limits: PoolLimits
    retry_timeout_s: float
    writer_options: WriterOptions
    keys: KeyRing | None = None
    asks_for_ledger: bool = False
    may_extend: bool = False

    @property
    def system(self) -> str:
        """The name of the database system."""
        return "postgresql"

    @property
    def where(self) -> str:
        """The store's name in messages."""
        return "the database of the pool" if self.server is None else self.server.where

    @property
    def store_name(self) -> tuple[str, ...] | None:
        """Hosts, ports, database and schema; None for a user's pool."""
        if self.server is None:
            return None
        server = self.server
        return (
            "postgresql",
            *map(str, (server.hosts, server.ports, server.database)),
            self.schema_name,
        )

    def new_locks(self) -> ProcessLocks | None:
        """Return advisory locks with their own session; None for a user's pool, which has no
        URL."""
        if self.server is None:
            return None
        return SessionLocks(
            SessionOptions(
                connect=partial(LockConnection.connect, self.server, self.limits),
                where=self.server.where,
                idle_s=self.limits.idle_s,
                retry_timeout_s=self.retry_timeout_s,
            ),
            self.schema_name,
        )

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> "PostgresStore":
        """Connect, and migrate the tables or check their version."""
        there = _Found()

        async def prepare(connection: Any) -> None:
            nonlocal there
            there = await self._prepare(connection)

        pool = await self._open_pool(prepare)
        read_pool = await self._open_read_pool(pool)
        options = StoreOptions(
            where=self.where,
            server=self.server,
            schema_name=self.schema_name,
            idle_s=self.limits.idle_s,
            retry_timeout_s=self.retry_timeout_s,
            writer_options=self.writer_options,
            keys=self.keys,
            is_distributed=there.is_distributed,
            has_ledger=there.has_ledger or self.asks_for_ledger,
        )
        store = PostgresStore(pool, read_pool, committed, ended, options)
        if store.encryption is not None:
            try:
                await store.encryption.open()
            except BaseException:
                await to_the_end(store.aclose(CLOSE_TIMEOUT_S))
                raise
        return store

    async def _open_pool(self, prepare: Prepare) -> ConnectionPool:
        """Return the pool for writes, whose first connection was prepared."""
        if self.server is not None:
            return await open_pool(self.server, prepare, self.limits)
        has_numbers = self.keys is not None or self.asks_for_ledger
        types = USED_WITH_KEYS_OR_LEDGER if has_numbers else USED
        return await use_pool(self.user_pool, self.where, prepare, self.limits, types)

    async def _open_read_pool(self, pool: ConnectionPool) -> ConnectionPool:
        """Return the pool for reads: that for writes, unless there is a server for reads.

        If it can't be opened, that for writes is closed.
        """
        if self.read_server is None:
            return pool
        try:
            return await open_pool(self.read_server, self._look, self.limits)
        except BaseException:
            await to_the_end(pool.aclose(CLOSE_TIMEOUT_S))
            raise

    async def _prepare(self, connection: Any) -> "_Found":
        """Migrate the tables or check their version; return what is there."""
        if self.may_migrate:
            with in_time(connection, self.limits.acquire_timeout_s):
                version = await migrations.applied_version(connection, self.schema_name)
            if version < migrations.VERSION:  # without a timeout
                await migrations.migrate(connection, self.schema_name)
        else:
            await self._look(connection)
        with in_time(connection, self.limits.acquire_timeout_s):
            there = await self._find(connection)
            if self.server is None and there.has_ledger:
                await require_own_codecs(connection, USED_WITH_KEYS_OR_LEDGER)
        await self._prepare_keys(connection, there)
        await self._prepare_ledger(connection, there)
        return there

    async def _find(self, connection: Any) -> "_Found":
        schema = quoted(self.schema_name)
        has_index = bool(await connection.fetchval(HAS_CLEAR_INDEX, self.schema_name))
        encrypted = in_schema(IS_ENCRYPTED, schema)
        return _Found(
            is_distributed=await migrations.is_distributed(connection, self.schema_name),
            has_clear_index=has_index,
            is_encrypted=has_index and bool(await connection.fetchval(encrypted)),
            has_ledger=await migrations.has_ledger(connection, self.schema_name),
        )

    async def _prepare_keys(self, connection: Any, there: "_Found") -> None:
        """Check that an encrypted history is opened with keys; prepare another one for encryption.

        Raises:
            KeyMissing, InvalidInput, MigrationError: the keys do not fit the history. Nothing was
                changed.
        """
        if self.keys is None:
            if there.is_encrypted:
                raise KeyMissing("", f"{self.where} {OPEN_WITH_KEYS}")
            return
        if there.is_distributed:
            raise InvalidInput(
                f"{self.where} is a Citus cluster, where a history is not encrypted: open it "
                "without keys"
            )
        if self.may_migrate:
            await make(connection, quoted(self.schema_name), CLEAR_INDEX)
        elif not there.has_clear_index:
            raise MigrationError(
                f"{self.where} is not encrypted, and migrate=False keeps it as it is; open it with "
                "migrate=True once, or without keys"
            )

    async def _prepare_ledger(self, connection: Any, there: "_Found") -> None:
        """Add a ledger to the history if requested.

        Raises:
            InvalidInput, MigrationError: it can't have one. Nothing was changed.
        """
        if there.is_distributed and (there.has_ledger or self.asks_for_ledger):
            raise InvalidInput(
                f"{self.where} is a Citus cluster, whose nodes have no common order of commits: a "
                "history there has no ledger"
            )
        if there.has_ledger or not self.asks_for_ledger:
            return
        if not self.may_extend:
            raise MigrationError(
                f"{self.where} has no ledger, and migrate=False keeps it as it is; open it with "
                "migrate=True once, or without a ledger"
            )
        await migrations.make_ledger(connection, self.schema_name)

    async def _look(self, connection: Any) -> None:
        with in_time(connection, self.limits.acquire_timeout_s):
            await migrations.require_current(connection, self.schema_name)
