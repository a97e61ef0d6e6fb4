"""Commits one batch in one SQLite transaction, in one call on the connection's thread.

A batch of new records is a single statement, which checks, writes, indexes and commits with the GIL
released. With a statement for each row, the thread would have to get the GIL back for each row from
a busy event loop. All other batches are rarer and take several statements.
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from async_history._core.batch import (
    Buffer,
    commit_in_steps,
    ids_of,
    message_rows,
    only_new_records,
    records_of,
)
from async_history._core.recent import RecentCommits
from async_history._core.records import COLUMN_LIST, COLUMNS, HistoryRecord
from async_history._core.submissions import MESSAGES_KEPT, AddRecords, SaveMessages, Submission
from async_history._core.wakeups import WAKEUP_BATCH_MIN
from async_history._sqlite.connection import (
    ThreadConnection,
    fetch_rows,
    run_to_completion,
    transaction,
)
from async_history._sqlite.errors import is_schema_mismatch
from async_history._sqlite.index import (
    ADD_ENTRY,
    INDEX_TAIL,
    KEEP_INDEX,
    NEARLY_COMPLETE,
    NEARLY_COMPLETE_ALONE,
    TAIL_IS_LONG,
    IndexOutdated,
    index_foreign_rows,
    memory_key,
    ordered_positions,
)
from async_history._sqlite.rows import (
    NOT_YET,
    NULL,
    ROW_WIDTH,
    packed_sql,
    parameters,
    record_from_row,
    unpack_rows,
)
from async_history.errors import HistoryError, StorageRefused

_INSERT_RECORD: Final = f"""
    INSERT OR ABORT INTO history ({COLUMN_LIST})
    VALUES ({", ".join(f"new.{name}" for name in COLUMNS)});
"""
WRITE_PROGRAM: Final = f"""
DROP VIEW IF EXISTS temp.async_history_new;
CREATE TEMP VIEW async_history_new AS SELECT {COLUMN_LIST}, 0 AS memory FROM main.history;
CREATE TEMP TRIGGER async_history_write INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NOT NULL AND new.memory <> {NOT_YET}
BEGIN {_INSERT_RECORD}{ADD_ENTRY}
END;
CREATE TEMP TRIGGER async_history_write_few INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NOT NULL AND new.memory = {NOT_YET}
BEGIN {_INSERT_RECORD}
END;
CREATE TEMP TRIGGER async_history_written INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NULL AND (new.memory > 0 OR {TAIL_IS_LONG})
BEGIN {INDEX_TAIL.format(but="new.memory")}
END;
{KEEP_INDEX}
"""
"""Creates the view and triggers that write records. To be run on each writing connection, and again
after it recreates our tables. They are temporary: the file does not store them.

An insert into the view writes a record, with its index entry or to be indexed later. A row without
an id ends a statement: its `memory` is the number of its records that have an index entry.
"""

_STATEMENT_ROWS: Final = (1, 8, 32, 128, 512)
"""Records per statement. There are few sizes, so that each stays prepared; padding fills the
rest."""
_FEW: Final = 8
"""Up to this many records in a statement are indexed later, together with those that follow."""
_PADDING: Final = (NULL,) * ROW_WIDTH


def _rows_sql(width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"VALUES {', '.join([row] * rows)}"


_HAS_OWNERS_TRIGGERS: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'
        AND name NOT GLOB 'async_history_*'
)"""
"""SQL condition: the owner has triggers on `history`, which may skip, change or add rows."""


def _add_sql(rows: int, condition: str) -> str:
    sql = f"""
        INSERT INTO async_history_new SELECT * FROM ({_rows_sql(ROW_WIDTH, rows + 1)})
        WHERE column{ROW_WIDTH} IS NOT NULL AND {condition}
    """
    return f"{sql} AND async_history_begun()" if rows >= WAKEUP_BATCH_MIN else sql


_ADD_RECORDS: Final = {rows: _add_sql(rows, NEARLY_COMPLETE_ALONE) for rows in _STATEMENT_ROWS}
"""SQLite calls `async_history_begun`, which is deterministic and has no arguments, once per
statement. Small batches do without it: calling it means waiting for the GIL."""
_ADD_WITH_TRIGGERS: Final = {rows: _add_sql(rows, "true") for rows in _STATEMENT_ROWS}
"""For a table with triggers of the owner; the transaction then checks which records were stored."""
_LEFT_OUT: Final = """
SELECT count(*), min(value) FROM json_each(?)
WHERE NOT EXISTS (SELECT 1 FROM main.history WHERE id = value)
"""
_EXISTING: Final = f"SELECT {COLUMN_LIST} FROM history WHERE id IN (SELECT value FROM json_each(?))"
_PLACES: Final = ordered_positions("DESC", key="given.memory", memory_id="given.memory_id")
_LATEST: Final = f"""
SELECT {COLUMN_LIST}, NULL AS time_before FROM history WHERE rowid IN (
    SELECT (
        SELECT place.position FROM {_PLACES} AS place
        CROSS JOIN history AS found ON found.rowid = place.position
        WHERE found.memory_id = given.memory_id LIMIT 1
    )
    FROM (
        SELECT json_extract(value, '$[0]') AS memory, json_extract(value, '$[1]') AS memory_id
        FROM json_each(:memories)
    ) AS given
)
"""
"""The latest records of memories, given as JSON with their keys. Nearly all rows must be
indexed."""
_LATEST_PACKED: Final = packed_sql(_LATEST)
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
_EVICT: Final = f"""
DELETE FROM messages WHERE rowid IN (
    SELECT message FROM (
        SELECT rowid AS message,
               row_number() OVER (PARTITION BY session_scope ORDER BY rowid DESC) AS age
        FROM messages WHERE session_scope IN (SELECT value FROM json_each(?))
    ) WHERE age > {MESSAGES_KEPT}
)
"""


class BatchCommitter:
    """Writes batches through one connection that has run `WRITE_PROGRAM`.

    Args:
        recent: keeps each batch that holds only new records.
    """

    def __init__(self, connection: ThreadConnection, recent: RecentCommits) -> None:
        self._connection = connection
        self._recent = recent

    async def commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        Raises:
            IndexOutdated: another process replaced tables. Nothing was written.
            sqlite3.Error: the transaction failed and was rolled back, or its outcome is unknown.
        """
        additions = only_new_records(batch)
        if additions is not None:
            records = records_of(additions)
            try:
                await self._connection.run(_addition(records))
            except (sqlite3.IntegrityError, IndexOutdated):
                pass  # an id exists, or another process wrote: it was rolled back; commit in steps
            except sqlite3.OperationalError as error:
                # An owner's expression failed or a table is gone: commit in steps, too.
                if not is_schema_mismatch(error):
                    raise
            else:
                self._recent.keep(additions, records)
                return {}
        return await self._connection.run(partial(_commit_in_steps, batch))


def _addition(records: Sequence[HistoryRecord]) -> Callable[[sqlite3.Connection], None]:
    """Return the function that writes new records, in one statement or in several.

    A single statement's parameters are built here: the connection's thread would have to wait for
    the GIL.
    """
    if len(records) > _STATEMENT_ROWS[-1]:
        return partial(_add_many, records)
    return partial(_execute_add, *_statement(records))


def _add_many(records: Sequence[HistoryRecord], connection: sqlite3.Connection) -> None:
    with transaction(connection):
        for part in _parts(records):
            _execute_add(*_statement(part), connection)


def _statement(records: Sequence[HistoryRecord]) -> tuple[str, list[Any]]:
    """Return the statement that adds at most `_STATEMENT_ROWS` records, and its parameters."""
    rows, values = _parameters(records, are_indexed=len(records) > _FEW)
    return _ADD_RECORDS[rows], values


def _parameters(records: Sequence[HistoryRecord], *, are_indexed: bool) -> tuple[int, list[Any]]:
    """Return the number of records that a statement takes, and its parameters."""
    rows = next(size for size in _STATEMENT_ROWS if size >= len(records))
    values = parameters(records, memory_key if are_indexed else _not_yet)
    values += _ending(len(records) if are_indexed else 0)
    values += _PADDING * (rows - len(records))
    return rows, values


class _Refused(Exception):
    """A constraint or trigger of the owner refused a write."""

    def __init__(self, reason: sqlite3.Error) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of statements on existing tables into `_Refused`: a rule of the owner failed."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise _Refused(error) from error
    except sqlite3.OperationalError as error:
        if not is_schema_mismatch(error):
            raise
        raise _Refused(error) from error


def _execute_add(sql: str, values: Sequence[Any], connection: sqlite3.Connection) -> None:
    """Run what `_statement` returns.

    Raises:
        IndexOutdated: too many rows are not indexed. Nothing was written.
    """
    before = connection.total_changes
    # `execute` would take the GIL once more, to read the last rowid; `executemany` does not.
    connection.executemany(sql, [values])
    if connection.total_changes == before:
        raise IndexOutdated


class _RolledBack(Exception):
    """A trigger of the owner rolled back the whole transaction."""


def _commit_in_steps(
    batch: Sequence[Submission], connection: sqlite3.Connection
) -> Mapping[int, HistoryError]:
    try:
        with transaction(connection):
            return run_to_completion(commit_in_steps(batch, _CommitSteps(connection)))
    except _RolledBack as error:
        if len(batch) == 1:
            return {0: _refused(error.__cause__)}
    # One submission rolls back all others, so commit each in its own transaction.
    refused: dict[int, HistoryError] = {}
    for index, submission in enumerate(batch):
        if 0 in (alone := _commit_in_steps([submission], connection)):
            refused[index] = alone[0]
    return refused


class _CommitSteps:
    """The statements of `commit_in_steps` for SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records that have an id of these submissions."""
        rows = fetch_rows(self._connection, _EXISTING, (json.dumps(ids_of(submissions)),))
        return [record_from_row(row) for row in rows]

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""
        if not self._is_ready():
            index_foreign_rows(self._connection)
        keyed = [(memory_key(memory_id), memory_id) for memory_id in memory_ids]
        asked = {"memories": json.dumps(keyed)}
        rows = unpack_rows(fetch_rows(self._connection, _LATEST_PACKED, asked))
        if rows is None:
            rows = fetch_rows(self._connection, _LATEST, asked)
        return [record_from_row(row) for row in rows]

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
        """Roll back the writes of the body if a constraint or trigger of the owner refuses one."""
        self._connection.execute("SAVEPOINT submissions")
        migration_error: sqlite3.Error | None = None
        try:
            yield
        except _Refused as error:
            migration_error = error.reason
            if not self._connection.in_transaction:
                raise _RolledBack from migration_error
            self._connection.execute("ROLLBACK TO submissions")
        self._connection.execute("RELEASE submissions")
        if migration_error is not None:
            raise _refused(migration_error) from migration_error

    async def write(
        self, records: Sequence[HistoryRecord], messages: Sequence[SaveMessages]
    ) -> None:
        """Write records and messages, in order."""
        for part in _parts(records):
            self._add(part)
        if messages:
            with _refusals():
                self._save_messages(messages)

    def _add(self, records: Sequence[HistoryRecord]) -> None:
        if not self._is_ready():
            index_foreign_rows(self._connection)
            if not self._is_ready():
                raise IndexOutdated
        ((has_triggers,),) = fetch_rows(self._connection, f"SELECT {_HAS_OWNERS_TRIGGERS}")
        with _refusals():
            if not has_triggers:
                _execute_add(*_statement(records), self._connection)
                return
            rows, values = _parameters(records, are_indexed=False)
            self._connection.executemany(_ADD_WITH_TRIGGERS[rows], [values])
            ids = json.dumps([record.id for record in records])
            ((left_out, example),) = fetch_rows(self._connection, _LEFT_OUT, (ids,))
            if left_out:
                raise sqlite3.IntegrityError(
                    f"a trigger left out {left_out} of its records, such as {example}"
                )

    def _is_ready(self) -> bool:
        ((is_ready,),) = fetch_rows(self._connection, f"SELECT {NEARLY_COMPLETE}")
        return bool(is_ready)

    def _save_messages(self, submissions: Sequence[SaveMessages]) -> None:
        rows = message_rows(submissions)
        self._connection.execute(_SAVE_MESSAGES, (json.dumps(rows, ensure_ascii=False),))
        scopes = json.dumps([submission.session_scope for submission in submissions])
        self._connection.execute(_EVICT, (scopes,))


def _refused(reason: BaseException | None) -> StorageRefused:
    return StorageRefused(f"a constraint or trigger of the file refused this: {reason}")


def _not_yet(_: str) -> int:
    return NOT_YET


def _ending(indexed: int) -> tuple[float, ...]:
    return *(NULL,) * (ROW_WIDTH - 1), indexed


def _parts(records: Sequence[HistoryRecord]) -> Iterator[Sequence[HistoryRecord]]:
    """Split records into parts that fit in one statement."""
    most = _STATEMENT_ROWS[-1]
    return (records[start : start + most] for start in range(0, len(records), most))
