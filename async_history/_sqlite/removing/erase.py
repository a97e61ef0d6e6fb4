"""Erasure in a SQLite file: the statements, and removing erased texts from free pages and the
log."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.store_encryption import KEYS_DESTROYED
from async_history._core.ledger import changes
from async_history._core.ledger.ledger_store import LedgerStore, place_all
from async_history._core.ledger.tables import LedgerTables
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.removing.erase import Residue
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.erase_transaction import (
    LOST,
    Columns,
    EraseTransaction,
    RecordRef,
    Texts,
)
from async_history._core.writing.erased_names import Name
from async_history._sqlite.connecting.connection import ThreadConnection, fetch_rows, transaction
from async_history._sqlite.connecting.errors import LOCK_PAUSE_S, typed_errors
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.index import (
    COUNT_ENTRIES,
    LOWEST_ROWID,
    THROUGH_INDEX,
    disown,
    erase_details,
    indexed_transaction,
    memory_key,
    named,
    note_erased,
    ordered_positions,
    parameters_of_several,
)
from async_history._sqlite.keys import FileKeys, StoredText
from async_history._sqlite.ledger import attest
from async_history._sqlite.operations import file_log
from async_history._sqlite.reading.filters import in_order
from async_history._sqlite.schema.file_copy import adoption_copies
from async_history.errors import CommitUnknown, StorageError, StorageFull

T = TypeVar("T")

_HAS_TEXT: Final = """(
    history.old_memory IS NOT NULL OR history.new_memory IS NOT NULL OR EXISTS (
        SELECT 1 FROM async_history_details AS detail WHERE detail.id = history.id
            AND (detail.context IS NOT NULL OR detail.cause IS NOT NULL)
    )
)"""
_DETAILS: Final = {"context", "cause"}
"""The fields that an erasure may remove and that are not columns of mem0."""
_WITH_TEXT: Final = f"""
SELECT history.rowid, history.id, history.memory_id
FROM {ordered_positions("ASC", ":after")} AS entry
CROSS JOIN history ON history.rowid = entry.position
WHERE history.memory_id = :memory_id AND {_HAS_TEXT} LIMIT :limit
"""
_OF_SEVERAL_WITH_TEXT: Final = f"""
SELECT history.rowid, history.id, history.memory_id FROM history
WHERE {THROUGH_INDEX.several} AND history.rowid > :after AND {_HAS_TEXT}
ORDER BY history.rowid LIMIT :limit
"""
_OF_AN_ACTOR: Final = in_order(
    "history.rowid AS position, history.id, history.memory_id",
    Filter(actor_id=""),
    THROUGH_INDEX,
    Cursor(0, ""),
)
_OF_ACTOR: Final = f"{' UNION ALL '.join(_OF_AN_ACTOR)} ORDER BY position LIMIT :limit"
"""Its parameters are `:actor_id` and `:after`, the position after which to continue."""
_OF_IDS: Final = f"""
SELECT history.rowid, history.id, history.memory_id FROM history
WHERE history.id IN (SELECT value FROM json_each(:ids)) AND {_HAS_TEXT} ORDER BY history.rowid
"""
_ID: Final = "SELECT id FROM history WHERE rowid = ?"
_TEXTS_OF: Final = """
SELECT history.rowid, history.id, history.memory_id, history.actor_id IS :actor_id,
       CAST(history.old_memory AS BLOB), typeof(history.old_memory),
       CAST(history.new_memory AS BLOB), typeof(history.new_memory)
"""
_TEXTS: Final = f"""
{_TEXTS_OF} FROM history WHERE {THROUGH_INDEX.several}
"""
_NEXT_TEXTS: Final = f"""
{_TEXTS_OF} FROM {ordered_positions("ASC", ":after")} AS entry
CROSS JOIN history ON history.rowid = entry.position
WHERE history.memory_id = :memory_id LIMIT :limit
"""
_REDACT: Final = {
    columns: f"""
    UPDATE history SET {
        ", ".join(f"{column} = NULL" for column in columns if column not in _DETAILS)
    }
    WHERE rowid IN (SELECT value FROM json_each(?))
    """
    for columns in LOST
}
_OF_SCOPES: Final = "FROM messages WHERE session_scope IN (SELECT value FROM json_each(?))"
_COUNT_MESSAGES: Final = f"SELECT count(*) {_OF_SCOPES}"
_REMOVE_MESSAGES: Final = f"DELETE {_OF_SCOPES}"
_DIGEST_BYTES: Final = 16
_SECURE_DELETE: Final = {0: "OFF", 1: "ON", 2: "FAST"}
_VACUUM_SPACE: Final = 2
"""Free space that VACUUM needs, in sizes of the file: one for a temporary copy, one in the log."""


class _EraseTransaction:
    """The statements of an erasure within a transaction, on the connection's thread."""

    def __init__(self, connection: sqlite3.Connection, keys: FileKeys) -> None:
        self._connection = connection
        self._keys = keys
        self.log = file_log(connection)

    def _attest(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T | None:
        return attest(self._connection, work, self._keys.seal)

    def _fetch(self, sql: str, **parameters: Any) -> list[Any]:
        return fetch_rows(self._connection, sql, parameters)

    def _start_after(self, after: RecordRef | None) -> int:
        """Return the position to continue after; the lowest if a VACUUM may have renumbered
        rows."""
        if after is None:
            return LOWEST_ROWID
        there = fetch_rows(self._connection, _ID, (after.position,))
        return after.position if there == [(after.id,)] else LOWEST_ROWID

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> list[RecordRef]:
        sql = _WITH_TEXT if len(memory_ids) == 1 else _OF_SEVERAL_WITH_TEXT
        beyond = self._start_after(after)
        rows = self._fetch(sql, after=beyond, limit=limit, **named(memory_ids))
        return [RecordRef(*row) for row in rows]

    async def of_actor(self, actor_id: str, after: RecordRef | None, limit: int) -> list[RecordRef]:
        beyond = self._start_after(after)
        rows = self._fetch(_OF_ACTOR, actor_id=actor_id, after=beyond, limit=limit)
        return [RecordRef(*row) for row in rows]

    async def with_ids(self, record_ids: Sequence[str]) -> list[RecordRef]:
        rows = self._fetch(_OF_IDS, ids=json.dumps(record_ids, ensure_ascii=False))
        return [RecordRef(*row) for row in rows]

    async def sizes(self, memory_ids: Sequence[Any]) -> dict[str, int]:
        # Another program may have stored a memory id that is not a text.
        keys = {name: memory_key(name) for name in memory_ids if isinstance(name, str)}
        sizes = dict(self._fetch(COUNT_ENTRIES, memories=json.dumps(list(keys.values()))))
        return {name: sizes[key] for name, key in keys.items() if key in sizes}

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> list[Texts]:
        rows = self._fetch(_TEXTS, actor_id=actor_id, **parameters_of_several(memory_ids))
        return self._texts(rows)

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> list[Texts]:
        asked = {"actor_id": actor_id, "after": self._start_after(after), "limit": limit}
        rows = self._fetch(_NEXT_TEXTS, **asked, **named([memory_id]))
        return self._texts(rows)

    def _texts(self, rows: Sequence[Sequence[Any]]) -> list[Texts]:
        stored = [
            StoredText(column, row[1], *row[at : at + 2])
            for row in rows
            for at, column in ((4, "old_memory"), (6, "new_memory"))
        ]
        opened = self._keys.seal.opened_texts(stored, self._connection)
        digests = [_digest(text, one.kind) for text, one in zip(opened, stored, strict=True)]
        return [
            Texts(RecordRef(*row[:3]), bool(row[3]), *digests[2 * at : 2 * at + 2])
            for at, row in enumerate(rows)
        ]

    async def redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        given = [one.position for one in refs]
        ids = [one.id for one in refs]
        held = self._attest(lambda ledger: changes.held(ledger, ids))
        if _DETAILS.intersection(columns):
            erase_details(self._connection, given)
        positions = json.dumps(given)
        redacted = self._connection.execute(_REDACT[columns], (positions,)).rowcount
        if held is not None:
            self._attest(lambda ledger: changes.erase(ledger, ids, held))
        return redacted

    async def note(self, names: Sequence[Name], at: datetime) -> Sequence[str]:
        note_erased(self._connection, names, at)
        return await self._keys.mark(self._connection, names)

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        owned = self._attest(lambda ledger: changes.owned(ledger, memory_ids))
        disown(self._connection, scope, memory_ids)
        if owned is not None:
            self._attest(lambda ledger: changes.disown(ledger, memory_ids, owned))

    async def messages(self, session_scopes: Sequence[str]) -> int:
        scopes = json.dumps(session_scopes)
        ((count,),) = fetch_rows(self._connection, _COUNT_MESSAGES, (scopes,))
        return int(count)

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        scopes = json.dumps(session_scopes)
        return self._connection.execute(_REMOVE_MESSAGES, (scopes,)).rowcount


def _digest(stored: bytes | None, kind: str) -> bytes | None:
    """Return a digest of a stored value; a BLOB's differs from that of the same text."""
    if stored is None:
        return None
    return blake2b(stored, digest_size=_DIGEST_BYTES, person=kind.encode()).digest()


Work = Callable[[ThreadConnection], Awaitable[T]]


class FileErasure:
    """An erasure in a file or in memory, which also removes texts from the file's free space.

    Args:
        run_exclusively: runs work alone on the writing connection, queued with the writes.
        rewrite: runs VACUUM on that connection, queued with the writes.
        path: the file; None in memory.
        lock_timeout_s: seconds to wait for readers of the log.
        keys: the keys of the file, if it is encrypted.
        ledger: the ledger of the file, if it has one.
    """

    def __init__(
        self,
        run_exclusively: Callable[[Work[Any]], Awaitable[Any]],
        rewrite: Callable[[], Awaitable[None]],
        path: Path | None,
        lock_timeout_s: float,
        keys: FileKeys,
        ledger: LedgerStore | None,
    ) -> None:
        self._keys = keys
        self._ledger = ledger
        self._run_exclusively = run_exclusively
        self._rewrite = rewrite
        self._path = path
        self._lock_timeout_s = lock_timeout_s

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        if self._ledger is not None:
            await place_all(self._ledger)
        erase = partial(_erase, work, self._keys)
        done: T = await self._run_exclusively(lambda connection: connection.run(erase))
        return done

    async def residue(self) -> Residue:
        copies = await self._copies()
        return Residue(copies, _copies_notice(copies))

    async def clean(self, *, key_ids: Sequence[str], vacuum: Vacuuming) -> Residue:
        sentences: list[str] = []
        if key_ids:
            destroy = partial(_destroy_keys, self._keys, key_ids)
            await self._run_exclusively(lambda connection: connection.run(destroy))
            sentences.append(KEYS_DESTROYED)
        if self._path is None:
            return Residue(sentences=tuple(sentences))
        copies = await self._copies()
        if not vacuum:
            sentences.append(
                f"free space in {self._path} may hold texts that were moved, changed or removed "
                "before (vacuum=False): erase with vacuum=True once, or run VACUUM"
            )
            sentences += await self._truncate_wal(self._path)
        else:
            sentences += await self._overwrite(self._path)
        return Residue(copies, (*sentences, *_copies_notice(copies)))

    async def overwrite(self) -> Sequence[str]:
        """Rewrite the file without free space, and empty its log; return where texts remain."""
        if self._path is None:
            return ()
        return [*await self._overwrite(self._path), *_copies_notice(await self._copies())]

    async def _overwrite(self, path: Path) -> list[str]:
        return [*await self._vacuum(path), *await self._truncate_wal(path)]

    async def _copies(self) -> tuple[str, ...]:
        return (
            () if self._path is None else await run_in_thread(partial(adoption_copies, self._path))
        )

    async def _vacuum(self, path: Path) -> list[str]:
        """Run VACUUM, which rewrites the file without free space; return warnings if that
        failed."""
        try:
            await run_in_thread(partial(_check_free_space, path))
            await self._rewrite()
        except (StorageError, CommitUnknown) as error:
            return [
                f"free space in {path} may hold texts that were moved, changed or removed before, "
                f"and VACUUM could not overwrite it ({error}): fix that and erase again"
            ]
        return []

    async def _truncate_wal(self, path: Path) -> list[str]:
        """Checkpoint and truncate the log; return a warning if others keep reading it."""
        deadline = monotonic() + self._lock_timeout_s
        while (await self._run_exclusively(_checkpoint))[0][0]:
            if monotonic() > deadline:
                return [
                    f"{path}-wal may hold the texts: others kept reading it for "
                    f"{self._lock_timeout_s} s. End those reads and erase again, or close the "
                    "file in all processes"
                ]
            await asyncio.sleep(LOCK_PAUSE_S)
        return []


def _checkpoint(connection: ThreadConnection) -> Awaitable[Iterable[Sequence[Any]]]:
    return connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")


def _erase(
    work: Callable[[EraseTransaction], Coroutine[Any, Any, T]],
    keys: FileKeys,
    connection: sqlite3.Connection,
) -> T:
    """Erase the next texts in one transaction, on the connection's thread."""
    with _overwriting(connection), indexed_transaction(connection):
        return run_to_completion(work(_EraseTransaction(connection, keys)))


def _destroy_keys(keys: FileKeys, key_ids: Sequence[str], connection: sqlite3.Connection) -> None:
    with _overwriting(connection), transaction(connection):
        run_to_completion(keys.destroy(connection, key_ids))


@contextlib.contextmanager
def _overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Make SQLite overwrite with zeros what is removed in the body."""
    ((before,),) = fetch_rows(connection, "PRAGMA secure_delete")
    fetch_rows(connection, "PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        fetch_rows(connection, f"PRAGMA secure_delete = {_SECURE_DELETE[before]}")


def _check_free_space(path: Path) -> None:
    with typed_errors(str(path)):
        needed = path.stat().st_size * _VACUUM_SPACE
        free = shutil.disk_usage(path.resolve().parent).free
    if free < needed:
        raise StorageFull(
            f"VACUUM of {path} needs {needed:,} bytes of free space; {free:,} are free"
        )


def _copies_notice(copies: Sequence[str]) -> tuple[str, ...]:
    if not copies:
        return ()
    return (f"copies made before the file's adoption hold the texts: remove {', '.join(copies)}",)
