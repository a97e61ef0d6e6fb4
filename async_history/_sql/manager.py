"""The manager of a history in any SQL database: its options, and records in a transaction."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import StaticPool

from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.key_ring import KeyRing, check_keys
from async_history._core.manager import HistoryManager
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import check_name
from async_history._core.validation import (
    LEAST_CONNECTIONS,
    MOST_CONNECTIONS,
    check_count,
    check_flag,
    check_queue,
    check_seconds,
)
from async_history._core.writing.new_submissions import UncheckedRecords
from async_history._core.writing.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.writing.writer_options import BATCH_RECORDS, WriterOptions
from async_history._sql.backend import SqlBackend
from async_history._sql.connecting.url import driver_url
from async_history._sql.dialects import IN_AUTOCOMMIT, require_transaction
from async_history._sql.errors import DriverError, is_outside_transaction, storage_error
from async_history._sql.store import SqlStore
from async_history.errors import InvalidInput

RETRY_TIMEOUT_S = 30.0
"""The default of `retry_timeout_s`."""
ACQUIRE_TIMEOUT_S = 10.0
"""The default of `acquire_timeout_s`."""
_POOL_SIZE: Final = 5
_DRIVERS: Final = {
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "oracle": "oracle+oracledb_async",
    "mssql": "mssql+aioodbc",
}
"""The asyncio driver for a URL that does not name one."""
_STREAMING: Final = ("stream_results", "yield_per")
"""Execution options that make results streams."""


class SqlHistoryManager(HistoryManager):
    """A history in any database for which SQLAlchemy has an asyncio dialect.

    Args:
        url: a URL of SQLAlchemy, such as `mysql+asyncmy://user:password@host/database`.
        engine: the program's own `AsyncEngine`, instead of a URL. The manager never closes it. It
            keeps one connection for writing, so the pool needs two or more.
        schema: the schema of the tables, or the database on MySQL and MariaDB. The default is the
            connection's own.
        create, migrate: create missing tables. Unless both are true, missing tables raise
            `StorageMissing`.
        pool_size: most connections of the manager's own engine.
        keys: a `KeyRing`, to encrypt what is recorded; see the guide on encryption.
        ledger: add a ledger, which proves what was recorded. A history that has a ledger keeps it.
            See `history.ledger`.
        queue_records, queue_bytes, queue_timeout_s, batch_records: see `GroupCommitWriter`.
        acquire_timeout_s: seconds to wait for a connection.
        retry_timeout_s: seconds for which a batch is tried, after a failed connection or a lock. A
            try may take a third of it; a large batch has more, and the rest after a slow try.
        close_timeout_s: seconds that closing waits for accepted calls.
    """

    def __init__(
        self,
        url: str | URL | None = None,
        *,
        engine: AsyncEngine | None = None,
        schema: str | None = None,
        create: bool = True,
        migrate: bool = True,
        pool_size: int | None = None,
        keys: KeyRing | None = None,
        ledger: bool = False,
        queue_records: int = QUEUE_RECORDS,
        queue_bytes: int = QUEUE_BYTES,
        queue_timeout_s: float | None = None,
        batch_records: int = BATCH_RECORDS,
        acquire_timeout_s: float | None = None,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        if (url is None) == (engine is None):
            raise InvalidInput("give either a url or an engine")
        check_count("batch_records", batch_records, least=1)
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        may_create, may_migrate = check_flag("create", create), check_flag("migrate", migrate)
        name = None if schema is None else check_name("schema", schema)
        if engine is not None:
            _check_engine(engine)
            _check_execution_options(engine.get_execution_options(), name)
            if pool_size is not None:
                raise InvalidInput("pool_size is of an engine of our own; yours has one already")
        size = _POOL_SIZE if pool_size is None else pool_size
        seconds = ACQUIRE_TIMEOUT_S if acquire_timeout_s is None else acquire_timeout_s
        backend = SqlBackend(
            url=None if url is None else sql_url(url),
            user_engine=engine,
            schema_name=name,
            may_migrate=may_create and may_migrate,
            pool_size=check_count(
                "pool_size", size, least=LEAST_CONNECTIONS, most=MOST_CONNECTIONS
            ),
            acquire_timeout_s=check_seconds("acquire_timeout_s", seconds, may_be_zero=False),
            keys=check_keys(keys),
            asks_for_ledger=check_flag("ledger", ledger),
            may_extend=may_migrate,
            retry_timeout_s=check_seconds("retry_timeout_s", retry_timeout_s, may_be_zero=False),
            writer_options=WriterOptions(
                queue_records=queue_records,
                queue_bytes=queue_bytes,
                queue_timeout_s=queue_timeout_s,
                batch_records=batch_records,
            ),
        )
        super().__init__(backend, close_timeout_s=close_timeout_s)

    @property
    def store(self) -> SqlStore:
        """The open store, with its parts."""
        return cast(SqlStore, super().store)

    async def add_in_transaction(
        self,
        connection: AsyncConnection | AsyncSession,
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | str | None = None,
    ) -> list[HistoryRecord]:
        """Record changes in the caller's transaction, without the queue; return the records.

        They are durable when that transaction commits, and lost if it rolls back. Either all are
        written or none: after an error, the transaction can continue without them. Until it ends,
        all other writers wait.

        Args:
            connection: an `AsyncSession` or `AsyncConnection` of the same database. If it is not in
                a transaction, SQLAlchemy begins one.
            records, if_latest: as `batch_add_history`.

        Raises:
            InvalidInput: a record can't be stored as given, or the connection is in autocommit.
            IdConflict, HistoryConflict, StorageError: nothing of these records was written.
        """
        submission = await UncheckedRecords(records, if_latest).check()
        if isinstance(connection, AsyncSession):
            await connection.flush()
            connection = await connection.connection()
        sync: Any = connection.sync_connection
        if sync is not None:
            _check_execution_options(
                sync.get_execution_options(), self.store.tables.metadata.schema
            )
        try:
            await require_transaction(connection)
            refused = await self.store.add_in_transaction(connection, submission)
        except DriverError as error:
            if is_outside_transaction(error):
                raise InvalidInput(IN_AUTOCOMMIT) from error
            raise storage_error(error, self.backend.where) from error
        for reason in refused.values():
            raise reason
        return submission.records


def _check_execution_options(options: Mapping[str, Any], schema: str | None) -> None:
    """Check the execution options of an engine or a connection.

    A `schema_translate_map` of the history's schema can't be followed: the driver executes some
    statements itself.

    Raises:
        InvalidInput: with these options, some statements would fail, or go to another schema.
    """
    for name in _STREAMING:
        if options.get(name):
            raise InvalidInput(
                f"with the execution option {name}, SQLAlchemy refuses to execute statements with "
                f"asyncio; give .execution_options({name}=None) of the engine or connection, which "
                "shares its connections"
            )
    if schema in (options.get("schema_translate_map") or {}):
        raise InvalidInput(
            "schema_translate_map replaces the history's schema, which a history can't follow: "
            "name its schema with schema=…, one that the map does not have"
        )


def sql_url(given: str | URL) -> URL:
    """Return a URL that names its asyncio driver.

    Raises:
        InvalidInput: the URL is not valid, SQLAlchemy has no asyncio driver for it, or a parameter
            can't be used.
    """
    if isinstance(given, str) and given.count("@") > 1:
        raise InvalidInput("the URL has more than one @: percent-encode names and passwords (%40)")
    url: URL | None = None
    with contextlib.suppress(ArgumentError, ValueError):  # they show the URL, with its password
        url = make_url(given)
    if url is None:
        raise InvalidInput(
            "the URL is not one of SQLAlchemy's: dialect+driver://user:password@host/database, "
            "with names and passwords percent-encoded"
        )
    named = _DRIVERS.get(url.drivername, url.drivername)
    for name in (named, f"{named}_async"):
        url = url.set(drivername=name)
        with contextlib.suppress(NoSuchModuleError):
            dialect = url.get_dialect()
            if dialect.is_async:
                _require_driver(dialect)
                driver_url(url)  # raises now if a parameter is wrong
                return url
    raise InvalidInput(
        f"{named} is not an asyncio driver that SQLAlchemy knows; name one, as in "
        "mysql+asyncmy://, postgresql+asyncpg:// or sqlite+aiosqlite://"
    )


def _require_driver(dialect: type[Dialect]) -> None:
    """Check that a driver is installed."""
    try:
        dialect.import_dbapi()
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the driver of {dialect.name}+{dialect.driver} is not installed: pip install it, or "
            "'async-history[mysql]' for MySQL and MariaDB"
        ) from error
    except ImportError as error:
        raise InvalidInput(
            f"the driver of {dialect.name}+{dialect.driver} can't be imported: {error}"
        ) from error


def _check_engine(engine: object) -> None:
    if not isinstance(engine, AsyncEngine):
        raise InvalidInput(f"engine must be an AsyncEngine, not {type(engine).__name__}")
    pool = engine.pool
    size = getattr(pool, "size", None)
    most = size() + max(getattr(pool, "_max_overflow", 0), 0) if callable(size) else None
    if isinstance(pool, StaticPool) or (most is not None and 0 < most < LEAST_CONNECTIONS):
        raise InvalidInput(
            "the engine has one connection, and one is kept for writing: give it a pool of two or "
            "more (in memory, use memory://)"
        )
