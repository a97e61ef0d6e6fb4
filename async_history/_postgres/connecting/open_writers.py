"""The open transactions that write to the history, and waiting for their end.

A change of `owners_state` is seen by every statement that begins after its commit. A statement that
began before has locked the table it writes to, and keeps that lock until its transaction has ended.
So all that began before are among the holders of these locks, as with CREATE INDEX CONCURRENTLY.
Waiting for them needs no lock, so neither others' writes nor a VACUUM wait.

Each role may see all locks (`pg_locks`), and prepared transactions (`pg_prepared_xacts`).
"""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Final, NamedTuple

from async_history._core.wording import counted
from async_history._postgres.rows import Fetch
from async_history.errors import StorageLocked

_WRITERS: Final = """
SELECT held.virtualtransaction, held.pid, prepared.transaction::pg_catalog.text, prepared.gid
FROM pg_catalog.pg_locks AS held
LEFT JOIN pg_catalog.pg_locks AS numbered
    ON held.pid IS NULL AND numbered.pid IS NULL
    AND numbered.locktype = 'transactionid'::pg_catalog.text
    AND numbered.virtualtransaction = held.virtualtransaction
LEFT JOIN pg_catalog.pg_prepared_xacts AS prepared
    ON prepared.transaction = numbered.transactionid
WHERE held.granted AND held.locktype = 'relation'::pg_catalog.text
    AND held.mode IN (
        'RowExclusiveLock'::pg_catalog.text, 'ShareRowExclusiveLock'::pg_catalog.text,
        'ExclusiveLock'::pg_catalog.text, 'AccessExclusiveLock'::pg_catalog.text
    )
    AND held.database = (
        SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
    )
    AND held.relation IN (
        pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid,
        pg_catalog.to_regclass($2::pg_catalog.text)::pg_catalog.oid
    )
"""
"""VACUUM and CREATE INDEX CONCURRENTLY take none of these locks. A prepared transaction has no
process; its virtual transaction changes with a restart, its number never."""
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.25
_MOST_NAMED: Final = 3


class _Writer(NamedTuple):
    """An open transaction that may have written."""

    virtual: str
    pid: int | None
    number: str | None
    prepared_as: str | None

    @property
    def key(self) -> str:
        return self.number or self.virtual

    def __str__(self) -> str:
        if self.pid is not None:
            return f"process {self.pid}"
        return f"prepared transaction {self.prepared_as!r}"


class OpenWriters:
    """The open transactions that write to a schema's tables.

    Args:
        fetch: runs one SELECT on the server for writes.
        schema: the quoted schema.
        where: the server, for messages.
        timeout_s: how long to wait.
    """

    def __init__(self, fetch: Fetch, schema: str, where: str, *, timeout_s: float) -> None:
        self._fetch = fetch
        self._tables = (f"{schema}.history", f"{schema}.messages")
        self._where = where
        self._timeout_s = timeout_s

    async def wait(self) -> None:
        """Wait until the transactions that are open now have ended, prepared ones included.

        Raises:
            StorageLocked: one is still open after the timeout.
        """
        deadline = monotonic() + self._timeout_s
        now = await self._open()
        for is_prepared in (False, True):  # one that was open may have been prepared meanwhile
            left = {one.key for one in now if not is_prepared or one.pid is None}
            pause_s = _FIRST_PAUSE_S
            while left:
                if monotonic() > deadline:
                    raise self._still_open([one for one in now if one.key in left])
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                now = await self._open()
                left &= {one.key for one in now}

    async def _open(self) -> list[_Writer]:
        return [_Writer(*row) for row in await self._fetch(_WRITERS, *self._tables)]

    def _still_open(self, left: Sequence[_Writer]) -> StorageLocked:
        named = ", ".join(map(str, left[:_MOST_NAMED]))
        return StorageLocked(
            f"{self._where} has {counted(len(left), 'transaction')} that may have written before, "
            f"still open after {self._timeout_s:g} s ({named}): end it "
            "(pg_terminate_backend, COMMIT PREPARED or ROLLBACK PREPARED), and call this again"
        )
