"""The commit of a batch in steps on SQLite, if `commit` has no single statement for it."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.restored_texts import RestoredTexts
from async_history._core.ledger.leaves import owner_bundle, record_bundle
from async_history._core.operations.operations import LogEntries
from async_history._core.records.messages import MESSAGES_KEPT
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields, HistoryRecord, MemoryState, fields_in_order
from async_history._core.writing.additions import has_details, ids_to_find
from async_history._core.writing.batch import commit_in_steps
from async_history._core.writing.erased_names import MEMORY, Name, names_in
from async_history._core.writing.message_buffers import Buffer, message_rows
from async_history._core.writing.submissions import (
    AddRecords,
    RestoreMemory,
    SaveMessages,
    Submission,
)
from async_history._sqlite.connecting.connection import fetch_rows, transaction
from async_history._sqlite.connecting.errors import is_schema_mismatch
from async_history._sqlite.index import (
    HAS_ERASED_MEMORY,
    LAST_NOTED,
    LAST_OWNER,
    NEARLY_COMPLETE,
    THROUGH_INDEX,
    IndexOutdated,
    StoredOwner,
    add_owners,
    erased_names,
    index_foreign_rows,
    keys_by_memory,
    owners_of,
)
from async_history._sqlite.keys import Seal
from async_history._sqlite.ledger import APPEND
from async_history._sqlite.operations import file_log
from async_history._sqlite.reading.timeline import StatesAndThen, one_each
from async_history._sqlite.rows import COLUMNS_OF_HISTORY, PackedSelect, record_from_row
from async_history._sqlite.writing.add import (
    HAS_OTHER_TRIGGERS,
    ExpectedOwners,
    Statement,
    add_statement,
    most_with_details,
)
from async_history.errors import HistoryError, KeyMissing, StorageCorrupt, StorageRefused

R = TypeVar("R", HistoryRecord, Fields)

_LEFT_OUT: Final = """
SELECT count(*), min(value) FROM json_each(?)
WHERE NOT EXISTS (SELECT 1 FROM main.history WHERE id = value)
"""
_COLUMNS: Final = (
    f"{COLUMNS_OF_HISTORY}, {THROUGH_INDEX.details.besides('history', 'NULL')} AS besides"
)
_EXISTING: Final = f"SELECT {_COLUMNS} FROM history WHERE id IN (SELECT value FROM json_each(?))"
_LATEST: Final = PackedSelect(one_each(_COLUMNS, "DESC", "LIMIT 1", through_strays=False))
"""The latest records of memories."""
_STATES_AND_THEN: Final = StatesAndThen()
_BUFFERS: Final = """
SELECT session_scope, count(*), min(rowid), max(rowid),
       json_group_array(id) FILTER (WHERE id IN (SELECT value FROM json_each(:ids)))
FROM messages WHERE session_scope IN (SELECT value FROM json_each(:scopes)) GROUP BY session_scope
"""
_SAVE_MESSAGES: Final = """
INSERT INTO messages (id, session_scope, role, content, name, created_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
FROM json_each(?) ORDER BY key
"""
_STORE: Final = f"""
SELECT {NEARLY_COMPLETE}, {HAS_OTHER_TRIGGERS}, {LAST_OWNER}, {LAST_NOTED}, {HAS_ERASED_MEMORY}
"""
_EVICT: Final = f"""
DELETE FROM messages WHERE rowid IN (
    SELECT message FROM (
        SELECT rowid AS message,
               row_number() OVER (PARTITION BY session_scope ORDER BY rowid DESC) AS age
        FROM messages WHERE session_scope IN (SELECT value FROM json_each(?))
    ) WHERE age > {MESSAGES_KEPT}
)
"""


def execute_add(statement: Statement, connection: sqlite3.Connection) -> None:
    """Run a statement of `add_statement`.

    Raises:
        IndexOutdated: too many rows are not indexed. Nothing was written.
    """
    before = connection.total_changes
    # `execute` would take the GIL once more to read the last rowid; `executemany` does not.
    connection.executemany(statement.sql, [statement.parameters])
    if connection.total_changes == before:
        raise IndexOutdated


class _Refused(Exception):
    """A constraint or trigger of the file's owner refused a write."""

    def __init__(self, reason: sqlite3.Error) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of statements on existing tables into `_Refused`: a rule of the file's owner."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise _Refused(error) from error
    except sqlite3.OperationalError as error:
        if not is_schema_mismatch(error):
            raise
        raise _Refused(error) from error


class _RolledBack(Exception):
    """A trigger of the file's owner rolled back the whole transaction."""


class Found:
    """What a transaction found, if it looked: the owners of its memories, and the last number.

    Also its erased memories, the last number of an erased name, and whether any memory was erased
    with its owner. `added` is set instead if the batch only added new records.
    """

    def __init__(self) -> None:
        self.added: Sequence[AddRecords] | None = None
        self.was_looked_for = False
        self.owners: dict[str, StoredOwner] = {}
        self.last_number = 0
        self.erased: set[str] = set()
        self.noted = 0
        self.has_erased_memory = False


def commit_batch_in_steps(
    batch: Sequence[Submission],
    found: Found,
    connection: sqlite3.Connection,
    seal: Seal,
    *,
    attests: bool,
    is_repeated: bool,
) -> Mapping[int, HistoryError]:
    """Commit a batch in one transaction; return the refused submissions by index.

    If a trigger of the file's owner rolls the transaction back, or a submission's keys or texts
    can't be used, each submission is committed in its own transaction.

    Args:
        found: gets what the transaction found.
        attests: whether the file has a ledger.
        is_repeated: whether an earlier try of the batch may have been committed.
    """
    try:
        with transaction(connection):
            steps = _CommitSteps(connection, found, seal, attests=attests, is_repeated=is_repeated)
            return run_to_completion(commit_in_steps(batch, steps))
    except (_RolledBack, KeyMissing, StorageCorrupt) as error:
        seal.undone()
        found.owners.clear()
        if len(batch) == 1:
            return {0: _refused(error.__cause__) if isinstance(error, _RolledBack) else error}
    except BaseException:
        seal.undone()
        raise
    # One submission rolls back all others, so commit each in its own transaction.
    refused: dict[int, HistoryError] = {}
    for index, submission in enumerate(batch):
        alone = commit_batch_in_steps(
            [submission], found, connection, seal, attests=attests, is_repeated=is_repeated
        )
        if 0 in alone:
            refused[index] = alone[0]
    return refused


class _CommitSteps:
    """The statements of `commit_in_steps` for SQLite."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        found: Found,
        seal: Seal,
        *,
        attests: bool,
        is_repeated: bool,
    ) -> None:
        self._connection = connection
        self._found = found
        self._seal = seal
        self._attests = attests
        self._is_repeated = is_repeated
        self._has_triggers = False
        self._is_ready = False

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records that have an id of these submissions."""
        ids = ids_to_find(submissions, is_repeated=self._is_repeated)
        if not ids:
            return ()
        rows = fetch_rows(self._connection, _EXISTING, (json.dumps(ids),))
        return self._opened([record_from_row(row) for row in rows])

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""
        self._require_ready()
        given = {"memories": keys_by_memory(memory_ids)}
        rows = await _LATEST.rows(self._fetch, given, len(memory_ids))
        return self._opened([record_from_row(row) for row in rows])

    async def find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        """Find the texts to restore, and return the states of these memories that are known."""
        self._require_ready()
        found = RestoredTexts()
        asked = [(one.decided_by, one.to) for one in restored]
        found.add(restored, await _STATES_AND_THEN.read(self._fetch, asked))
        found.add_opened(self._opened(found.sealed))
        return found.states

    def _opened(self, records: Sequence[HistoryRecord]) -> Sequence[HistoryRecord]:
        return self._seal.opened(records, self._connection)

    async def _fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return fetch_rows(self._connection, sql, parameters)

    async def owners(self, records: Sequence[HistoryRecord]) -> dict[str, Owner]:
        """Return the owners of these records' memories, where they have one."""
        self._prepare()
        if not self._found.last_number:
            return {}
        memory_ids = list(dict.fromkeys(record.memory_id for record in records))
        found = owners_of(self._connection, memory_ids)
        self._found.owners |= found
        return {memory_id: stored.owner for memory_id, stored in found.items()}

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        """Return the erased names of a batch, each with the instant of its erasure."""
        if self._is_ready and not self._found.noted:
            return {}  # no name was erased
        found = erased_names(self._connection, names_in(batch))
        self._found.erased.update(value for kind, value in found if kind == MEMORY)
        return found

    async def buffers(self, submissions: Sequence[SaveMessages]) -> dict[str, Buffer]:
        """Return the stored message buffers of these submissions' scopes."""
        asked = {
            "scopes": json.dumps([submission.session_scope for submission in submissions]),
            "ids": json.dumps([submission.ids[-1] for submission in submissions]),
        }
        return {
            scope: Buffer(count, oldest, newest, frozenset(json.loads(there)))
            for scope, count, oldest, newest, there in fetch_rows(self._connection, _BUFFERS, asked)
        }

    @contextlib.asynccontextmanager
    async def undone_if_refused(self) -> AsyncIterator[None]:
        """Provide a savepoint, rolled back if a constraint or trigger refuses a write in it."""
        self._connection.execute("SAVEPOINT submissions")
        found = self._found
        owners, last_number = found.owners.copy(), found.last_number
        refusal: sqlite3.Error | None = None
        try:
            yield
        except _Refused as error:
            refusal = error.reason
            if not self._connection.in_transaction:
                raise _RolledBack from refusal
            self._connection.execute("ROLLBACK TO submissions")
            self._seal.undone()
            found.owners, found.last_number = owners, last_number
        self._connection.execute("RELEASE submissions")
        if refusal is not None:
            raise _refused(refusal) from refusal

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[SaveMessages],
        owners: Mapping[str, Owner],
    ) -> None:
        """Write records and messages, in order, and give owners to memories that have none."""
        if owners:
            self._require_ready()
            with _refusals():
                self._found.owners |= add_owners(self._connection, owners)
            self._found.last_number += len(owners)
            if self._attests:
                self._connection.execute(APPEND, owner_bundle(owners))
        for _, part in parts(records, most_with_details(self._connection)):
            self._add(part)
        if messages:
            with _refusals():
                self._save_messages(messages)

    async def enter(self, entries: LogEntries) -> None:
        """Add operations to the log."""
        with _refusals():
            await file_log(self._connection).enter(entries)

    def _add(self, records: Sequence[HistoryRecord]) -> None:
        self._require_ready()
        found = self._found
        owners: list[StoredOwner | None] = [None] * len(records)
        if found.owners:
            owners = [found.owners.get(record.memory_id) for record in records]
        expected = None
        if found.last_number or found.noted or any(map(has_details, records)):
            expected = ExpectedOwners(owners, set(), set(), found.noted)
        given = list(map(fields_in_order, records))
        sealed = self._seal.records(given, owners, found.noted, self._connection)
        leaves = None
        if self._attests:
            leaves = record_bundle([one.id for one in records], given, self._seal.salt_key)
        statement = add_statement(
            given, expected, sealed, has_triggers=self._has_triggers, leaves=leaves
        )
        with _refusals():
            if not self._has_triggers:
                execute_add(statement, self._connection)
                return
            self._connection.executemany(statement.sql, [statement.parameters])
            ids = json.dumps([record.id for record in records])
            ((left_out, example),) = fetch_rows(self._connection, _LEFT_OUT, (ids,))
            if left_out:
                raise sqlite3.IntegrityError(
                    f"a trigger left out {left_out} of its records, such as {example}"
                )

    def _prepare(self) -> None:
        """Index what other programs wrote, and look up the store's state, once in a transaction."""
        if self._is_ready:
            return
        self._look()
        if not self._is_ready:
            index_foreign_rows(self._connection)
            self._look()

    def _require_ready(self) -> None:
        """Prepare the transaction.

        Raises:
            IndexOutdated: nearly all rows must be indexed, and are not.
        """
        self._prepare()
        if not self._is_ready:
            raise IndexOutdated

    def _noted(self) -> int:
        self._prepare()
        return self._found.noted

    def _look(self) -> None:
        found = fetch_rows(self._connection, _STORE)
        self._found.was_looked_for = True
        ((self._is_ready, self._has_triggers, last_number, noted, has_erased_memory),) = found
        self._found.last_number, self._found.noted = last_number, noted
        self._found.has_erased_memory = bool(has_erased_memory)

    def _save_messages(self, submissions: Sequence[SaveMessages]) -> None:
        rows = self._seal.messages(message_rows(submissions), self._noted, self._connection)
        saved = self._connection.execute(_SAVE_MESSAGES, (json.dumps(rows, ensure_ascii=False),))
        if saved.rowcount < len(rows):
            raise sqlite3.IntegrityError(
                f"a trigger left out {len(rows) - saved.rowcount} of {len(rows)} messages"
            )
        scopes = json.dumps([submission.session_scope for submission in submissions])
        self._connection.execute(_EVICT, (scopes,))


def parts(records: Sequence[R], most: int) -> Sequence[tuple[int, Sequence[R]]]:
    """Split records into parts of at most `most`, each with its start."""
    return [(start, records[start : start + most]) for start in range(0, len(records), most)]


def _refused(reason: BaseException | None) -> StorageRefused:
    return StorageRefused(f"a constraint or trigger of the file refused this: {reason}")
