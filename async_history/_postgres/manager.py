# mypy: disable-error-code=import-untyped
"""The PostgreSQL backend: one connection that writes, a pool for those who read."""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import asyncpg

from async_history._core.backend import HistoryStats, Measured
from async_history._core.cancellation import to_the_end
from async_history._core.erasure_log import Erasure, ErasureLog
from async_history._core.follow import FollowRead
from async_history._core.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.locks import ProcessLocks
from async_history._core.manager import HistoryManager
from async_history._core.prune import PruneCursor, PruneRequest, PruneStep
from async_history._core.query import Cursor, Filter, PageRead, RowsRead
from async_history._core.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.records import HistoryRecord, Message, check_name
from async_history._core.submissions import AddRecords, Submission, UncheckedRecords
from async_history._core.timeline import states_at
from async_history._core.validation import check_count, check_flag, check_queue, check_seconds
from async_history._core.writer import BATCH_RECORDS, GroupCommitWriter, OutcomeUnknown, TryAgain
from async_history._postgres import schema as migrations
from async_history._postgres.advisory_locks import AdvisoryLocks
from async_history._postgres.bounds import time_for
from async_history._postgres.commit import BatchCommitter
from async_history._postgres.cursors import Place, place_from
from async_history._postgres.erase import ERASURES, ServerErasure
from async_history._postgres.errors import DriverError, storage_error
from async_history._postgres.follow import FollowReader
from async_history._postgres.pool import ConnectionPool
from async_history._postgres.pool_limits import CONNECTION_IDLE_S, PoolLimits, check_pool
from async_history._postgres.prune import prune
from async_history._postgres.read import HistoryReader
from async_history._postgres.statistics import Statistics
from async_history._postgres.timeline import ServerStates
from async_history._postgres.transaction import savepoint, transaction
from async_history._postgres.url import POSTGRES_SCHEMA, server_url
from async_history._postgres.vacuum import Vacuum
from async_history._postgres.warnings import STATE, warnings_of
from async_history._postgres.writing_connection import Write, WritingConnection
from async_history.errors import (
    HistoryClosed,
    HistoryError,
    InvalidInput,
    StorageUnreachable,
)

T = TypeVar("T")

RETRY_TIMEOUT_S = 30.0
"""How long what failed with a connection is tried again, unless told otherwise."""
_TRIES: Final = 3
"""One try may take this part of the time for all: a server that hangs leaves time for another."""
_ASK_AGAIN_S: Final = 0.1
_WAITS: Final = 50
"""Into how many parts a late batch's time is cut, so that who waits for a lock can be found."""


class PostgresHistoryManager(HistoryManager):
    """A history in PostgreSQL, shared by any number of processes and machines.

    Args:
        url: as asyncpg takes it, with several hosts, TLS and all
            (https://magicstack.github.io/asyncpg/current/api/), or as libpq, SQLAlchemy or a
            hosting provider writes it. What it says of the options below counts where they are
            not given.
        pool: the user's own asyncpg pool, instead of a URL. It is never closed here. One of its
            connections is kept for writing, so it needs two or more.
        read_url: where to read instead, such as a replica: what was acked may not be there yet.
        schema: where the tables are, `async_history` unless told otherwise.
        create, migrate: make the schema and its tables, and bring older ones up to date. Without
            both, raises `StorageMissing` or `MigrationError` where that is needed.
        pool_size: most connections of a pool of our own, 10 unless told otherwise.
        statement_cache_size: 0 for a pooler that is not noticed to be one.
        queue_records, queue_bytes, queue_timeout_s, batch_records: see `GroupCommitWriter`.
        acquire_timeout_s: how long to wait for a connection, 10 unless told otherwise.
        connection_idle_s: how long a connection of a pool of our own may be unused before it is
            closed, that which writes too; None is without bound. 300 unless told otherwise.
        connection_lifetime_s: how old such a connection may become before another takes its place.
        retry_timeout_s: how long what failed with its connection is tried again.
        close_timeout_s: how long closing waits for what was accepted.
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
    ) -> None:
        super().__init__(close_timeout_s=close_timeout_s)
        if (url is None) == (pool is None):
            raise InvalidInput("give either a url or a pool")
        check_count("batch_records", batch_records, least=1)
        check_seconds("retry_timeout_s", retry_timeout_s, may_be_zero=False)
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        may_create, may_migrate = check_flag("create", create), check_flag("migrate", migrate)
        if pool is not None:
            check_pool(pool)
        self._server = None if url is None else server_url(url)
        try:
            self._read_server = None if read_url is None else server_url(read_url)
        except InvalidInput as error:
            raise InvalidInput(f"read_url: {error}") from None
        if self._server is not None and "table" in self._server.options:
            raise InvalidInput("table= names a table to copy from; a history's place is schema=")
        self._user_pool = pool
        said = {} if self._server is None else self._server.options
        self._schema_name = said.get("schema", POSTGRES_SCHEMA)
        if schema is not None:
            self._schema_name = check_name("schema", schema)
        self._schema = migrations.quoted(self._schema_name)
        self._where = "the database of the pool" if self._server is None else self._server.where
        self._migrate = may_create and may_migrate
        self._limits = PoolLimits.checked(
            said,
            pool_size=pool_size,
            statement_cache_size=statement_cache_size,
            acquire_timeout_s=acquire_timeout_s,
            connection_idle_s=connection_idle_s,
            connection_lifetime_s=connection_lifetime_s,
        )
        self._retry_timeout_s = retry_timeout_s
        self._new_writer = partial(
            GroupCommitWriter[Submission],
            self._commit,
            finish=self._release,
            queue_records=queue_records,
            queue_bytes=queue_bytes,
            queue_timeout_s=queue_timeout_s,
            batch_records=batch_records,
            commit_timeout_s=retry_timeout_s,
        )
        self._pool: ConnectionPool | None = None
        self._read_pool: ConnectionPool | None = None
        self._writing: WritingConnection | None = None
        self._statistics: Statistics | None = None
        self._begun: tuple[Sequence[Submission], float] | None = None
        self._is_distributed = False
        self._follower = FollowReader(self._fetch, self._schema)

    # Opening

    async def _open(self) -> None:
        try:
            if self._user_pool is not None:
                self._pool = await ConnectionPool.of_user(
                    self._user_pool, self._where, self._prepare, self._limits
                )
            elif self._server is not None:
                self._pool = await ConnectionPool.connect(self._server, self._prepare, self._limits)
            self._read_pool = pool = self._pool
            assert pool is not None  # noqa: S101 - there is a URL or a pool
            self._writing = WritingConnection(
                pool,
                self._where,
                try_s=self._retry_timeout_s / _TRIES,
                idle_s=self._limits.idle_s,
            )
            self._statistics = Statistics(pool, self._schema, is_distributed=self._is_distributed)
            if self._read_server is not None:
                self._read_pool = await ConnectionPool.connect(
                    self._read_server, self._look, self._limits
                )
            self._writer = self._new_writer()
        except BaseException:
            await to_the_end(self._release())
            raise

    async def _prepare(self, connection: Any) -> None:
        if self._migrate:
            await migrations.migrate(connection, self._schema_name)
        else:
            await self._look(connection)
        self._is_distributed = await migrations.is_distributed(connection, self._schema_name)
        self._reader = HistoryReader(self._fetch, self._schema, is_distributed=self._is_distributed)

    async def _look(self, connection: Any) -> None:
        await migrations.require_current(connection, self._schema_name)

    @property
    def store_name(self) -> tuple[str, ...] | None:
        server = self._server
        if server is None:
            return None
        return (
            "postgresql",
            *map(str, (server.hosts, server.ports, server.database)),
            self._schema_name,
        )

    def _new_locks(self) -> ProcessLocks | None:
        if self._server is None:
            return None
        return AdvisoryLocks(
            self._server,
            self._limits,
            self._schema_name,
            retry_timeout_s=self._retry_timeout_s,
        )

    # Writing

    def _require_writable(self) -> None:
        self._writer.require_open()

    def _submit(self, submission: Submission) -> "asyncio.Future[None]":
        return self._writer.submit(submission)

    async def _submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        await self._writer.submit_when_ready(prepare)

    async def _commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        is_late = self._is_late(batch)

        async def commit(connection: Any, settings: Sequence[str]) -> Mapping[int, HistoryError]:
            committer = BatchCommitter(
                connection,
                self._schema,
                settings=settings,
                is_distributed=self._is_distributed,
                leaves_out_late=is_late,
                where=self._where,
                sent=self._writer.commit_has_begun,
            )
            return await committer.commit(batch)

        writing = self._require_writing()
        waits = _WAITS if is_late and len(batch) > 1 else None
        refused = await writing.do(commit, time_for(batch), waits)
        self._begun = None
        self._commit_signal.notify()
        self._note_changes(sum(one.record_count for one in batch if isinstance(one, AddRecords)))
        return refused

    def _note_changes(self, records: int) -> None:
        if self._statistics is not None:
            self._statistics.add_changes(records)

    def _is_late(self, batch: Sequence[Submission]) -> bool:
        """Return whether a batch was tried for half of its time, and may not wait for all of it."""
        if self._begun is None or self._begun[0] is not batch:
            self._begun = (batch, monotonic())
        return monotonic() - self._begun[1] > self._retry_timeout_s / 2

    def _empty(self) -> "asyncio.Future[None]":
        async def reset(connection: Any, settings: Sequence[str]) -> None:
            # In a transaction, whose lock holds up all writes until its end is known: a lone
            # TRUNCATE that was held up itself could reach the server after later acks.
            async with transaction(connection, *settings):
                await connection.execute(f"TRUNCATE {tables}")

        tables = f"{self._schema}.history, {self._schema}.messages"
        return self._in_turn(reset)

    async def _prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        async def step(connection: Any, settings: Sequence[str]) -> PruneStep:
            return await prune(
                connection,
                self._schema,
                settings,
                asked,
                reached,
                is_distributed=self._is_distributed,
            )

        pruned = await self._in_turn(step)
        if not asked.dry_run:
            self._note_changes(pruned.records)
        return pruned

    def _erase_backend(self) -> ServerErasure:
        self._require_writing()
        assert self._pool is not None  # noqa: S101 - they go together
        vacuum = Vacuum(
            self._pool,
            self._in_turn,
            self._where,
            self._schema,
            ask_every_s=self._retry_timeout_s,
        )
        return ServerErasure(
            self._in_turn, vacuum, self._schema, is_distributed=self._is_distributed
        )

    def _in_turn(self, work: "Write[T]") -> "asyncio.Future[T]":
        """Do work that writes, after all writes called before it and before all after."""
        return self._writer.run_in_turn(lambda: self._require_writing().do(work))

    def _require_writing(self) -> WritingConnection:
        if self._writing is None:
            raise HistoryClosed("the manager was closed before this was written")
        return self._writing

    async def add_in_transaction(
        self,
        connection: asyncpg.Connection,
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | None = None,
    ) -> list[HistoryRecord]:
        """Record changes within a transaction of the caller's, past the queue; return them.

        They are durable when that transaction commits, and gone if it does not. All or none: on
        an error the transaction can go on without them.

        Args:
            connection: an asyncpg connection to this history's database, in a transaction.
            records, if_latest: as `batch_add_history`. `if_latest` sees what others committed only
                where the transaction is read committed, as it is by default.

        Raises:
            InvalidInput: also where the connection is in no transaction.
            IdConflict, HistoryConflict, StorageError: nothing of these records was written.
        """
        self._require_open()
        if not connection.is_in_transaction():
            raise InvalidInput("the connection is in no transaction; begin one, or use the queue")
        submission = await UncheckedRecords(records, if_latest).check()
        committer = BatchCommitter(
            connection,
            self._schema,
            is_distributed=False,
            owns_transaction=False,
            where=self._where,
            sent=lambda: None,
        )
        try:
            async with savepoint(connection, checks_constraints=False):
                refused = await committer.commit_in_transaction([submission])
        except DriverError as error:
            raise storage_error(error, self._where) from error
        for reason in refused.values():
            raise reason
        return submission.records

    # Reading

    async def _read_history(self, memory_id: str) -> list[HistoryRecord]:
        return await self._reader.history(memory_id)

    async def _read_page(
        self, wanted: Filter, after: Cursor | None, limit: int, ahead: int
    ) -> PageRead:
        return await self._reader.page(wanted, after, limit, ahead)

    async def _count(self, wanted: Filter) -> int:
        return await self._reader.count(wanted)

    def _follow_place(self, cursor: str | None) -> Place | None:
        if self._is_distributed:
            raise InvalidInput(
                f"{self._where} spreads this history over the nodes of a Citus cluster, which have "
                "no order of commits in common: it can't be followed"
            )
        return None if cursor is None else place_from(cursor)

    async def _read_behind(
        self, place: Place | None, memory_id: str | None, limit: int
    ) -> FollowRead[Place]:
        return await self._follower.page(place, memory_id, limit)

    async def _read_end(self) -> Place | None:
        return await self._follower.end()

    async def _read_mark(self) -> object:
        return await self._follower.mark()

    def _read_states(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        states = ServerStates(self._fetch, self._schema, is_distributed=self._is_distributed)
        return states_at(states, when)

    async def _read_rows(self, after: Cursor | None, limit: int) -> RowsRead:
        return await self._reader.rows(after, limit)

    async def _read_times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        return await self._reader.times_before(ids)

    async def _read_newest(self) -> int | None:
        return await self._reader.newest()

    async def _read_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        return await self._reader.last_messages(session_scope, limit)

    async def _read_erasures(self) -> Sequence[Erasure]:
        log = ErasureLog(ERASURES, lambda sql: self._fetch(migrations.in_schema(sql, self._schema)))
        return await log.read()

    async def _read_scopes(self, after: str, limit: int) -> Sequence[str]:
        return await self._reader.scopes(after, limit)

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Run one SELECT where records are read, again where its connection broke."""
        return await self._fetch_from(lambda: self._read_pool, sql, arguments)

    async def _fetch_from(
        self, pool: Callable[[], ConnectionPool | None], sql: str, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        deadline = monotonic() + self._retry_timeout_s
        while True:
            try:
                return await self._fetch_once(pool(), sql, arguments)
            except OutcomeUnknown as error:
                reason: HistoryError = StorageUnreachable(str(error))
            except TryAgain as error:
                reason = error.reason
            if monotonic() > deadline:
                raise reason
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _fetch_once(
        self, pool: ConnectionPool | None, sql: str, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        if pool is None:
            raise HistoryClosed("the manager was closed before this was read")
        return await pool.fetch(sql, arguments, self._retry_timeout_s)

    async def _measure(self) -> Measured:
        size = await self._reader.size()
        written = await self._fetch_from(lambda: self._pool, STATE, [self._schema_name])
        read: Sequence[Sequence[Any]] = ()
        if self._read_server is not None:
            read = await self._fetch(STATE, self._schema_name)
        return Measured(size, 0, warnings_of(written, read))

    def _new_stats(self, measured: Measured) -> HistoryStats:
        return HistoryStats(
            store=self._where,
            writer=self._writer.stats(),
            file_bytes=measured.file_bytes,
            wal_bytes=measured.wal_bytes,
            warnings=measured.warnings,
        )

    # Closing

    async def _close(self) -> None:
        await self._writer.aclose(self._close_timeout_s)
        if not self._writer.task.done():
            self._abandon()

    async def _release(self) -> None:
        self._closed = True
        if self._statistics is not None:
            await self._statistics.aclose()
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing.aclose()
        for pool in self._pools_given_up():
            await pool.aclose(self._close_timeout_s)

    def _abandon(self) -> None:
        if self._statistics is not None:
            self._statistics.stop()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.stop()
        for pool in self._pools_given_up():
            pool.terminate()

    def _pools_given_up(self) -> set[ConnectionPool]:
        pools = {pool for pool in (self._pool, self._read_pool) if pool is not None}
        self._pool = self._read_pool = None
        return pools
