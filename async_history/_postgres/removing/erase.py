# mypy: disable-error-code=import-untyped
"""Erasure in PostgreSQL: its transactions, VACUUM, and what remains outside the tables."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

import asyncpg

from async_history._core.encryption.store_encryption import KEYS_DESTROYED
from async_history._core.ledger.ledger_store import place_all
from async_history._core.removing.erase import Residue
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.erase_transaction import EraseTransaction
from async_history._postgres.connecting.open_writers import OpenWriters
from async_history._postgres.connecting.writing_connection import Write
from async_history._postgres.key_statements import KeyChange, change_keys
from async_history._postgres.ledger import ServerLedger, locks, require_no_ledger, tables_of
from async_history._postgres.removing.erase_keys import EraseKeys
from async_history._postgres.removing.erase_steps import EraseSteps
from async_history._postgres.removing.vacuum import Vacuum
from async_history._postgres.transaction import BY_INDEX, transaction
from async_history.errors import StorageLocked

T = TypeVar("T")

_SHORT_WAIT: Final = "SET LOCAL lock_timeout TO '100ms'"
"""The manager's other writes wait for the erasure's transaction. So it gives up early, and is tried
again after them."""
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
LOGS_HAVE_TEXTS: Final = (
    "the server's log (WAL), replicas until they have replayed it, and backups have the texts "
    "until they are recycled"
)
"""Where texts remain after they were removed from the tables."""
_OUT_OF_REACH: Final = (
    LOGS_HAVE_TEXTS,
    "VACUUM leaves the bytes of removed row versions in the tables' files until other rows are "
    "written there; erase with vacuum='full', or run VACUUM FULL, to write the files again",
)


class ServerErasure:
    """An erasure on a server.

    Args:
        run_exclusively: runs work alone on the writing connection, queued with the writes.
        writers: the open transactions that write to the history.
        vacuum: vacuums the tables.
        where: the server, for messages.
        schema: the quoted schema.
        keys: the keys of the history, if it is encrypted.
        ledger: the ledger of the store, if it has one.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        lock_timeout_s: how long to try again while others have locked what is to be changed.
    """

    def __init__(
        self,
        run_exclusively: Callable[[Write[Any]], Awaitable[Any]],
        writers: OpenWriters,
        vacuum: Vacuum,
        where: str,
        schema: str,
        keys: EraseKeys,
        ledger: ServerLedger | None,
        *,
        is_distributed: bool,
        lock_timeout_s: float,
    ) -> None:
        self._run_exclusively = run_exclusively
        self._writers = writers
        self._vacuum = vacuum
        self._where = where
        self._schema = schema
        self._keys = keys
        self._ledger = ledger
        self._is_distributed = is_distributed
        self._lock_timeout_s = lock_timeout_s

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, queued with the writes.

        If it changes owners or notes names, wait for the transactions that may not have seen that.
        They may have written an owner that was removed, so such work is repeated until it finds
        none.

        Raises:
            StorageLocked: other transactions stayed open, or kept what is to be changed locked.
        """
        if self._ledger is not None:
            await place_all(self._ledger)
        done, steps = await self._run(work)
        while steps.has_changed_owners:
            await self._writers.wait()
            if not steps.has_disowned:
                break
            done, steps = await self._run(work)
        return done

    async def _run(
        self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]
    ) -> tuple[T, EraseSteps]:
        """Do work in one transaction. While others have locked its rows, other writes go on."""
        attestation = None if self._ledger is None else self._ledger.attestation

        async def erase(connection: Any, settings: Sequence[str]) -> tuple[T, EraseSteps] | None:
            first = (*settings, BY_INDEX, *locks(attestation), _SHORT_WAIT)
            try:
                async with transaction(connection, *first):
                    if attestation is None:
                        await require_no_ledger(connection, self._schema)
                    steps = EraseSteps(
                        connection,
                        self._schema,
                        self._keys,
                        tables_of(attestation, connection),
                        is_distributed=self._is_distributed,
                    )
                    return await work(steps), steps
            except asyncpg.LockNotAvailableError:
                return None

        deadline = monotonic() + self._lock_timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            done: tuple[T, EraseSteps] | None = await self._run_exclusively(erase)
            if done is not None:
                return done
            if monotonic() > deadline:
                raise StorageLocked(
                    f"{self._where} has a transaction that has locked what is to be erased for "
                    f"{self._lock_timeout_s:g} s (see pg_locks): end it, and erase again"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def residue(self) -> Residue:
        return Residue(sentences=_OUT_OF_REACH)

    async def _change_keys(self, work: KeyChange) -> None:
        await self._run_exclusively(
            lambda connection, settings: change_keys(connection, self._schema, settings, work)
        )

    async def clean(self, *, key_ids: Sequence[str], vacuum: Vacuuming) -> Residue:
        if key_ids:
            await self._keys.destroy(key_ids, self._change_keys)
        if vacuum:
            tables = [*self._keys.tables, *(() if self._ledger is None else ("history_ledger",))]
            refusals = await self._vacuum.run(tables, full=vacuum == "full")
        else:
            refusals = ["the tables were not vacuumed (vacuum=False)"]
        is_rewritten = vacuum == "full" and not refusals
        keys = (KEYS_DESTROYED,) if key_ids else ()
        left = _OUT_OF_REACH[: 1 if is_rewritten else None]
        return Residue(sentences=(*refusals, *keys, *left))
