"""The locks that a batch's transaction takes before it looks anything up."""

from collections.abc import Callable, Sequence
from typing import Any, Final
from zlib import crc32

from async_history._core.concurrency.timed import timed
from async_history._core.writing.additions import ids_of
from async_history._core.writing.submissions import AddRecords
from async_history._postgres.rows import NAMES, joined_names

_LOCK_IDS: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended('async_history ids ' || $2::pg_catalog.text, 0) + stripe
)
FROM pg_catalog.unnest(pg_catalog.string_to_array($1, ',')::bigint[]) AS stripe
"""
"""On a Citus cluster the tables are distributed by memory, so no unique key spans memories. A
submission with the caller's ids takes locks first. There are only 64, because the server's lock
table is small, and they are taken in order, to prevent deadlocks."""
_STRIPES: Final = 64
LOCK_MEMORIES: Final = f"""
SELECT pg_catalog.count(*) FROM (
    SELECT pg_catalog.pg_advisory_xact_lock(key) FROM (
        SELECT DISTINCT pg_catalog.hashtextextended(
            'async_history ' || $3::pg_catalog.text || ' ' || name, 1
        ) AS key
        FROM pg_catalog.unnest({NAMES}) AS named (name) ORDER BY key
    ) AS keys
) AS locks
"""
"""These locks are taken before any look-up. After waiting for them a transaction sees all that the
previous holder wrote, which may be its own earlier try."""


def locks_ids(additions: Sequence[AddRecords]) -> bool:
    """Return whether a batch locks ids on a Citus cluster."""
    return any(one.names_ids for one in additions)


class BatchLocks:
    """The locks of a batch.

    Args:
        schema: the quoted schema.
        waited: called with the seconds that each statement took.
    """

    def __init__(self, connection: Any, schema: str, waited: Callable[[float], None]) -> None:
        self._connection = connection
        self._schema = schema
        self._waited = waited

    async def lock_memories(self, additions: Sequence[AddRecords]) -> None:
        """Lock the memories whose latest records decide what is written."""
        memories = [one.decided_by for one in additions if one.decided_by is not None]
        if memories:
            await self._lock(LOCK_MEMORIES, *joined_names(memories), self._schema)

    async def lock_ids(self, additions: Sequence[AddRecords]) -> None:
        """Lock the given ids on a Citus cluster."""
        named = ids_of(one for one in additions if one.names_ids)
        stripes = sorted({crc32(one.encode()) % _STRIPES for one in named})
        await self._lock(_LOCK_IDS, ",".join(map(str, stripes)), self._schema)

    async def _lock(self, sql: str, *arguments: str) -> None:
        with timed(self._waited):
            await self._connection.execute(sql, *arguments)
