"""Resetting a history: the tables are emptied in one transaction."""

from sqlalchemy import delete

from async_history._core.ledger import changes
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operations import StoreOperation, at_its_end
from async_history._sql.operations import log_within
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction


async def reset(
    transaction: Transaction,
    tables: Tables,
    operation: StoreOperation,
    ledger: LedgerTables | None,
) -> None:
    """Remove all records, messages and owners; enter the operation in the log.

    Numbers are not reused.
    """
    emptied = (tables.history, tables.messages, tables.marks, tables.spans, tables.owners)
    connection = transaction.connection
    removed = [(await connection.execute(delete(table))).rowcount for table in emptied]
    transaction.next_version()
    if ledger is not None:
        await changes.reset(ledger)
    ended = at_its_end(operation, *removed[:2])
    await log_within(connection, tables, ledger).begin(ended)
