"""Writing one batch in one SQLite transaction, in one call on the connection's thread.

A batch of new records is a single statement, which checks, writes, indexes and commits with the GIL
released. (A single record has its own statement; see `lone_record`.) With one statement for each
row, the thread would have to get the GIL back from a busy event loop for each row. All other
batches are rarer and take several statements.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final

from async_history._core.ledger.leaves import Bundle, record_bundle
from async_history._core.records.records import Fields
from async_history._core.writing.additions import (
    fields_have_details,
    fields_of,
    have_details,
    lone_addition,
    only_new_records,
)
from async_history._core.writing.submissions import AddRecords, Submission
from async_history._sqlite.connecting.connection import ThreadConnection, transaction
from async_history._sqlite.connecting.errors import is_schema_mismatch
from async_history._sqlite.connecting.lock_waits import LockWaits
from async_history._sqlite.index import (
    IndexOutdated,
)
from async_history._sqlite.keys import Seal
from async_history._sqlite.ledger import has_ledger
from async_history._sqlite.reading.recent import RecentCommits
from async_history._sqlite.writing.add import (
    STATEMENT_ROWS,
    Statement,
    add_statement,
    most_with_details,
)
from async_history._sqlite.writing.batch_steps import (
    Found,
    commit_batch_in_steps,
    execute_add,
    parts,
)
from async_history._sqlite.writing.known_owners import KnownOwners
from async_history._sqlite.writing.lone_record import LoneRecords
from async_history.errors import HistoryError


class BatchCommitter:
    """The write of batches through one connection that has run `WRITE_PROGRAM`.

    Args:
        recent: keeps each batch that only adds new records.
        owners: the cache of owners from the store's earlier batches.
        seal: seals and opens texts.
        waited: called with the seconds that a batch waited for the file's lock.
        measures_waits: see `LockWaits`.
    """

    def __init__(
        self,
        connection: ThreadConnection,
        recent: RecentCommits,
        owners: KnownOwners,
        seal: Seal,
        waited: Callable[[float], None],
        *,
        measures_waits: bool,
    ) -> None:
        self.connection: Final = connection
        self._waits = LockWaits(connection, measures=measures_waits)
        self._waited = waited
        self._recent = recent
        self._owners = owners
        self._seal = seal
        self._lone = LoneRecords()
        self._attests: bool | None = None

    async def commit(
        self, batch: Sequence[Submission], *, is_repeated: bool
    ) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        Args:
            is_repeated: whether an earlier try of the batch may have been committed.

        Raises:
            IndexOutdated: another process replaced tables. Nothing was written.
            sqlite3.Error: the transaction failed and was rolled back, or its outcome is unknown.
        """
        found = Found()
        before_s = self._waits.total_s
        try:
            refused = await self.connection.run(partial(self._commit, batch, found, is_repeated))
        finally:
            if self._waits.total_s > before_s:
                self._waited(self._waits.total_s - before_s)
        if found.added is not None:
            self._recent.keep(found.added)
            return {}
        records = (
            record
            for index, submission in enumerate(batch)
            if isinstance(submission, AddRecords) and index not in refused
            for record in submission.records
            if record.memory_id not in found.erased
        )
        if found.was_looked_for:
            self._owners.note(found.noted, has_erased_memory=found.has_erased_memory)
            self._owners.learn(records, found.owners, found.last_number)
        return refused

    def _commit(
        self,
        batch: Sequence[Submission],
        found: "Found",
        is_repeated: bool,
        connection: sqlite3.Connection,
    ) -> Mapping[int, HistoryError]:
        """Commit a batch. To be called within `run`.

        The parameters are built here, not on the event loop. The loop waits for this batch anyway
        before it wakes the callers of the previous one.
        """
        if self._attests is None:
            self._attests = has_ledger(connection)
        lone = lone_addition(batch)
        if lone is not None and self._add_lone(lone, connection):
            found.added = (lone,)
            return {}
        additions = only_new_records(batch)
        if additions is not None and self._add(additions, connection):
            found.added = additions
            return {}
        commit = partial(
            commit_batch_in_steps,
            batch,
            found,
            connection,
            self._seal,
            attests=self._attests,
            is_repeated=is_repeated,
        )
        return self._waits.run(commit, connection)

    def _add_lone(self, lone: AddRecords, connection: sqlite3.Connection) -> bool:
        """Add a single record by its own statement; return whether that was possible."""
        (record,) = fields_of((lone,))
        if self._attests or self._owners.is_needed or fields_have_details((record,)):
            return False
        noted = self._owners.noted((lone,))
        sealed = self._seal.records((record,), _NO_OWNERS[:1], noted.last, connection)
        add = partial(self._lone.add, connection, record, noted, sealed)
        return self._is_added(add, connection)

    def _add(
        self,
        additions: Sequence[AddRecords],
        connection: sqlite3.Connection,
    ) -> bool:
        """Add new records in one statement, or in several; return whether that was possible."""
        if not self._owners.is_needed and not have_details(additions):
            return self._add_plain(additions, connection)
        records = list(fields_of(additions))
        expected = self._owners.expected(records, additions)
        if expected is None:
            return False
        sealed = self._seal.records(records, expected.owners, expected.noted, connection)
        statements = [
            add_statement(part, expected.part(start, part), sealed, leaves=self._leaves(part))
            for start, part in parts(records, most_with_details(connection))
        ]
        if not self._is_added(partial(_execute_all, statements, connection), connection):
            return False
        self._owners.written(additions, expected)
        return True

    def _add_plain(self, additions: Sequence[AddRecords], connection: sqlite3.Connection) -> bool:
        """Add new records with mem0's columns only, if no memory has an owner."""
        noted = self._owners.noted(additions)
        statements: list[Statement] = []
        records = fields_of(additions)
        while part := list(islice(records, STATEMENT_ROWS[-1])):  # not all as fields at once
            sealed = self._seal.records(part, _NO_OWNERS[: len(part)], noted.last, connection)
            leaves = self._leaves(part)
            statements.append(add_statement(part, None, sealed, noted=noted, leaves=leaves))
        return self._is_added(partial(_execute_all, statements, connection), connection)

    def _is_added(self, add: Callable[[], bool], connection: sqlite3.Connection) -> bool:
        """Call a function that adds records; return False if it wrote nothing."""
        try:
            return self._waits.run(add, connection)
        except (sqlite3.IntegrityError, IndexOutdated):
            return False  # rolled back: an id exists, or another process has written
        except sqlite3.OperationalError as error:
            # The file owner's expression failed or a table is gone.
            if not is_schema_mismatch(error):
                raise
            return False

    def _leaves(self, records: Sequence[Fields]) -> Bundle | None:
        """Return the leaves of a statement's records, if there is a ledger."""
        if not self._attests:
            return None
        return record_bundle([record[0] for record in records], records, self._seal.salt_key)


_NO_OWNERS: Final = (None,) * STATEMENT_ROWS[-1]


def _execute_all(statements: Sequence[Statement], connection: sqlite3.Connection) -> bool:
    """Run statements in one transaction, the caller's if it has one."""
    is_within = len(statements) == 1 or connection.in_transaction
    with contextlib.nullcontext() if is_within else transaction(connection):
        for statement in statements:
            execute_add(statement, connection)
    return True
