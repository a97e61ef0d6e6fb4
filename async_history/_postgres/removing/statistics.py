"""ANALYZE after a large change, and VACUUM after a large removal, in the background."""

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Any, Final

from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.side_connections import SideConnections
from async_history._postgres.removing.vacuum import may_vacuum
from async_history._postgres.transaction import transaction
from async_history.errors import HistoryError

_log = logging.getLogger("async_history")

_LEAST: Final = 10_000
"""The fewest rows of a large removal or a large change."""
_PART: Final = 0.1
"""The share of changed rows that is a large change, as autovacuum_analyze_scale_factor. (Autovacuum
adds 50 rows; a small table is read quickly anyway.)"""
_PAUSE_S: Final = 60.0
"""The least pause, as autovacuum_naptime: a table that keeps growing is always due."""
_MOST_AT_CLOSE_S: Final = 5.0
_KNOWN: Final = """
SELECT greatest(reltuples, 0::pg_catalog.float4),
    pg_catalog.date_part('epoch'::pg_catalog.text, pg_catalog.clock_timestamp() - greatest(
        pg_catalog.pg_stat_get_last_analyze_time(oid),
        pg_catalog.pg_stat_get_last_autoanalyze_time(oid)
    )),
    pg_catalog.date_part('epoch'::pg_catalog.text, pg_catalog.clock_timestamp() - greatest(
        pg_catalog.pg_stat_get_last_vacuum_time(oid),
        pg_catalog.pg_stat_get_last_autovacuum_time(oid)
    ))
FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""
"""The number of rows by the statistics, the seconds since these were made, and the seconds since
the table was vacuumed; NULL if neither was done."""


def _is_within(age_s: float | None, period_s: float) -> bool:
    return age_s is not None and age_s < period_s


class Statistics:
    """A background task: ANALYZE after a large change, and VACUUM after a large removal.

    Without VACUUM, reads after a removal would step over all removed rows. That takes the same time
    in a history of any size, so only the number of removed rows counts.

    Autovacuum does both too, unless it is off or late. The task blocks no reads or writes. It does
    nothing if the role may not analyze the table, if the table is locked, behind a pooler, or on
    Citus.

    Args:
        side: provides a separate connection.
        schema: the quoted schema.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        pause_s: the shortest time between two runs.
    """

    def __init__(
        self,
        side: SideConnections,
        schema: str,
        *,
        is_distributed: bool,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._side = side
        self._table = f"{schema}.history"
        self._is_left_out = side.is_behind_pooler or is_distributed
        self._pause_s = pause_s
        self._changed = self._removed = 0
        self._due = _LEAST
        self._vacuums = False
        self._began_at = self._removed_at = 0.0
        self._next_at = 0.0
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add_removed(self, records: int, *, is_over: bool) -> None:
        """Count records that a pruning step removed. After the last step the table is vacuumed."""
        self._removed += records
        self._removed_at = monotonic()
        self._vacuums = is_over
        self._count(records)
        if is_over:
            self._begin()

    def add_changes(self, records: int) -> None:
        """Count records that were added."""
        self._count(records)
        if self._changed > self._due:
            self._begin()

    def _count(self, records: int) -> None:
        if not self._changed:
            self._began_at = monotonic()
        self._changed += records

    @property
    def _is_due(self) -> bool:
        return self._changed > self._due or (self._vacuums and self._removed > _LEAST)

    def _begin(self) -> None:
        if self._is_due and self._task is None and not self._is_left_out:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._is_due and not self._is_left_out:
                pause_s = self._next_at - monotonic()
                if pause_s > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), pause_s)
                self._next_at = monotonic() + self._pause_s
                await self._side.use(self._analyze_if_due)
        except (HistoryError, OutcomeUnknown, TryAgain) as error:
            self._changed = self._removed = 0
            _log.info(
                "%s was not vacuumed or analyzed after a large change: %s", self._table, error
            )
        finally:
            self._task = None

    async def _analyze_if_due(self, connection: Any) -> None:
        changed, began_at = self._changed, self._began_at
        removed, removed_at = self._removed, self._removed_at
        async with transaction(connection):
            may = await may_vacuum(connection, self._table)
            known = await connection.fetchrow(_KNOWN, self._table)
        if not may or known is None:
            self._is_left_out = True
            return
        rows, analyzed_s, vacuumed_s = known
        # Read after the server's clock: a wait for the answer must not make statistics look older.
        now = monotonic()
        is_new = _is_within(analyzed_s, now - began_at)
        is_vacuumed = _is_within(vacuumed_s, now - removed_at)
        self._due = _LEAST + int(rows * _PART)
        if not self._is_due and not is_new:
            return
        # Waiting for a lock would block all later sessions, and truncating the table's file would
        # block all sessions.
        if not self._vacuums:
            removed = 0
        if removed > _LEAST and not is_vacuumed:
            await connection.execute(f"VACUUM (ANALYZE, SKIP_LOCKED, TRUNCATE false) {self._table}")
        elif not is_new:
            await connection.execute(f"ANALYZE (SKIP_LOCKED) {self._table}")
        self._changed -= changed
        self._removed -= removed
        self._began_at = monotonic()

    async def aclose(self) -> None:
        """Run at once what is due, wait a few seconds for it, and start no other run."""
        self._closing.set()
        task = self._task
        if task is not None:
            _, unfinished = await asyncio.wait([task], timeout=_MOST_AT_CLOSE_S)
            if unfinished:
                task.cancel()
                await asyncio.wait([task])
        self._is_left_out = True

    def stop(self) -> None:
        """Cancel the current run and start no other, also after the loop has stopped."""
        self._is_left_out = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._task.cancel()
