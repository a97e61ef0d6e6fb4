"""Resetting a history in PostgreSQL: the tables are emptied in one transaction."""

from collections.abc import Sequence
from typing import Any, Final

from async_history._core.ledger import changes
from async_history._core.operations.operations import StoreOperation, at_its_end
from async_history._postgres.ledger import Attestation, locks, require_no_ledger, tables_of
from async_history._postgres.schema import in_schema
from async_history._postgres.schema_steps import log_within
from async_history._postgres.transaction import transaction
from async_history._postgres.writing.owner_steps import FORGET_OWNERS

_COUNT: Final = "SELECT pg_catalog.count(*) FROM"


async def reset(
    connection: Any,
    schema: str,
    settings: Sequence[str],
    operation: StoreOperation,
    attestation: Attestation | None,
) -> None:
    """Remove all records, messages and owners; enter the operation in the log.

    Raises:
        MigrationError: the history has been given a ledger, and was opened without one.
    """
    # Before the transaction: if this try is cut off, its locks would block the next one.
    # Records that others commit before the TRUNCATE are not counted.
    records = int(await connection.fetchval(f"{_COUNT} {schema}.history"))
    messages = int(await connection.fetchval(f"{_COUNT} {schema}.messages"))
    # In a transaction, whose lock blocks all writes until its outcome is known. Otherwise a
    # delayed TRUNCATE could reach the server after later acknowledged writes.
    async with transaction(connection, *settings, *locks(attestation)):
        if attestation is None:
            await require_no_ledger(connection, schema)
        await connection.execute(
            in_schema("TRUNCATE {schema}.owners, {schema}.history, {schema}.messages", schema)
        )
        await connection.execute(in_schema(FORGET_OWNERS, schema))
        ledger = tables_of(attestation, connection)
        if ledger is not None:
            await changes.reset(ledger)
        log = log_within(connection, schema, ledger)
        await log.begin(at_its_end(operation, records, messages))
