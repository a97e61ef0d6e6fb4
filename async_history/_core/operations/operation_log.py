"""The log of operations.

An operation is logged before it changes anything. The transactions that remove records also count
them. An interrupted operation stays unfinished.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from async_history._core.operations.operations import (
    LogEntries,
    OperationEnd,
    StoreOperation,
    entry_of,
    instant_text,
    operation_from_row,
    readable_log,
)
from async_history.errors import HistoryError, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationStatements:
    """A database's statements for its log, each with its parameters in order.

    Instants are text.

    Attributes:
        begin: returns statements with parameters in order, which together add the operations whose
            ids are not in the log.
        add: adds to an operation's counts: records, messages, id.
        end: sets the outcome of an unfinished operation and adds to its counts: ended_at, error,
            records, messages, id.
        counts: returns an operation's records and messages: id.
        forget_actor: removes an actor's name from all operations: actor_id.
        last: returns operations, newest first, each as one JSON list of its columns in order: the
            id to start from, or NULL for the newest; the maximum number, or NULL; the kind, or
            NULL.
    """

    begin: Callable[[LogEntries], Iterable[tuple[str, Sequence[Any]]]]
    add: str
    end: str
    counts: str
    forget_actor: str
    last: str


class OperationLog(Protocol):
    """A store's log of operations. Each change is a separate transaction, in the queue of the
    writes, or part of the transaction that provides the log.
    """

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation, unless its id is in the log."""

    async def add(self, operation_id: str, records: int, messages: int) -> None:
        """Add a transaction's counts to an operation, inside that transaction."""

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Set the outcome of an unfinished operation, add to its counts, and return them.

        None if the operation is not in the log.
        """

    async def forget_actor(self, actor_id: str) -> None:
        """Remove an actor's name from all operations."""

    async def read(
        self, *, up_to: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> Sequence[StoreOperation]:
        """Return the last operations, oldest first.

        Args:
            up_to: the id of the last one to return; nothing is returned if it does not exist.
                None: the newest.
            limit: the most to return; None: all.
            kind: only this kind; None: any.
        """


async def last_operations(
    log: OperationLog, before: str | None, limit: int | None
) -> list[StoreOperation]:
    """Return the last operations, or the last before one, oldest first.

    Raises:
        InvalidInput: the log has no operation `before`.
    """
    if before is None:
        return list(await log.read(limit=limit))
    found = await log.read(up_to=before, limit=None if limit is None else limit + 1)
    if not found:
        raise InvalidInput("this store has no operation of the id that was given")
    return list(found[:-1])


class EntryLog(OperationLog, Protocol):
    """The log of operations within a transaction, which adds several at once."""

    async def enter(self, entries: LogEntries) -> None:
        """Add the operations whose ids are not in the log."""


@dataclass(slots=True)
class Tally:
    """Counts of what an operation did.

    Attributes:
        records, messages: counts that its transactions do not log; the body sets them.
        total: at the end, all records and messages; None if the store has no log.
    """

    records: int = 0
    messages: int = 0
    total: tuple[int, int] | None = None


def ended(operation: StoreOperation, tally: Tally, error: str | None) -> OperationEnd:
    """Return the outcome of an operation that ends now; `error` is a class's name, or None."""
    return OperationEnd(operation.id, datetime.now(UTC), error, tally.records, tally.messages)


class OperationEnds(Protocol):
    """The part of a log that begins and ends an operation."""

    async def begin(self, operation: StoreOperation, /) -> None: ...

    async def end(self, end: OperationEnd, /) -> tuple[int, int] | None: ...


@contextlib.asynccontextmanager
async def logged(log: OperationEnds, operation: StoreOperation) -> AsyncIterator[Tally]:
    """Log the operation in the body.

    A cancelled one stays unfinished.
    """
    await log.begin(operation)
    tally = Tally()
    try:
        yield tally
    except Exception as error:
        # If the store itself failed, the operation stays unfinished.
        with contextlib.suppress(HistoryError):
            await _end(log, operation, tally, type(error).__name__)
        raise
    await _end(log, operation, tally, None)


async def _end(
    log: OperationEnds, operation: StoreOperation, tally: Tally, error: str | None
) -> None:
    tally.total = await log.end(ended(operation, tally, error))


RunStatement = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""A function that runs one statement with its parameters, and returns its rows."""


class StatementOperationLog:
    """A log of operations in a database with SQL statements.

    Args:
        run: runs one statement with its parameters, and returns its rows.
    """

    def __init__(
        self,
        statements: OperationStatements,
        run: RunStatement,
    ) -> None:
        self._statements = statements
        self._run = run

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation."""
        await self.enter(entry_of(operation))

    async def enter(self, entries: LogEntries) -> None:
        """Add operations."""
        for sql, parameters in self._statements.begin(entries):
            await self._run(sql, *parameters)

    async def add(self, operation_id: str, records: int, messages: int) -> None:
        """Add a transaction's counts, inside that transaction."""
        await self._run(self._statements.add, records, messages, operation_id)

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Set the outcome of an operation; return its records and messages."""
        values = (
            instant_text(end.ended_at),
            end.error,
            end.records,
            end.messages,
            end.operation_id,
        )
        await self._run(self._statements.end, *values)
        for records, messages in await self._run(self._statements.counts, end.operation_id):
            return records, messages
        return None

    async def forget_actor(self, actor_id: str) -> None:
        """Remove an actor's name from all operations."""
        await self._run(self._statements.forget_actor, actor_id)

    async def read(
        self, *, up_to: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> list[StoreOperation]:
        """Return the last operations, oldest first."""
        rows = await self._run(self._statements.last, up_to, limit, kind)
        with readable_log():
            return [operation_from_row(*json.loads(row)) for (row,) in reversed(rows)]


class OperationLogInTurn:
    """The log of operations of an open store; each change is a separate transaction.

    Args:
        change: runs work on the log in a transaction, queued with the writes.
        log: the log for reading, outside a transaction.
    """

    def __init__(
        self,
        change: Callable[[Callable[[OperationLog], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        log: OperationLog,
    ) -> None:
        self._change = change
        self.read = log.read

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation."""
        await self._change(lambda log: log.begin(operation))

    async def add(self, operation_id: str, records: int, messages: int) -> None:
        """Count what was done."""
        await self._change(lambda log: log.add(operation_id, records, messages))

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Set the outcome of an operation; return its records and messages."""
        counts: tuple[int, int] | None = await self._change(lambda log: log.end(end))
        return counts

    async def forget_actor(self, actor_id: str) -> None:
        """Remove an actor's name from all operations."""
        await self._change(lambda log: log.forget_actor(actor_id))
