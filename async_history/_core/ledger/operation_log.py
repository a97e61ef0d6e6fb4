"""The log of operations of a store that may have a ledger, which then covers its entries."""

from collections.abc import Callable
from typing import Final

from async_history._core.ledger.changes import (
    begin_operations,
    end_operations,
    forget_actor,
    operations_of,
)
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operation_log import EntryLog
from async_history._core.operations.operations import (
    LogEntries,
    OperationEnd,
    StoreOperation,
    entry_of,
)


class LedgeredOperationLog:
    """The log of operations within a transaction. It also writes the leaves of its entries.

    Args:
        log: the log in this transaction.
        ledger: returns the ledger's tables in this transaction; None if the store has no ledger.
    """

    def __init__(self, log: EntryLog, ledger: Callable[[], LedgerTables | None]) -> None:
        self._log: Final = log
        self._ledger = ledger
        self.add = log.add
        self.read = log.read

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation, with its leaf."""
        await self.enter(entry_of(operation))

    async def enter(self, entries: LogEntries) -> None:
        """Add operations, with their leaves."""
        await self._log.enter(entries)
        ledger = self._ledger()
        if ledger is not None:
            await begin_operations(ledger, entries.ids)

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Record how an operation ended; return its numbers of records and messages."""
        counts = await self._log.end(end)
        ledger = self._ledger()
        if ledger is not None:
            await end_operations(ledger, [end.operation_id])
        return counts

    async def forget_actor(self, actor_id: str) -> None:
        """Remove an actor's name from all operations."""
        ledger = self._ledger()
        ids = [] if ledger is None else await operations_of(ledger, actor_id)
        await self._log.forget_actor(actor_id)
        if ledger is not None and ids:
            await forget_actor(ledger, ids)
