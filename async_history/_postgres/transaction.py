"""Transactions and savepoints on PostgreSQL, with their settings sent in the same round trip.

They are begun by hand, because asyncpg would send each setting separately.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from async_history._core.ledger.operation_log import LedgeredOperationLog
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operation_log import OperationStatements, StatementOperationLog
from async_history._core.removing.erase_transaction import RecordRef
from async_history._postgres.errors import DriverError
from async_history._postgres.operations import OPERATIONS
from async_history._postgres.schema import in_schema

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""Each statement must see what was committed while an earlier one waited for locks, whatever the
database's default is."""
_COMMIT: Final = "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL client_min_messages TO warning; COMMIT;"
"""Only a warning says that a commit did not wait for its synchronous standby. A role, a database, a
pooler or a trigger may have silenced warnings. So they are turned on last, after the triggers of
deferred constraints have run."""
WAIT_FOR_REPLICAS_TOO: Final = (
    "SELECT pg_catalog.pg_logical_emit_message(true, 'async_history', '')"
)
"""Writes a few bytes of log: a commit waits for a synchronous standby only if it wrote some.
Otherwise an earlier try that is committed only here would be acknowledged at once."""
_WITHOUT_INDEX: Final = ("seqscan", "bitmapscan", "sort")
BY_INDEX: Final = "; ".join(f"SET LOCAL enable_{plan} TO off" for plan in _WITHOUT_INDEX)
"""For statements whose rows an index gives in order. PostgreSQL caches plans. A plan made while the
table was small, or without statistics, would read or sort all of a large table for a few rows."""
ANY_PLAN: Final = "SELECT " + ", ".join(
    f"pg_catalog.set_config('enable_{plan}', 'on', true)" for plan in _WITHOUT_INDEX
)
"""For statements after `BY_INDEX` that read whole tables."""
RECORDS: Final = (
    "id = ANY($1::pg_catalog.text[])"
    " AND ($2::pg_catalog.text[] IS NULL"
    " OR memory_id || ''::pg_catalog.text = ANY($2::pg_catalog.text[]))"
)
"""Condition for records; `SchemaSteps._named` returns its parameters. It uses the index of ids. The
index of memories would read all their records, and without statistics looks as cheap."""
_UNDO: Final = "ROLLBACK TO SAVEPOINT async_history; RELEASE SAVEPOINT async_history"


def ref_of(row: Sequence[Any]) -> RecordRef:
    """Return the reference in a row: the position, the id and the memory."""
    position, record_id, memory_id = row
    return RecordRef(int(position), record_id, memory_id)


@contextlib.asynccontextmanager
async def transaction(connection: Any, *settings: str) -> AsyncIterator[None]:
    """Commit all that the body does, or nothing.

    After a cancellation the transaction is still open: close the connection.

    Args:
        settings: the first statements of the transaction, such as `SET LOCAL`.
    """
    try:
        await connection.execute("; ".join((_BEGIN, *settings)))
        yield
        await connection.execute(_COMMIT)
    except Exception:
        with contextlib.suppress(*DriverError):
            await connection.execute("ROLLBACK")
        raise


@contextlib.asynccontextmanager
async def savepoint(connection: Any, *, checks_constraints: bool) -> AsyncIterator[None]:
    """Roll back the body's changes if it fails or is cancelled; the transaction can continue.

    Args:
        checks_constraints: also check deferred constraints, which are immediate from then on.
    """
    await connection.execute("SAVEPOINT async_history")
    try:
        yield
        check = "SET CONSTRAINTS ALL IMMEDIATE; " if checks_constraints else ""
        await connection.execute(f"{check}RELEASE SAVEPOINT async_history")
    except (Exception, asyncio.CancelledError):
        with contextlib.suppress(*DriverError):
            await connection.execute(_UNDO)
        raise


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
