"""The ledger of a history through SQLAlchemy: its leaves, and transactions over its tables.

A batch's leaves are written in its transaction, which locks the row of `state`. So their numbers
are in the order of commits. Placing leaves locks that row too, so writers wait for it.
"""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.concurrency.threads import computed_with_calls
from async_history._core.ledger.ledger_store import GIVEN_A_LEDGER
from async_history._core.ledger.new_leaves import NewLeaves
from async_history._core.ledger.tables import LedgerTables
from async_history._sql.dialects import begin_snapshot
from async_history._sql.key_statements import table_read
from async_history._sql.keys import Seal
from async_history._sql.ledger_sql import Fetch, statements_in
from async_history._sql.schema import has_ledger
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction, fetch_on
from async_history.errors import MigrationError

T = TypeVar("T")
Work = Callable[[LedgerTables], Coroutine[Any, Any, T]]

LEAF_S: Final = 0.000_05
"""Extra seconds that a reset may take for each leaf."""


class Attestation:
    """The computation of leaves, and access to the tables of the ledger.

    Args:
        seal: opens the texts of records.

    Attributes:
        new: the leaves of new records.
    """

    def __init__(self, tables: Tables, seal: Seal) -> None:
        self._tables = tables
        self._seal = seal
        self.new = NewLeaves(Lock(), lambda: seal.salt_key)
        self._statements = statements_in(tables)

    def tables(self, fetch: Fetch) -> LedgerTables:
        """Return the ledger's tables in a transaction; `fetch` executes one statement in it."""

        async def run(statement: Callable[..., Awaitable[Any]], *parameters: Any) -> Any:
            return await statement(fetch, *parameters)

        open_rows = partial(self._seal.opened_rows, table=table_read(self._tables, fetch))
        return LedgerTables(self._statements, run, open_rows, self._seal.salt_key)


async def require_no_ledger(connection: AsyncConnection, tables: Tables) -> None:
    """Check that a history that was opened without a ledger has none now.

    A removal has to note what it removes from the ledger.

    Raises:
        MigrationError: it has been given one.
    """
    if await has_ledger(connection, tables):
        raise MigrationError(GIVEN_A_LEDGER)


def tables_of(attestation: Attestation | None, transaction: Transaction) -> LedgerTables | None:
    """Return the ledger's tables in a transaction; None if there are none."""
    return None if attestation is None else attestation.tables(transaction.fetch)


class SqlLedger:
    """The ledger of an open history, for the manager.

    Its work runs on a thread, because hashing thousands of leaves takes long. The thread sends each
    statement to the event loop.

    Args:
        write: does work in one transaction, with `state` locked.
        read: does work that only reads, on a connection.
    """

    def __init__(
        self,
        attestation: Attestation,
        write: Callable[[Callable[[Transaction], Awaitable[Any]]], Awaitable[Any]],
        read: Callable[[Callable[[AsyncConnection], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        self._attestation = attestation
        self._write = write
        self._read = read

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction, with the writers' lock."""
        done: T = await self._write(lambda transaction: self._done(work, transaction.fetch))
        return done

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads, in one snapshot if the database has snapshots."""

        async def read(connection: AsyncConnection) -> T:
            await begin_snapshot(connection)
            return await self._done(work, partial(fetch_on, connection))

        done: T = await self._read(read)
        return done

    async def _done(self, work: Work[T], fetch: Fetch) -> T:
        return await computed_with_calls(fetch, lambda fetch: work(self._attestation.tables(fetch)))
