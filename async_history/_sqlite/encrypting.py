"""Sealing and opening the stored texts of a SQLite file in place, in transactions."""

import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.key_statements import INDEX, MARKS, MOST_USES, OFF, KeyTable
from async_history._core.encryption.sealing import BEGIN, END, JSON_BEGIN, KEY_ID, DataKey
from async_history._core.encryption.stored_texts import (
    LEDGER_MEANWHILE,
    Page,
    StoredMessage,
    StoredTexts,
    TextTransaction,
)
from async_history._core.records.owners import SCOPES, Owner
from async_history._core.writing.erased_names import Name, name_digest
from async_history._sqlite.connecting.connection import ThreadConnection, fetch_rows
from async_history._sqlite.index import (
    LAST_NOTED,
    indexed_transaction,
    mark_copied,
    owners_of,
    replace_details,
)
from async_history._sqlite.key_statements import (
    CLEAR_TEXT,
    COUNT_CLEAR,
    HAS_CLEAR_CAUSE,
    WrittenKeyTable,
)
from async_history._sqlite.keys import Sealing
from async_history._sqlite.ledger import has_ledger
from async_history.errors import StorageError, StorageRefused

T = TypeVar("T")

_IS_CLEAR: Final = (
    f"(typeof({{0}}) = 'text' AND substr({{0}}, 1, {len(BEGIN)}) <> '{BEGIN}'"
    f" AND substr({{0}}, -{len(END)}) <> '{END}')"
)
_COLUMNS: Final = """
history.rowid, history.id, history.memory_id, history.old_memory, history.new_memory,
    detail.context, detail.cause
"""
_CLEAR_RECORDS: Final = f"""
SELECT {_COLUMNS} FROM history INDEXED BY async_history_clear
LEFT JOIN main.async_history_details AS detail ON detail.id = history.id
WHERE ({CLEAR_TEXT}) AND typeof(history.id) = 'text' AND typeof(memory_id) = 'text'
    AND ({_IS_CLEAR.format("old_memory")} OR {_IS_CLEAR.format("new_memory")})
LIMIT ?
"""
_DETAILED: Final = f"""
SELECT {_COLUMNS}, detail.id FROM (
    SELECT id, context, cause FROM main.async_history_details WHERE id > ? ORDER BY id LIMIT ?
) AS detail
LEFT JOIN history ON history.id = detail.id ORDER BY detail.id
"""
_SEALED: Final = f"""
    instr(old_memory, '{BEGIN}') = 1 OR instr(old_memory, '{END}') > 0
    OR instr(new_memory, '{BEGIN}') = 1 OR instr(new_memory, '{END}') > 0
    OR instr(detail.context, '{END}') > 0 OR instr(detail.context, '{JSON_BEGIN}') > 0
    OR instr(detail.cause, '{END}') > 0 OR instr(detail.cause, '{JSON_BEGIN}') > 0
"""
"""SQL condition: a value of a record may be sealed. Records without sealed values are left out
later."""
_PAGE: Final = f"""
SELECT {_COLUMNS}, {_SEALED} FROM (
    SELECT rowid AS place, id FROM history WHERE id > ? ORDER BY id LIMIT ?
) AS page
CROSS JOIN history ON history.rowid = page.place
LEFT JOIN main.async_history_details AS detail ON detail.id = history.id ORDER BY history.id
"""
_RETIRED: Final = f"""
SELECT id FROM main.async_history_data_keys WHERE uses >= {MOST_USES} AND NOT erased
"""
_BY_KEY: Final = " OR ".join(
    f"coalesce(substr({column}, {begin}, {KEY_ID}) IN ({_RETIRED}), 0)"
    for column, begin in (
        *((column, len(BEGIN) + 1) for column in ("old_memory", "new_memory")),
        *(
            (column, f"instr({column}, '{JSON_BEGIN}') + {len(JSON_BEGIN)}")
            for column in ("detail.context", "detail.cause")
        ),
    )
)
_PAGE_BY_KEY: Final = _PAGE.replace(_SEALED, _BY_KEY)
_HOW_MANY: Final = "SELECT count(*) FROM history"
_SET_TEXTS: Final = "UPDATE history SET old_memory = ?, new_memory = ? WHERE rowid = ?"
_MESSAGES: Final = """
SELECT id, session_scope, role, content, name, created_at FROM messages
WHERE id > ? ORDER BY id LIMIT ?
"""
_SET_CONTENT: Final = "UPDATE messages SET content = ? WHERE id = ?"
_NOTE_WHOLE: Final = f"UPDATE async_history_encryption SET is_whole = NOT {HAS_CLEAR_CAUSE}"
_RETIRE: Final = f"""
UPDATE async_history_data_keys SET uses = {MOST_USES}
WHERE owner NOT IN {(INDEX, *MARKS)} AND uses < {MOST_USES}
"""
_RETIRE_OF: Final = {scope: f"{_RETIRE} AND NOT erased AND {scope} = ?" for scope in SCOPES}
_TURN_OFF: Final = "DELETE FROM async_history_encryption"
_END: Final = (
    f"DELETE FROM async_history_data_keys WHERE id <> '{OFF}'",
    "DELETE FROM async_history_wrapping_keys",
    "DROP INDEX IF EXISTS async_history_clear",
    "DROP INDEX IF EXISTS async_history_clear_causes",
)


class FileTexts:
    """The texts of a file.

    Args:
        run_exclusively: runs work alone on the writing connection, queued with the writes.
        sealing: seals under the keys of the file.
        overwrite: rewrites the file; returns where texts may remain.
    """

    def __init__(
        self,
        run_exclusively: Callable[[Callable[[ThreadConnection], Awaitable[Any]]], Awaitable[Any]],
        sealing: Sealing,
        overwrite: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        self._run_exclusively = run_exclusively
        self._sealing = sealing
        self.overwrite = overwrite

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        done: T = await self._run_exclusively(lambda connection: connection.run(work))
        return done

    async def in_transaction(self, work: Callable[[TextTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, in which every record is indexed."""
        return await self._run(partial(_in_transaction, self._sealing, work))

    async def require_decryptable(self) -> None:
        """Do nothing: a user who can write the file can decrypt it."""

    async def finish_decrypting(self) -> None:
        """Do nothing: nothing is left to do."""

    async def count_records(self) -> int:
        """Return the number of records."""
        return await self._run(partial(_count, _HOW_MANY))

    async def count_clear(self) -> int:
        """Return the number of records with a text in clear."""
        return await self._run(partial(_count, COUNT_CLEAR))


def _count(sql: str, connection: sqlite3.Connection) -> int:
    ((count,),) = fetch_rows(connection, sql)
    return int(count)


def _in_transaction(
    sealing: Sealing,
    work: Callable[[TextTransaction], Coroutine[Any, Any, T]],
    connection: sqlite3.Connection,
) -> T:
    try:
        with indexed_transaction(connection):
            return run_to_completion(work(_FileTransaction(connection, sealing)))
    except BaseException:
        sealing.undone()
        raise


class _FileTransaction:
    """Access to a file's stored texts in a transaction, on the connection's thread."""

    def __init__(self, connection: sqlite3.Connection, sealing: Sealing) -> None:
        self._connection = connection
        self._sealing = sealing
        self.table: KeyTable = WrittenKeyTable(connection)

    async def clear_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a text in clear; sealed ones are no longer in the index."""
        rows = self._texts(fetch_rows(self._connection, _CLEAR_RECORDS, (limit,)))
        return Page(rows, rows[-1].id if len(rows) == limit else None)

    async def detailed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with details."""
        rows = fetch_rows(self._connection, _DETAILED, (after or "", limit))
        texts = self._texts([row[:-1] for row in rows if row[0] is not None])
        return Page(texts, rows[-1][-1] if len(rows) == limit else None)

    def _texts(self, rows: Sequence[Sequence[Any]]) -> list[StoredTexts]:
        owners = owners_of(self._connection, list(dict.fromkeys(row[2] for row in rows)))
        return [
            StoredTexts(
                place,
                record_id,
                memory_id,
                owners[memory_id].owner if memory_id in owners else None,
                *texts,
            )
            for place, record_id, memory_id, *texts in rows
        ]

    async def sealed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the sealed ones of the next records."""
        return self._page(_PAGE, after, limit)

    def _page(self, sql: str, after: Any, limit: int) -> Page[StoredTexts]:
        rows = fetch_rows(self._connection, sql, (after or "", limit))
        texts = self._texts([row[:-1] for row in rows if row[-1]])
        return Page(texts, rows[-1][1] if len(rows) == limit else None)

    async def retired_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return those of the next records whose text is under a retired key."""
        return self._page(_PAGE_BY_KEY, after, limit)

    async def messages(self, after: Any, limit: int) -> Page[StoredMessage]:
        """Return the next buffered messages."""
        rows = fetch_rows(self._connection, _MESSAGES, (after or "", limit))
        found = [StoredMessage(row[0], tuple(row)) for row in rows]
        return Page(found, found[-1].place if len(rows) == limit else None)

    async def replace_records(self, rows: Sequence[StoredTexts]) -> None:
        """Write records' texts, their details and the entries of their causes."""
        self._set(_SET_TEXTS, [(row.old_memory, row.new_memory, row.place) for row in rows])
        replace_details(
            self._connection,
            {
                row.place: (row.context, row.cause)
                for row in rows
                if row.context is not None or row.cause is not None
            },
        )

    async def replace_messages(self, rows: Sequence[StoredMessage]) -> None:
        """Write messages' contents."""
        self._set(_SET_CONTENT, [(one.row[3], one.place) for one in rows])

    def _set(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows and self._connection.executemany(sql, rows).rowcount < len(rows):
            raise StorageRefused(
                "a trigger of the file keeps texts as they are; remove it, and call this again"
            )

    async def keys_of(self, owners: Sequence[Owner | None]) -> Sequence[DataKey | None]:
        """Return the data key of each owner."""
        ((noted,),) = fetch_rows(self._connection, f"SELECT {LAST_NOTED}")
        return self._sealing.keys_of(owners, noted, self._connection)

    async def compute(self, work: Callable[[], T]) -> T:
        """Call a function on this thread, which is not the event loop's."""
        return work()

    async def note_whole(self) -> None:
        """Note whether all causes are sealed."""
        self._connection.execute(_NOTE_WHOLE)

    async def lock_keys(self) -> None:
        """Do nothing: no other transaction of the file writes at the same time."""

    async def retire_keys(self) -> None:
        """Retire all data keys."""
        self._connection.execute(_RETIRE)

    async def retire_keys_of(self, name: Name) -> None:
        """Retire the data keys of owners that have a scope."""
        self._connection.execute(_RETIRE_OF[name[0]], (name_digest(name).hex(),))

    async def retired_keys(self) -> Sequence[str]:
        """Return the ids of retired data keys."""
        return [key_id for (key_id,) in fetch_rows(self._connection, _RETIRED)]

    async def turn_on(self) -> None:
        """Seal all new records, again."""
        await self.table.begin()

    async def turn_off(self) -> None:
        """Note that not all causes are sealed."""
        self._connection.execute(_TURN_OFF)

    async def end(self) -> None:
        """Remove all keys except `OFF`, and the indexes of records in clear."""
        if has_ledger(self._connection):
            raise StorageError(LEDGER_MEANWHILE)
        ((version,),) = fetch_rows(self._connection, "PRAGMA schema_version")
        for statement in _END:
            self._connection.execute(statement)
        mark_copied(self._connection, version)
