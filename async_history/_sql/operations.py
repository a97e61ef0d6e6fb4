"""The log of operations."""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import and_, func, insert, literal_column, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.ledger.operation_log import LedgeredOperationLog
from async_history._core.ledger.tables import LedgerTables
from async_history._core.operations.operations import (
    LogEntries,
    LogEntry,
    OperationEnd,
    StoreOperation,
    checked_operation,
    entry_of,
    readable_log,
)
from async_history._core.writing.erased_names import from_microseconds, microseconds
from async_history._sql.dialects import in_parts
from async_history._sql.tables import Tables

Run = Callable[[Callable[[AsyncConnection], Awaitable[Any]]], Awaitable[Any]]
_ROLES: Final[dict[str, Any]] = {"sqlite": null(), "oracle": literal_column("USER")}
"""The expression for the current role, where a database differs from standard SQL."""


class SqlOperationLog:
    """The log of operations.

    Args:
        run: does work on a connection: in a transaction of its own, or inside one.
    """

    def __init__(self, tables: Tables, run: Run) -> None:
        self._table = tables.operations
        self._run = run

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation, unless it is in the log."""
        await self.enter(entry_of(operation))

    async def enter(self, entries: LogEntries) -> None:
        """Add the operations that are not in the log yet."""
        table = self._table

        async def begin(connection: AsyncConnection) -> None:
            there: set[str] = set()
            for ids in in_parts(entries.ids):
                there |= set(
                    await connection.scalars(select(table.c.id).where(table.c.id.in_(ids)))
                )
            missing = [_row(entries, one) for one in entries.each if one[0] not in there]
            if missing:
                role = _ROLES.get(connection.dialect.name, func.current_user())
                await connection.execute(insert(table).values(database_role=role), missing)

        await self._run(begin)

    async def add(self, operation_id: str, records: int, messages: int) -> None:
        """Add to an operation's counts."""
        table = self._table

        async def add(connection: AsyncConnection) -> None:
            await connection.execute(
                update(table)
                .where(table.c.id == operation_id)
                .values(records=table.c.records + records, messages=table.c.messages + messages)
            )

        await self._run(add)

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Record how an operation ended; return its numbers of records and messages."""
        table = self._table

        async def note(connection: AsyncConnection) -> Any:
            await connection.execute(
                update(table)
                .where(table.c.id == end.operation_id, table.c.ended_at.is_(None))
                .values(
                    ended_at=microseconds(end.ended_at),
                    error=end.error,
                    records=table.c.records + end.records,
                    messages=table.c.messages + end.messages,
                )
            )
            counts = select(table.c.records, table.c.messages)
            return (await connection.execute(counts.where(table.c.id == end.operation_id))).first()

        row = await self._run(note)
        return None if row is None else (int(row[0]), int(row[1]))

    async def forget_actor(self, actor_id: str) -> None:
        """Remove an actor's name from all operations."""
        table = self._table

        async def forget(connection: AsyncConnection) -> None:
            # Compared here, because the database's comparison may ignore case.
            rows = await connection.execute(
                select(table.c.id, table.c.actor_id).where(table.c.actor_id.is_not(None))
            )
            for operation_id, name in rows.all():
                if name == actor_id:
                    await connection.execute(
                        update(table).where(table.c.id == operation_id).values(actor_id=None)
                    )

        await self._run(forget)

    async def read(
        self, *, up_to: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> list[StoreOperation]:
        """Return the last operations, oldest first."""
        operations: list[StoreOperation] = await self._run(partial(self._read, up_to, limit, kind))
        return operations

    async def _read(
        self,
        up_to: str | None,
        limit: int | None,
        kind: str | None,
        connection: AsyncConnection,
    ) -> list[StoreOperation]:
        table = self._table
        last = select(table).order_by(table.c.begun_at.desc(), table.c.id.desc()).limit(limit)
        if kind is not None:
            last = last.where(table.c.kind == kind)
        if up_to is not None:
            begun = select(table.c.begun_at).where(table.c.id == up_to)
            begun_at = (await connection.execute(begun)).scalar()
            if begun_at is None:
                return []
            is_before = table.c.begun_at < begun_at
            last = last.where(is_before | and_(table.c.begun_at == begun_at, table.c.id <= up_to))
        rows = (await connection.execute(last)).all()
        with readable_log():
            return list(map(_operation, reversed(rows)))


def _operation(row: Any) -> StoreOperation:
    return checked_operation(
        StoreOperation(
            id=row.id,
            kind=row.kind,
            begun_at=from_microseconds(row.begun_at),
            ended_at=None if row.ended_at is None else from_microseconds(row.ended_at),
            error=row.error,
            actor_id=row.actor_id,
            process_id=row.process_id,
            host=row.host,
            database_role=row.database_role,
            arguments=json.loads(row.arguments),
            records=row.records,
            messages=row.messages,
        )
    )


def _row(entries: LogEntries, entry: LogEntry) -> dict[str, Any]:
    """Return an operation's columns; the database adds its role."""
    operation_id, begun_at, actor_id, arguments = entry
    ended_at = entries.ended_at
    return {
        "id": operation_id,
        "kind": entries.kind,
        "begun_at": microseconds(datetime.fromisoformat(begun_at)),
        "ended_at": None if ended_at is None else microseconds(datetime.fromisoformat(ended_at)),
        "error": entries.error,
        "actor_id": actor_id,
        "process_id": entries.process_id,
        "host": entries.host,
        "arguments": arguments,
        "records": entries.records,
        "messages": entries.messages,
    }


def log_within(
    connection: AsyncConnection, tables: Tables, ledger: LedgerTables | None
) -> LedgeredOperationLog:
    """Return the log of operations inside the transaction of a connection.

    Args:
        ledger: the ledger's tables in this transaction, if the store has one.
    """

    async def here(work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        return await work(connection)

    return LedgeredOperationLog(SqlOperationLog(tables, here), lambda: ledger)
