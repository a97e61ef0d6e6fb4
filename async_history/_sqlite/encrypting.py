"""Encrypts in place what an encrypted SQLite file has in clear."""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from async_history._core.encrypting import Sealed
from async_history._core.owners import Owner
from async_history._core.sealed_records import (
    owner_of_session,
    sealed_details,
    sealed_message,
    sealed_text,
)
from async_history._core.sealing import BEGIN, DataKey, is_json_sealed
from async_history._sqlite.connection import ThreadConnection, fetch_rows
from async_history._sqlite.index import (
    LAST_NOTED,
    indexed_transaction,
    owners_of,
    replace_details,
)
from async_history._sqlite.keys import CLEAR_TEXT, COUNT_CLEAR, Sealing

T = TypeVar("T")

_IS_CLEAR: Final = f"(typeof({{0}}) = 'text' AND substr({{0}}, 1, {len(BEGIN)}) <> '{BEGIN}')"
_CLEAR_RECORDS: Final = f"""
SELECT rowid, id, memory_id, old_memory, new_memory
FROM history INDEXED BY async_history_clear
WHERE ({CLEAR_TEXT}) AND typeof(id) = 'text' AND typeof(memory_id) = 'text'
    AND ({_IS_CLEAR.format("old_memory")} OR {_IS_CLEAR.format("new_memory")})
LIMIT ?
"""
_SET_TEXTS: Final = "UPDATE history SET old_memory = ?, new_memory = ? WHERE rowid = ?"
_DETAILS: Final = """
SELECT detail.id, history.rowid, history.memory_id, detail.context, detail.cause
FROM (
    SELECT id, context, cause FROM main.async_history_details WHERE id > ? ORDER BY id LIMIT ?
) AS detail
LEFT JOIN history ON history.id = detail.id ORDER BY detail.id
"""
_MESSAGES: Final = """
SELECT id, session_scope, role, content, name, created_at FROM messages
WHERE id > ? ORDER BY id LIMIT ?
"""
_SET_CONTENT: Final = "UPDATE messages SET content = ? WHERE id = ?"
_NOTE_WHOLE: Final = """
UPDATE async_history_encryption SET is_whole = NOT EXISTS (
    SELECT 1 FROM main.async_history_details WHERE instr(cause, '"sealed":"') = 0
)
"""


class FileClearTexts:
    """What a file has in clear.

    Args:
        run_exclusively: runs work alone on the writing connection, queued with the writes.
        sealing: seals under the keys of the file.
        overwrite: writes the file again; returns where texts may be still.
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

    async def count(self) -> int:
        """Return how many records have a text in clear."""
        return await self._run(_count)

    async def seal_texts(self, limit: int) -> int:
        """Seal the texts of the next records that have one in clear."""
        return await self._run(partial(_seal_texts, self._sealing, limit))

    async def seal_details(self, after: str, limit: int) -> Sealed:
        """Seal contexts and causes of records after an id."""
        return await self._run(partial(_seal_details, self._sealing, after, limit))

    async def seal_messages(self, after: str, limit: int) -> Sealed:
        """Seal the contents of messages after an id."""
        return await self._run(partial(_seal_messages, self._sealing, after, limit))

    async def note_whole(self) -> None:
        """Note whether all causes are sealed."""
        await self._run(_note_whole)


def _count(connection: sqlite3.Connection) -> int:
    ((count,),) = fetch_rows(connection, COUNT_CLEAR)
    return int(count)


def _note_whole(connection: sqlite3.Connection) -> None:
    connection.execute(_NOTE_WHOLE)


def _seal_texts(sealing: Sealing, limit: int, connection: sqlite3.Connection) -> int:
    with indexed_transaction(connection):
        rows = fetch_rows(connection, _CLEAR_RECORDS, (limit,))
        used = _keys_of_memories(sealing, [row[2] for row in rows], connection)
        sealed = [
            (
                sealed_text(old, "old_memory", record_id, key),
                sealed_text(new, "new_memory", record_id, key),
                place,
            )
            for (place, record_id, _, old, new), key in zip(rows, used, strict=True)
        ]
        connection.executemany(_SET_TEXTS, sealed)
    return len(rows)


def _seal_details(
    sealing: Sealing, after: str, limit: int, connection: sqlite3.Connection
) -> Sealed:
    with indexed_transaction(connection):
        rows = fetch_rows(connection, _DETAILS, (after, limit))
        clear = [row for row in rows if row[1] is not None and any(map(_is_clear_json, row[3:]))]
        used = _keys_of_memories(sealing, [row[2] for row in clear], connection)
        details = {
            place: sealed_details(record_id, context, cause, key, sealing.index_key)
            for (record_id, place, _, context, cause), key in zip(clear, used, strict=True)
        }
        replace_details(connection, details)
    return Sealed(len(clear), rows[-1][0] if len(rows) == limit else None)


def _seal_messages(
    sealing: Sealing, after: str, limit: int, connection: sqlite3.Connection
) -> Sealed:
    with indexed_transaction(connection):
        rows = fetch_rows(connection, _MESSAGES, (after, limit))
        clear = [row for row in rows if type(row[3]) is str and not row[3].startswith(BEGIN)]
        owners = [owner_of_session(row[1]) for row in clear]
        used = _keys(sealing, owners, connection)
        sealed = [sealed_message(row, key) for row, key in zip(clear, used, strict=True)]
        connection.executemany(_SET_CONTENT, [(row[3], row[0]) for row in sealed])
    return Sealed(len(clear), rows[-1][0] if len(rows) == limit else None)


def _is_clear_json(text: object) -> bool:
    return type(text) is str and not is_json_sealed(text)


def _keys_of_memories(
    sealing: Sealing, memory_ids: Sequence[str], connection: sqlite3.Connection
) -> list[DataKey]:
    owners = owners_of(connection, list(dict.fromkeys(memory_ids)))
    whose = [owners[one].owner if one in owners else None for one in memory_ids]
    return _keys(sealing, whose, connection)


def _keys(
    sealing: Sealing, owners: Sequence[Owner | None], connection: sqlite3.Connection
) -> list[DataKey]:
    ((noted,),) = fetch_rows(connection, f"SELECT {LAST_NOTED}")
    return sealing.keys_of(owners, noted, connection)
