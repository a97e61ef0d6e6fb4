"""Statements that run in a transaction on one schema's tables."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from async_history._core.ledger.operation_log import LedgeredOperationLog
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operation_log import OperationStatements, StatementOperationLog
from async_history._core.removing.erase_transaction import RecordRef
from async_history._postgres.operations import OPERATIONS
from async_history._postgres.schema import in_schema

RECORDS: Final = (
    "id = ANY($1::pg_catalog.text[])"
    " AND ($2::pg_catalog.text[] IS NULL"
    " OR memory_id || ''::pg_catalog.text = ANY($2::pg_catalog.text[]))"
)
"""Condition for records; `SchemaSteps._named` returns its parameters. It uses the index of ids. The
index of memories would read all their records, and without statistics looks as cheap."""


def ref_of(row: Sequence[Any]) -> RecordRef:
    """Return the reference in a row: the position, the id and the memory."""
    position, record_id, memory_id = row
    return RecordRef(int(position), record_id, memory_id)


def log_within(
    connection: Any,
    schema: str,
    ledger: LedgerTables | None,
    statements: OperationStatements = OPERATIONS,
) -> LedgeredOperationLog:
    """Return the log of operations inside a connection's transaction.

    Args:
        schema: the quoted schema.
        ledger: the ledger's tables in this transaction, if the store has one.
        statements: `NEW_OPERATIONS` if the operations that are added can't be in the log.
    """

    async def fetch(sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        return list(await connection.fetch(in_schema(sql, schema), *arguments))

    return LedgeredOperationLog(StatementOperationLog(statements, fetch), lambda: ledger)


class SchemaSteps:
    """Base of the statements that run in a transaction on one schema's tables.

    Args:
        schema: the quoted schema.
        ledger: the ledger's tables in this transaction, if the store has one.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
    """

    def __init__(
        self, connection: Any, schema: str, ledger: LedgerTables | None, *, is_distributed: bool
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._ledger = ledger
        self._is_distributed = is_distributed

    @property
    def log(self) -> LedgeredOperationLog:
        """The log of operations, inside this transaction."""
        return log_within(self._connection, self._schema, self._ledger)

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        return list(await self._connection.fetch(in_schema(sql, self._schema), *arguments))

    def _named(
        self, ids: Iterable[str], memory_ids: Iterable[str]
    ) -> tuple[list[str], list[str] | None]:
        """Return the parameters of `RECORDS`.

        On Citus an id is unique only within its memory. Otherwise the memories are left out:
        comparing each record with the whole list would take most of the statement's time.
        """
        return list(ids), list(set(memory_ids)) if self._is_distributed else None

    async def _execute(self, sql: str, *arguments: Any) -> str:
        done: str = await self._connection.execute(in_schema(sql, self._schema), *arguments)
        return done
