"""The entry of a migration in the log of operations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from async_history._core.ledger.changes import begin_operations
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operations import StoreOperation, at_its_end, new_operation
from async_history._core.records.rows import ReadRows, Row
from async_history._postgres.ledger_sql import STATEMENTS
from async_history._postgres.operations import enter

_LOGGED_FROM: Final = 9
"""The first version that has a log of operations."""


def migration_from(version: int) -> StoreOperation:
    """Return the log entry of a migration from a version; 0 for a new schema."""
    return new_operation("migrate", {"from_version": version})


async def log_migration(
    connection: Any, schema: str, operation: StoreOperation, version: int, *, is_covered: bool
) -> None:
    """Log that a migration has reached a version; this replaces its previous entry.

    Args:
        schema: the quoted schema.
        is_covered: whether the migration is complete, and a ledger covers it.
    """
    if version < _LOGGED_FROM or not operation.arguments["from_version"]:
        return
    reached = replace(operation, arguments={**operation.arguments, "to_version": version})
    await connection.execute(f"DELETE FROM {schema}.operations WHERE id = $1", operation.id)
    await enter(connection, schema, at_its_end(reached, 0, 0))
    if is_covered:
        await begin_operations(_ledger_tables(connection, schema), [operation.id])


def _ledger_tables(connection: Any, schema: str) -> LedgerTables:
    """Return the tables of a ledger in a connection's transaction, to log operations."""

    async def run(sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await connection.fetch(
            sql.format(schema=schema), *arguments
        )
        return rows

    async def as_stored(read: ReadRows) -> Sequence[Row]:
        return await read()

    return LedgerTables(STATEMENTS, run, as_stored, key=None)
