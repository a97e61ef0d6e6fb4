"""The ledger of a history in PostgreSQL: its tables, its leaves, and transactions over it.

A batch's leaves are written by the statement that writes the batch. The next process that needs the
tree gives them their places, under an advisory lock. A leaf that its snapshot does not see yet gets
its place later, after all others. So no writer waits. A record whose call began after another's
acknowledgement comes after it: it has a higher number, and no snapshot sees it without the other.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import computed_with_calls
from async_history._core.encryption.key_statements import Run
from async_history._core.ledger.leaves import Bundle
from async_history._core.ledger.ledger_store import GIVEN_A_LEDGER, place_all
from async_history._core.ledger.new_leaves import NewLeaves
from async_history._core.ledger.tables import LedgerTables
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields
from async_history._postgres.key_statements import PostgresKeyTable
from async_history._postgres.keys import Seal
from async_history._postgres.ledger_sql import STATEMENTS
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import ANY_PLAN, BY_INDEX, transaction
from async_history.errors import MigrationError

T = TypeVar("T")
Work = Callable[[LedgerTables], Coroutine[Any, Any, T]]
_UseConnection = Callable[
    [Callable[[Any, Sequence[str]], Coroutine[Any, Any, Any]], float | None], Awaitable[Any]
]

_SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_READ_S: Final = 600.0
"""Seconds that a read may take: it may count some hundred million records."""
_LEAF_S: Final = 0.000_02
"""Extra seconds that a reset may take for each leaf."""


class Attestation:
    """The computation of leaves, and access to the tables of the ledger.

    Args:
        schema: the quoted schema.
        seal: opens the texts of records.
        turn: see `ComputedAhead`.

    Attributes:
        new: the leaves of new records.
        lock: a statement that keeps other transactions from placing leaves until this one has
            ended. A transaction that removes records begins with it, to prevent deadlocks.
    """

    def __init__(self, schema: str, seal: Seal, turn: Lock) -> None:
        self._schema = schema
        self._seal = seal
        self.new = NewLeaves(turn, lambda: seal.salt_key)
        self.lock: Final = _lock(schema)
        self._statements = replace(STATEMENTS, lock=self.lock, scan=ANY_PLAN)

    def tables(self, fetch: Run) -> LedgerTables:
        """Return the ledger's tables in a transaction; `fetch` runs one statement in it."""

        def run(sql: str, *arguments: Any) -> Awaitable[Sequence[Sequence[Any]]]:
            return fetch(in_schema(sql, self._schema), *arguments)

        open_rows = partial(self._seal.opened_rows, table=PostgresKeyTable(fetch, self._schema))
        return LedgerTables(self._statements, run, open_rows, self._seal.salt_key)


def locks(attestation: Attestation | None) -> Sequence[str]:
    """Return the first statements of a transaction that removes records."""
    return () if attestation is None else (attestation.lock,)


async def require_no_ledger(connection: Any, schema: str) -> None:
    """Check that a history that was opened without a ledger has none now.

    A removal has to note what it removes from the ledger.

    Raises:
        MigrationError: it has been given one.
    """
    name = f"{schema}.history_ledger"
    sql = "SELECT pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid"
    if await connection.fetchval(sql, name) is not None:
        raise MigrationError(GIVEN_A_LEDGER)


async def leaves_of(
    attestation: Attestation | None,
    fields: Sequence[Fields],
    owners: Mapping[str, Owner | None],
) -> Sequence[Bundle]:
    """Return the leaves of new records and owners; none if the store has no ledger."""
    return () if attestation is None else await attestation.new.of(fields, owners)


def tables_of(attestation: Attestation | None, connection: Any) -> LedgerTables | None:
    """Return the ledger's tables in the transaction of a connection; None if there are none."""
    return None if attestation is None else attestation.tables(connection.fetch)


def _lock(schema: str) -> str:
    digest = sha256(f"async_history ledger {schema}".encode()).digest()
    number = int.from_bytes(digest[:8], signed=True)
    return f"SELECT pg_catalog.pg_advisory_xact_lock('{number}'::pg_catalog.int8)"


class ServerLedger:
    """The ledger of an open history, for the manager.

    Its work runs on a thread, because hashing thousands of leaves takes long. The thread sends each
    statement to the event loop.

    Args:
        use: runs repeatable work on a connection, with a limit in seconds; None: as for a write.
    """

    def __init__(self, attestation: Attestation, use: _UseConnection) -> None:
        self.attestation: Final = attestation
        self._use = use

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction, at the same time as the writes of this store."""

        async def write(connection: Any, settings: Sequence[str]) -> T:
            async with transaction(connection, *settings, BY_INDEX):
                return await self._done(work, connection)

        written: T = await self._use(write, None)
        return written

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads, in one snapshot of the server for writes."""

        async def read(connection: Any, settings: Sequence[str]) -> T:
            async with transaction(connection, _SNAPSHOT, *settings, BY_INDEX):
                return await self._done(work, connection)

        done: T = await self._use(read, _READ_S)
        return done

    async def _done(self, work: Work[T], connection: Any) -> T:
        return await computed_with_calls(
            connection.fetch, lambda fetch: work(self.attestation.tables(fetch))
        )

    async def before_reset(self) -> float:
        """Place and check all leaves; return the extra seconds that a reset may need for them.

        The reset itself rewrites them on the server, where it only counts them.

        Raises:
            StorageCorrupt: leaves are missing, or do not have the form of leaves.
        """
        await place_all(self)
        return await self.read(LedgerTables.checked_size) * _LEAF_S
