# mypy: disable-error-code=import-untyped
"""The manager of a history in PostgreSQL: its options, and records in a user's transaction."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg

from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.key_ring import KeyRing, check_keys
from async_history._core.manager import HistoryManager
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import check_name
from async_history._core.validation import check_count, check_flag, check_queue, check_seconds
from async_history._core.writing.new_submissions import UncheckedRecords
from async_history._core.writing.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.writing.writer_options import BATCH_RECORDS, WriterOptions
from async_history._postgres.backend import PostgresBackend
from async_history._postgres.connecting.given_connection import asyncpg_connection
from async_history._postgres.connecting.pool_limits import CONNECTION_IDLE_S, PoolLimits, check_pool
from async_history._postgres.connecting.server_url import POSTGRES_SCHEMA
from async_history._postgres.connecting.url import server_url
from async_history._postgres.errors import DriverError, storage_error
from async_history._postgres.schema import quoted
from async_history._postgres.store import PostgresStore
from async_history._postgres.writing.owner_steps import have_owners_changed
from async_history.errors import InvalidInput

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

RETRY_TIMEOUT_S = 30.0
"""The default of `retry_timeout_s`."""
_TRIES: Final = 5
"""Retries after another transaction has changed a memory's owner meanwhile."""


class PostgresHistoryManager(HistoryManager):
    """A history in PostgreSQL, shared by any number of processes and machines.

    Args:
        url: a URL of asyncpg, with several hosts and TLS
            (https://magicstack.github.io/asyncpg/current/api/), or in the form of libpq, SQLAlchemy
            or a hosting provider. Options in the URL apply if the arguments below are not given.
        pool: the user's own asyncpg pool, instead of a URL. The manager never closes it. It keeps
            one connection for writing, so the pool needs two or more.
        read_url: a server for reads, such as a replica, which may lack the latest acknowledged
            records.
        schema: the schema of the tables; default `async_history`.
        create, migrate: create the schema and its tables, and migrate older ones. Unless both are
            true, missing or older tables raise `StorageMissing` or `MigrationError`.
        pool_size: most connections of the manager's own pool; default 10.
        statement_cache_size: 0 for a pooler that is not detected.
        queue_records, queue_bytes, queue_timeout_s, batch_records: see `GroupCommitWriter`.
        acquire_timeout_s: seconds to wait for a connection; default 10.
        connection_idle_s: seconds before an unused connection of the manager's own pool is closed,
            the writing one too; default 300; None: never.
        connection_lifetime_s: the age in seconds at which such a connection is replaced.
        retry_timeout_s: seconds to retry after a failed connection.
        close_timeout_s: seconds that closing waits for accepted calls.
        keys: a `KeyRing`, to encrypt what is recorded; see the guide on encryption.
        ledger: add a ledger, which proves what was recorded. A history that has a ledger keeps it.
            See `history.ledger`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: Any = None,
        read_url: str | None = None,
        schema: str | None = None,
        create: bool = True,
        migrate: bool = True,
        pool_size: int | None = None,
        statement_cache_size: int | None = None,
        queue_records: int = QUEUE_RECORDS,
        queue_bytes: int = QUEUE_BYTES,
        queue_timeout_s: float | None = None,
        batch_records: int = BATCH_RECORDS,
        acquire_timeout_s: float | None = None,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        connection_idle_s: float | None = CONNECTION_IDLE_S,
        connection_lifetime_s: float | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        keys: KeyRing | None = None,
        ledger: bool = False,
    ) -> None:
        if (url is None) == (pool is None):
            raise InvalidInput("give either a url or a pool")
        check_count("batch_records", batch_records, least=1)
        check_seconds("retry_timeout_s", retry_timeout_s, may_be_zero=False)
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        may_create, may_migrate = check_flag("create", create), check_flag("migrate", migrate)
        if pool is not None:
            check_pool(pool)
        server = None if url is None else server_url(url)
        try:
            read_server = None if read_url is None else server_url(read_url)
        except InvalidInput as error:
            raise InvalidInput(f"read_url: {error}") from None
        url_options = {} if server is None else server.options
        if "table" in url_options:
            raise InvalidInput("table= names a table to copy from; a history's place is schema=")
        if schema is None:
            schema = url_options.get("schema", POSTGRES_SCHEMA)
        else:
            schema = check_name("schema", schema)
        quoted(schema)  # refuses a name that PostgreSQL would truncate
        backend = PostgresBackend(
            server=server,
            user_pool=pool,
            read_server=read_server,
            schema_name=schema,
            may_migrate=may_create and may_migrate,
            limits=PoolLimits.checked(
                url_options,
                pool_size=pool_size,
                statement_cache_size=statement_cache_size,
                acquire_timeout_s=acquire_timeout_s,
                connection_idle_s=connection_idle_s,
                connection_lifetime_s=connection_lifetime_s,
            ),
            retry_timeout_s=retry_timeout_s,
            writer_options=WriterOptions(
                queue_records=queue_records,
                queue_bytes=queue_bytes,
                queue_timeout_s=queue_timeout_s,
                batch_records=batch_records,
            ),
            keys=check_keys(keys),
            asks_for_ledger=check_flag("ledger", ledger),
            may_extend=may_migrate,
        )
        super().__init__(backend, close_timeout_s=close_timeout_s)

    @property
    def store(self) -> PostgresStore:
        """The open store, with its parts."""
        return cast(PostgresStore, super().store)

    async def add_in_transaction(
        self,
        connection: "asyncpg.Connection | AsyncConnection | AsyncSession",
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | str | None = None,
    ) -> list[HistoryRecord]:
        """Record changes in the caller's transaction, without the queue; return the records.

        They are durable when that transaction commits, and lost if it rolls back. Either all are
        written or none: after an error, the transaction can continue without them.

        Args:
            connection: a connection to this history's database: an asyncpg connection in a
                transaction, or SQLAlchemy's `AsyncSession` or `AsyncConnection` on asyncpg.
            records, if_latest: as `batch_add_history`. `if_latest` sees later commits of others
                only in a READ COMMITTED transaction, which is the default.

        Raises:
            InvalidInput: also if the connection is not in a transaction.
            IdConflict, HistoryConflict, StorageError: nothing of these records was written.
        """
        store = self.store
        owner = await asyncpg_connection(connection)
        submission = await UncheckedRecords(records, if_latest).check()
        for tries_left in reversed(range(_TRIES)):
            try:
                refused = await store.add_in_transaction(owner, submission)
                break
            except DriverError as error:
                are_lost = isinstance(error, asyncpg.InvalidSQLStatementNameError)
                if not tries_left or not (are_lost or have_owners_changed(error)):
                    raise storage_error(error, self.backend.where) from error
                if are_lost:  # by a DISCARD ALL, which the driver does not notice
                    await owner.reload_schema_state()
        for reason in refused.values():
            raise reason
        return submission.records
