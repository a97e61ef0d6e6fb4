"""`SQLiteHistoryManager`: the options of a history in SQLite, and `backup`."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import cast

from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.encryption.key_ring import KeyRing, check_keys
from async_history._core.manager import HistoryManager
from async_history._core.options import DURABILITIES, JOURNALS, Durability, Journal
from async_history._core.validation import (
    check_choice,
    check_file_name,
    check_flag,
    check_function,
    check_queue,
    check_seconds,
    file_path,
)
from async_history._core.writing.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.writing.writer_options import WriterOptions
from async_history._sqlite.backend import SQLiteBackend
from async_history._sqlite.connecting.errors import absolute
from async_history._sqlite.store import SQLiteStore

LOCK_TIMEOUT_S = 30.0
"""Default of `lock_timeout_s`: seconds that another process may hold the file's lock."""


class SQLiteHistoryManager(HistoryManager):
    """A history in one SQLite file, which any number of tasks and processes share; or in memory.

    Args:
        path: the file, or None for a database in memory that lives as long as the manager.
        create: create the file (mode 0600) and its missing folders. If False, a missing file raises
            `StorageMissing`.
        migrate: adopt and index a file when it is opened. If False, the file is not changed: one
            that needs adoption or indexing can be read but not written.
        journal: "wal", a write-ahead log, or "delete", a rollback journal: for a file that several
            machines share, or whose file system has no shared memory. Readers and the writer then
            wait for each other. A file with the other journal is changed to this one, except with
            `migrate=False`.
        durability: with "full", an acknowledged record survives a power loss. With "normal", it
            survives the death of the process; a power loss may lose the last ones.
        queue_records, queue_bytes, queue_timeout_s: see `GroupCommitWriter`.
        lock_timeout_s: seconds to wait while another process holds the file's lock.
        close_timeout_s: seconds that closing waits for accepted records to be committed.
        keys: a `KeyRing`, to encrypt what is recorded; see the guide on encryption.
        ledger: add a ledger, which proves what was recorded. A file that has a ledger keeps it. See
            `history.ledger`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        create: bool = True,
        migrate: bool = True,
        journal: Journal = "wal",
        durability: Durability = "full",
        queue_records: int = QUEUE_RECORDS,
        queue_bytes: int = QUEUE_BYTES,
        queue_timeout_s: float | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        keys: KeyRing | None = None,
        ledger: bool = False,
    ) -> None:
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        backend = SQLiteBackend(
            path=None if path is None else absolute(file_path("path", path)),
            create=check_flag("create", create),
            migrate=check_flag("migrate", migrate),
            journal=check_choice("journal", journal, JOURNALS),
            durability=check_choice("durability", durability, DURABILITIES),
            lock_timeout_s=check_seconds("lock_timeout_s", lock_timeout_s),
            ledger=check_flag("ledger", ledger),
            writer_options=WriterOptions(
                queue_records=queue_records,
                queue_bytes=queue_bytes,
                queue_timeout_s=queue_timeout_s,
            ),
            keys=check_keys(keys),
        )
        super().__init__(backend, close_timeout_s=close_timeout_s)

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Copy the history as it is now into a new file while writes continue.

        The copy has everything acknowledged before the call, and is a single file that can be
        opened like any other. It gets its name once it is complete and on disk; until then it is
        in the same folder as `<name>.….unfinished`. The file's log grows by what is written
        meanwhile.

        Args:
            path: the new file.
            on_progress: called on the event loop with the number of pages copied and the total.

        Raises:
            InvalidInput: the file exists. It was not changed.
            StorageError: the copy could not be read or written, and was removed.
            asyncio.CancelledError: the copy was removed, unless it was complete already.
        """
        store = self.store
        target = absolute(Path(check_file_name("path", path)))
        check_function("on_progress", on_progress)
        await store.back_up(target, on_progress)

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another.

        Args:
            target: a connection that is not used elsewhere meanwhile.
        """
        await self.store.pool.copy_into(target)

    @property
    def store(self) -> SQLiteStore:
        """The open store, with its parts."""
        return cast(SQLiteStore, super().store)
