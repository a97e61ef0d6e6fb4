"""The manager of a history in SQLite: its options, and the backup of its file."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import cast

from async_history._core.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.manager import HistoryManager
from async_history._core.options import DURABILITIES, JOURNALS, Durability, Journal
from async_history._core.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.validation import (
    check_choice,
    check_file_name,
    check_flag,
    check_function,
    check_queue,
    check_seconds,
    file_path,
)
from async_history._core.writer import WriterOptions
from async_history._sqlite.backend import SQLiteBackend, SQLiteStore
from async_history._sqlite.errors import absolute

LOCK_TIMEOUT_S = 30.0
"""How long another process may hold the file's lock, unless told otherwise."""


class SQLiteHistoryManager(HistoryManager):
    """A history in one SQLite file, shared by any number of tasks and processes; or in memory.

    Args:
        path: the file, or None for a database in memory that ends with the manager.
        create: make the file and its missing folders (the file for its owner's eyes only), or
            raise `StorageMissing`.
        migrate: adopt and index a file as it is opened. Without it the file is not changed: a
            file that would need it can be read, and refuses to be written.
        journal: "wal", or "delete": a rollback journal, for a file that several machines share, or
            whose file system has no shared memory. Readers and the writer then wait for each
            other. A file that has the other journal is given this one; with `migrate=False` it
            keeps what it has.
        durability: "full": an ack survives the machine's power loss. "normal": it survives the
            process's death; power loss may take the last ones.
        queue_records, queue_bytes, queue_timeout_s: see `GroupCommitWriter`.
        lock_timeout_s: how long to wait while another process holds the file's lock.
        close_timeout_s: how long closing waits for what was accepted.
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
    ) -> None:
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        backend = SQLiteBackend(
            path=None if path is None else absolute(file_path("path", path)),
            create=check_flag("create", create),
            migrate=check_flag("migrate", migrate),
            journal=check_choice("journal", journal, JOURNALS),
            durability=check_choice("durability", durability, DURABILITIES),
            lock_timeout_s=check_seconds("lock_timeout_s", lock_timeout_s),
            writer_options=WriterOptions(
                queue_records=queue_records,
                queue_bytes=queue_bytes,
                queue_timeout_s=queue_timeout_s,
            ),
        )
        super().__init__(backend, close_timeout_s=close_timeout_s)

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Copy the history as it is now into a new file, while writes go on.

        The copy has everything acked before the call, and is one file that opens like any other.
        It appears under its name when it is whole and on disk; until then it is beside it, as
        `<name>.….unfinished`. The file's log grows by what is written meanwhile.

        Args:
            on_progress: told, on the event loop, how many of how many pages are copied.

        Raises:
            InvalidInput: there is a file of that name. It was not touched.
            StorageError: the copy could not be read or written; nothing of it is left.
            asyncio.CancelledError: nothing of the copy is left, unless it was whole already.
        """
        store = self.store
        target = absolute(Path(check_file_name("path", path)))
        check_function("on_progress", on_progress)
        await store.back_up(target, on_progress, self.limits.backup_pages)

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another, which nobody else uses meanwhile."""
        await self.store.pool.copy_into(target)

    @property
    def store(self) -> SQLiteStore:
        """The open store, as its parts."""
        return cast(SQLiteStore, super().store)
