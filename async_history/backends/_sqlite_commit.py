"""One batch in one transaction of SQLite, in as few hops to the connection's thread as it takes.

A batch of new records is one statement: checked, written, indexed and committed in one hop, with
the GIL released for all of it (a statement a row would ask for the GIL again at every row, and
wait for a busy event loop each time). Everything else, which is rarer, takes a few hops more.

Lives here: the statements that write. Not here: opening, locks, retries, typed errors.
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import aiosqlite

from async_history.backends._sqlite_rows import (
    COLUMN_LIST,
    ROW_WIDTH,
    parameters,
    record_from_row,
)
from async_history.errors import HistoryConflict, HistoryError, IdConflict, StorageRefused
from async_history.memory_index import (
    COMPLETE,
    MOVE_SLICES,
    NOTE_ROWS,
    POSITIONS,
    TAKE_IN_ROWS,
    memory_key,
)
from async_history.records import COLUMNS, HistoryRecord
from async_history.submissions import MESSAGES_KEPT, AddRecords, SaveMessages, Submission

WRITE_PROGRAM: Final = f"""
CREATE TEMP VIEW async_history_new AS SELECT {COLUMN_LIST}, 0 AS memory FROM main.history;
CREATE TEMP TRIGGER async_history_write INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NOT NULL
BEGIN
    INSERT INTO history ({COLUMN_LIST}) VALUES ({", ".join(f"new.{name}" for name in COLUMNS)});
    -- A rowid that is issued again may have its entry still. (IGNORE would not move slices.)
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    VALUES (new.memory, last_insert_rowid());
END;
CREATE TEMP TRIGGER async_history_written INSTEAD OF INSERT ON async_history_new
WHEN new.id IS NULL
BEGIN
    UPDATE async_history_state SET indexed_through = (SELECT max(rowid) FROM history);
END;
{MOVE_SLICES}
"""  # noqa: S608 - constants of ours
"""Run once on the connection that writes. Temporary: nothing of it is stored in the file.

Inserting into the view writes a record and its index entry; a row without an id ends a statement
and notes how far the index reaches.
"""

_STATEMENT_ROWS: Final = (1, 8, 32, 128, 512)
"""Records of a statement: few sizes, so that each stays prepared; the rest is padding."""
_END: Final = (*(None,) * (ROW_WIDTH - 1), 0)
_PADDING: Final = (None,) * ROW_WIDTH


def _rows_sql(width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"VALUES {', '.join([row] * rows)}"


_ADD_RECORDS: Final = {
    rows: f"INSERT INTO async_history_new SELECT * FROM ({_rows_sql(ROW_WIDTH, rows + 1)}) "  # noqa: S608 - placeholders only
    f"WHERE column{ROW_WIDTH} IS NOT NULL AND {COMPLETE}"
    for rows in _STATEMENT_ROWS
}
_EXISTING: Final = f"SELECT {COLUMN_LIST} FROM history WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - constants
_LATEST: Final = f"""
SELECT id FROM history WHERE memory_id = :memory_id AND rowid IN ({POSITIONS})
ORDER BY rowid DESC LIMIT 1
"""  # noqa: S608 - constants
_SAVED: Final = "SELECT id FROM messages WHERE id IN (SELECT value FROM json_each(?))"
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
"""  # noqa: S608 - a number of ours


class IndexBehind(Exception):
    """Others replaced tables: nothing was written, the file must be prepared anew first."""


class BatchCommitter:
    """Writes batches through one connection that has run `WRITE_PROGRAM`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def commit(self, batch: Sequence[Submission]) -> dict[int, HistoryError]:
        """Commit a batch; return the refused submissions by index.

        Raises:
            IndexBehind: others replaced tables. Nothing was written.
            sqlite3.Error: the transaction failed and was rolled back, or its outcome is unknown.
        """
        additions = [s for s in batch if isinstance(s, AddRecords) and s.if_latest is None]
        if len(additions) == len(batch):
            # Where an id is taken, or others wrote, this undoes itself: then look closer.
            with contextlib.suppress(sqlite3.IntegrityError, IndexBehind):
                await self._add_all([r for submission in additions for r in submission.records])
                return {}
        return await self._commit_in_steps(batch)

    async def _add_all(self, records: Sequence[HistoryRecord]) -> None:
        """Write new records: in one statement, or where they are too many in one transaction."""
        if len(records) <= _STATEMENT_ROWS[-1]:
            await self._add(records)
        else:
            async with self._transaction():
                for part in _parts(records):
                    await self._add(part)

    async def _add(self, records: Sequence[HistoryRecord]) -> None:
        """Write at most a statement's worth of records.

        Raises:
            IndexBehind: there are rows that are not indexed. Nothing was written.
        """
        rows = next(size for size in _STATEMENT_ROWS if size >= len(records))
        values = parameters(records)
        values += _END
        values += _PADDING * (rows - len(records))
        before = self._connection.total_changes
        await self._connection.execute(_ADD_RECORDS[rows], values)
        if self._connection.total_changes == before:
            raise IndexBehind

    async def _add_in_transaction(self, records: Sequence[HistoryRecord]) -> None:
        try:
            await self._add(records)
        except IndexBehind:
            await self._connection.execute(TAKE_IN_ROWS)
            await self._connection.execute(NOTE_ROWS)
            await self._add(records)

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        try:
            await self._connection.execute("BEGIN IMMEDIATE")
            yield
            await self._connection.execute("COMMIT")
        except BaseException:
            # Undoes nothing where the transaction is already gone. It runs on the connection's
            # thread after whatever was cancelled, even if this await is cancelled too.
            await self._connection.rollback()
            raise

    async def _commit_in_steps(self, batch: Sequence[Submission]) -> dict[int, HistoryError]:
        refused: dict[int, HistoryError] = {}
        async with self._transaction():
            await self._add_submissions(batch, refused)
            await self._save_messages([s for s in batch if isinstance(s, SaveMessages)])
        return refused

    async def _add_submissions(
        self, batch: Sequence[Submission], refused: dict[int, HistoryError]
    ) -> None:
        additions = {i: s for i, s in enumerate(batch) if isinstance(s, AddRecords)}
        if not additions:
            return
        known = await self._existing([i for s in additions.values() for i in s.ids])
        pending: dict[int, Sequence[HistoryRecord]] = {}
        for index, submission in additions.items():
            try:
                missing = _missing(submission, known)
                if missing and submission.if_latest is not None:
                    await self._add_or_refuse(pending, refused)
                    pending = {}
                    await self._require_latest(submission.if_latest)
            except (IdConflict, HistoryConflict) as error:
                refused[index] = error
                continue
            known.update((record.id, record) for record in missing)
            pending[index] = missing
        await self._add_or_refuse(pending, refused)

    async def _existing(self, ids: Sequence[str]) -> dict[str, HistoryRecord]:
        rows = await self._connection.execute_fetchall(_EXISTING, (json.dumps(ids),))
        return {record.id: record for record in map(record_from_row, rows)}

    async def _require_latest(self, expected: HistoryRecord) -> None:
        memory_id = expected.memory_id
        rows = await self._connection.execute_fetchall(
            _LATEST, {"memory_id": memory_id, "memory": memory_key(memory_id)}
        )
        latest = next(iter(rows), (None,))[0]
        if latest != expected.id:
            raise HistoryConflict(
                f"record {expected.id} is not the latest of memory {memory_id!r}, "
                f"{latest or 'which has none'} is; nothing was written, read again and decide"
            )

    async def _add_or_refuse(
        self, pending: dict[int, Sequence[HistoryRecord]], refused: dict[int, HistoryError]
    ) -> None:
        """Write submissions inside the transaction; halve them until the ones at fault are alone.

        Ids are settled by now, so only a constraint or trigger of the file's owner gets here.
        """
        records = [record for submission in pending.values() for record in submission]
        if not records:
            return
        await self._connection.execute("SAVEPOINT submissions")
        try:
            for part in _parts(records):
                await self._add_in_transaction(part)
        except sqlite3.IntegrityError as error:
            await self._connection.execute("ROLLBACK TO submissions")
            items = list(pending.items())
            if len(items) == 1:
                refused[items[0][0]] = StorageRefused(f"the file's own rules refuse this: {error}")
            else:
                half = len(items) // 2
                await self._add_or_refuse(dict(items[:half]), refused)
                await self._add_or_refuse(dict(items[half:]), refused)
        await self._connection.execute("RELEASE submissions")

    async def _save_messages(self, submissions: Sequence[SaveMessages]) -> None:
        if not submissions:
            return
        ids = json.dumps([submission.ids[-1] for submission in submissions])
        saved = {row[0] for row in await self._connection.execute_fetchall(_SAVED, (ids,))}
        rows: list[tuple[Any, ...]] = [
            (message_id, submission.session_scope, m.role, m.content, m.name, m.created_at)
            for submission in _unsaved(submissions, saved)
            for message_id, m in zip(submission.ids, submission.messages, strict=True)
        ]
        await self._connection.execute(_SAVE_MESSAGES, (json.dumps(rows, ensure_ascii=False),))
        scopes = json.dumps([submission.session_scope for submission in submissions])
        await self._connection.execute(_EVICT, (scopes,))


def _parts(records: Sequence[HistoryRecord]) -> Iterator[Sequence[HistoryRecord]]:
    """Cut records into what a statement takes."""
    most = _STATEMENT_ROWS[-1]
    return (records[start : start + most] for start in range(0, len(records), most))


def _unsaved(submissions: Sequence[SaveMessages], saved: set[str]) -> list[SaveMessages]:
    """Return the submissions that an earlier try of this batch has not saved.

    One that is there was saved with all before it, though those may be evicted already.
    """
    unsaved: list[SaveMessages] = []
    done: set[str] = set()
    for submission in reversed(submissions):
        if submission.ids[-1] in saved:
            done.add(submission.session_scope)
        if submission.session_scope not in done:
            unsaved.insert(0, submission)
    return unsaved


def _missing(submission: AddRecords, known: dict[str, HistoryRecord]) -> list[HistoryRecord]:
    """Return the submission's records that are not there yet, once each.

    Raises:
        IdConflict: one is there with other content.
    """
    missing: dict[str, HistoryRecord] = {}
    for index, record in enumerate(submission.records):
        there = known.get(record.id) or missing.get(record.id)
        if there is None:
            missing[record.id] = record
        elif submission.is_same(index, there):
            submission.records[index] = there
        else:
            raise IdConflict(
                f"id {record.id} is taken by a record with other content; nothing of the "
                "submission was written. Leave the id out to get a fresh one"
            )
    return list(missing.values())
