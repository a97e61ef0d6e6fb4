"""VACUUM of the tables after an erasure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.side_connections import SideConnections
from async_history._postgres.connecting.writing_connection import Write
from async_history._postgres.transaction import transaction
from async_history.errors import CommitUnknown, Overloaded, StorageError, StorageLocked

_log = logging.getLogger("async_history")

_IS_VACUUMING: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE locktype = 'relation'::pg_catalog.text
        AND mode IN ('ShareUpdateExclusiveLock'::pg_catalog.text,
                     'AccessExclusiveLock'::pg_catalog.text)
        AND database = (
            SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
        )
        AND relation = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
        AND ($2::pg_catalog.int4 IS NULL OR pid = $2::pg_catalog.int4)
)
"""
"""Whether a process has, or waits for, the lock that VACUUM (FULL) takes on a table. A role may see
the locks of all processes, but only the queries of its own."""
_MAY_VACUUM: Final = """
SELECT {has_right} OR pg_catalog.pg_has_role(
    (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
    'USAGE'::pg_catalog.text
)
FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""
"""Without the privilege VACUUM does nothing but send a warning, which may be silenced."""
_IS_OWNER: Final = "pg_catalog.pg_has_role(relowner, 'USAGE'::pg_catalog.text)"
_MAY_MAINTAIN: Final = "pg_catalog.has_table_privilege(oid, 'MAINTAIN'::pg_catalog.text)"
_HAS_MAINTAIN: Final = 17
"""The first version that has this privilege
(https://www.postgresql.org/docs/17/release-17.html)."""
_MISSES: Final = 2
"""Consecutive checks that must find no such process. A single one may fall between vacuuming and
analyzing, or before the answer arrives."""
_FILE: Final = """
SELECT ''::pg_catalog.text, relfilenode::pg_catalog.text FROM pg_catalog.pg_class
WHERE oid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""
_FILES_OF_SHARDS: Final = """
SELECT shardid::pg_catalog.text, result FROM pg_catalog.run_command_on_shards(
    $1::pg_catalog.text::pg_catalog.regclass,
    'SELECT relfilenode FROM pg_catalog.pg_class WHERE oid = %L::pg_catalog.regclass'
        ::pg_catalog.text
)
"""
"""On a Citus cluster each shard is vacuumed, or skipped because it is locked, where it is."""
_PAUSE_S: Final = 0.05
"""Seconds between two tries of VACUUM FULL."""


class Vacuum:
    """VACUUM of tables, one by one, while others write.

    How long that takes depends on the table, the server's cost settings, and other sessions' locks.
    So it has no time limit. Instead, the writing connection, which is available even if the rest
    of the pool is in use, asks the server from time to time whether the VACUUM still runs.

    Args:
        side: provides a connection, which is busy meanwhile.
        run_exclusively: does work on the writing connection.
        where: the server, for messages.
        schema: the quoted schema.
        ask_every_s: seconds between questions to the server.
        lock_timeout_s: seconds to try VACUUM FULL while others have locked a table.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
    """

    def __init__(
        self,
        side: SideConnections,
        run_exclusively: Callable[[Write[Any]], Awaitable[Any]],
        where: str,
        schema: str,
        *,
        ask_every_s: float,
        lock_timeout_s: float,
        is_distributed: bool,
    ) -> None:
        self._side = side
        self._run_exclusively = run_exclusively
        self._where = where
        self._schema = schema
        self._ask_every_s = ask_every_s
        self._lock_timeout_s = lock_timeout_s
        self._files = _FILES_OF_SHARDS if is_distributed else _FILE

    async def run(self, tables: Sequence[str], *, full: bool = False) -> list[str]:
        """Vacuum tables; return a sentence for each that could not be vacuumed.

        With `full` the server rewrites them, and locks them meanwhile. It does not wait for the
        locks, but is tried again.

        If the caller is cancelled, the server ends its VACUUM. Behind a pooler it continues,
        because a cancel request could hit another client of the server process.

        Raises:
            HistoryClosed: the manager was closed.
        """
        refusals: list[str] = []
        for table in tables:
            try:
                await self._vacuum(f"{self._schema}.{table}", full=full)
            except (StorageError, OutcomeUnknown, TryAgain) as error:
                refusals.append(f"the table {self._schema}.{table} was not vacuumed: {error}")
        return refusals

    async def _vacuum(self, table: str, *, full: bool) -> None:
        begun = asyncio.Event()
        try:
            if full:
                await self._side.use(partial(self._rewrite_on, table, begun))
            else:
                await self._side.use(partial(self._vacuum_on, table, "ANALYZE", begun))
        except asyncio.CancelledError:
            if begun.is_set() and self._side.is_behind_pooler:
                _log.warning(
                    "an erasure was cancelled, and its VACUUM of %s goes on in %s, which is "
                    "reached through a pooler; to end it, cancel it there (pg_cancel_backend)",
                    table,
                    self._where,
                )
            raise

    async def _rewrite_on(self, table: str, begun: asyncio.Event, connection: Any) -> None:
        """Let the server write a table's files again, once it gets the lock without waiting.

        Everybody else would wait for a session that waits for this lock.

        Raises:
            StorageLocked: others keep the table locked.
            StorageError, OutcomeUnknown: as `_vacuum_on`.
        """
        deadline = monotonic() + self._lock_timeout_s
        files = await self._files_of(table, connection)
        while True:
            await self._vacuum_on(table, "FULL, ANALYZE, SKIP_LOCKED", begun, connection)
            if not files & await self._files_of(table, connection):
                return
            if monotonic() > deadline:
                raise StorageLocked(
                    f"others have kept it locked for {self._lock_timeout_s:g} s, and VACUUM FULL "
                    "does not wait for that; end their transactions (pg_stat_activity) and erase "
                    f"again, or run VACUUM (FULL, ANALYZE) {table}"
                )
            await asyncio.sleep(_PAUSE_S)

    async def _files_of(self, table: str, connection: Any) -> set[tuple[str, str]]:
        """Return the numbers of the files of a table or its shards, which a rewrite changes."""
        async with transaction(connection):
            return {(shard, file) for shard, file in await connection.fetch(self._files, table)}

    async def _vacuum_on(
        self, table: str, options: str, begun: asyncio.Event, connection: Any
    ) -> None:
        """Vacuum a table on a connection, until it is done or the server no longer runs it.

        Raises:
            StorageError: the role may not vacuum the table.
            OutcomeUnknown: the server no longer runs it, or can't be asked.
        """
        await self._require_right(table, connection)
        running = asyncio.ensure_future(connection.execute(f"VACUUM ({options}) {table}"))
        begun.set()
        pid = None if self._side.is_behind_pooler else connection.get_server_pid()
        try:
            await self._until_done(running, table, pid)
        finally:
            if not running.done():
                if self._side.is_behind_pooler:
                    connection.terminate()
                else:
                    running.cancel()  # asyncpg asks the server to
                await to_the_end(asyncio.wait([running]))
            if not running.cancelled():
                running.exception()  # raised below, or no longer relevant
        await running

    async def _require_right(self, table: str, connection: Any) -> None:
        async with transaction(connection):
            may = await may_vacuum(connection, table)
        if may is False:
            raise StorageError(
                "this role is not its owner"
                + (" and was not granted MAINTAIN on it" if _has_maintain(connection) else "")
                + f"; let the owner run VACUUM (ANALYZE) {table}"
            )

    async def _until_done(
        self, running: "asyncio.Future[object]", table: str, pid: int | None
    ) -> None:
        misses = 0
        while True:
            await asyncio.wait([running], timeout=self._ask_every_s)
            if running.done():
                return
            reason = await self._why_not_running(table, pid)
            misses = 0 if reason is None else misses + 1
            if misses == _MISSES:
                raise OutcomeUnknown(f"whether its VACUUM goes on is not known: {reason}")

    async def _why_not_running(self, table: str, pid: int | None) -> str | None:
        """Return why the server seems not to run it; None if it does, or the queue is full."""

        async def ask(connection: Any, settings: Sequence[str]) -> bool:
            async with transaction(connection, *settings):
                return bool(await connection.fetchval(_IS_VACUUMING, table, pid))

        try:
            if await self._run_exclusively(ask):
                return None
        except Overloaded:
            return None
        except (StorageError, CommitUnknown) as error:
            return str(error)
        return f"{self._where} has no process that runs it any more"


async def may_vacuum(connection: Any, table: str) -> bool | None:
    """Return whether the role may vacuum and analyze a table; None if the table does not exist."""
    right = _MAY_MAINTAIN if _has_maintain(connection) else _IS_OWNER
    may: bool | None = await connection.fetchval(_MAY_VACUUM.format(has_right=right), table)
    return may


def _has_maintain(connection: Any) -> bool:
    return bool(connection.get_server_version().major >= _HAS_MAINTAIN)
