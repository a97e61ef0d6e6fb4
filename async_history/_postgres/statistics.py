"""ANALYZE after a large change."""

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Any, Final

from async_history._core.writer import OutcomeUnknown, TryAgain
from async_history._postgres.pool import ConnectionPool
from async_history._postgres.transaction import transaction
from async_history._postgres.vacuum import may_vacuum
from async_history.errors import HistoryError

_log = logging.getLogger("async_history")

_LEAST: Final = 10_000
_PART: Final = 0.1
"""Autovacuum's own part (autovacuum_analyze_scale_factor), which it adds 50 records to: of a small
table all is read quickly."""
_PAUSE_S: Final = 60.0
"""Autovacuum's own too (autovacuum_naptime): a table that grows all the time is always due."""
_MOST_AT_CLOSE_S: Final = 5.0
_KNOWN: Final = """
SELECT greatest(reltuples, 0::pg_catalog.float4), coalesce(
    greatest(
        pg_catalog.pg_stat_get_last_analyze_time(oid),
        pg_catalog.pg_stat_get_last_autoanalyze_time(oid)
    ) > pg_catalog.clock_timestamp() - $2::pg_catalog.text::pg_catalog.interval,
    false
)
FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""
"""For how many rows there were statistics, and whether any were made within so many seconds."""


class Statistics:
    """Has a server make statistics of the history after a large change.

    Autovacuum does that too, unless it is off, or late. It is done in the background, on a
    connection of the pool, and holds up nobody who reads or writes. It is left out where the role
    may not, where the table is locked, where a pooler stands between, and on Citus.

    Args:
        pool: lends a connection.
        schema: the quoted schema.
        is_distributed: the tables are spread over the nodes of a Citus cluster.
        pause_s: how long to wait at least from one time to the next.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        schema: str,
        *,
        is_distributed: bool,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._pool = pool
        self._table = f"{schema}.history"
        self._is_left_out = pool.is_behind_pooler or is_distributed
        self._pause_s = pause_s
        self._changed = 0
        self._due = _LEAST
        self._began_at = 0.0
        self._next_at = 0.0
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add_changes(self, records: int) -> None:
        """Count records that were added or removed."""
        if not self._changed:
            self._began_at = monotonic()
        self._changed += records
        if self._changed > self._due and self._task is None and not self._is_left_out:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._changed > self._due and not self._is_left_out:
                pause_s = self._next_at - monotonic()
                if pause_s > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), pause_s)
                self._next_at = monotonic() + self._pause_s
                await self._pool.use(self._analyze_if_due)
        except (HistoryError, OutcomeUnknown, TryAgain) as error:
            self._changed = 0
            _log.info("%s was not analyzed after a large change: %s", self._table, error)
        finally:
            self._task = None

    async def _analyze_if_due(self, connection: Any) -> None:
        changed, since_s = self._changed, monotonic() - self._began_at
        async with transaction(connection):
            may = await may_vacuum(connection, self._table)
            known = await connection.fetchrow(_KNOWN, self._table, f"{since_s} seconds")
        if not may or known is None:
            self._is_left_out = True
            return
        rows, is_new = known
        self._due = _LEAST + int(rows * _PART)
        if changed <= self._due and not is_new:
            return
        if not is_new:
            # Whoever waits for a lock keeps those waiting who come later.
            await connection.execute(f"ANALYZE (SKIP_LOCKED) {self._table}")
        self._changed -= changed
        self._began_at = monotonic()

    async def aclose(self) -> None:
        """Do at once what is due, wait for it for a few seconds, and begin no more."""
        self._closing.set()
        task = self._task
        if task is not None:
            _, unfinished = await asyncio.wait([task], timeout=_MOST_AT_CLOSE_S)
            if unfinished:
                task.cancel()
                await asyncio.wait([task])
        self._is_left_out = True

    def stop(self) -> None:
        """Begin no more, also when the loop has stopped."""
        self._is_left_out = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._task.cancel()
