"""The synchronous API: a drop-in for mem0's `SQLiteManager`, over any URL.

history = BlockingHistoryManager("history.db")
history.add_history("memory-1", None, "likes tea", "ADD")
"""

import os
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack

from async_history._core.concurrency.loop_thread import LoopThread
from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.records.messages import MESSAGES_KEPT
from async_history._core.records.owners import Owner
from async_history._core.records.records import Event
from async_history._core.records.values import check_name
from async_history._core.writing.new_submissions import checked_messages, checked_records
from async_history._opening import file_options, open_history, sqlite_file
from async_history._sqlite.connecting.errors import absolute, connect, typed_errors
from async_history.blocking._calls import iterating, waiting
from async_history.blocking._encryption import BlockingEncryption
from async_history.blocking._ledger import BlockingLedger
from async_history.blocking._sanitize import Sanitizer, message_as_given
from async_history.blocking._store import LoopStore

T = TypeVar("T")

_LONGEST_MS: Final = 2**31 - 1
"""The longest busy timeout of SQLite."""


class BlockingHistoryManager:
    """A history for code that does not await, usable from any thread, with or without a loop.

    Args:
        db_path: a URL or path, as `open_history` takes it; also `":memory:"`.
        options: the options of the backend, as `open_history` takes them.

    Each call blocks until it is done, and each write until it is durable. Characters that no
    database can store (NUL, lone surrogates) are replaced by U+FFFD, and a value that is not text
    is stored as text (a list or a mapping as JSON), with one warning for each call.

    From `query_history` to `operations` the calls are those of `HistoryManager`, with its
    arguments, errors and typed records: invalid values are refused there, not replaced. Iterations
    read records page by page. `on_progress` is called on a thread of the manager.

    Raises:
        HistoryClosed: from every call after `close`.
        WrongLoop: from every call in a forked process. Open another manager there.
        HistoryError: as from the asyncio manager of the same URL.
    """

    def __init__(
        self, db_path: str | os.PathLike[str] = ":memory:", **options: Unpack[HistoryOptions]
    ) -> None:
        self.db_path = db_path
        path = sqlite_file(db_path)
        # Absolute: a later opening must find the same file after a change of directory.
        self._path = None if path is None else absolute(path)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        options = {**file_options(db_path), **options}
        # Checks the options before a thread starts.
        self._where = open_history(self._path or db_path, **options).backend.where
        self._store = LoopStore(db_path, self._path, options)
        self._thread = LoopThread(self._store.aclose)
        try:
            self._thread.call(self._store.open)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._thread.is_closed else "open"
        if not self._thread.is_in_own_process:
            state = "opened before the process forked"
        return f"<BlockingHistoryManager {self._where!r} {state}>"

    # Recording

    def add_history(
        self,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: Event | str,
        *,
        created_at: datetime | str | None = None,
        updated_at: datetime | str | None = None,
        is_deleted: int = 0,
        actor_id: str | None = None,
        role: str | None = None,
        owner: Owner | Mapping[str, str | None] | None = None,
        context: Mapping[str, Any] | None = None,
        cause: Mapping[str, str] | None = None,
    ) -> None:
        """Record one change of a memory.

        Args:
            memory_id: the memory that changed.
            old_memory: its text before; None for an ADD.
            new_memory: its text after; None for a DELETE.
            event: ADD, UPDATE or DELETE.
            created_at: when the memory was created: a datetime, or ISO 8601 text.
            updated_at: when it was changed.
            is_deleted: 1 if the memory is deleted by this change.
            actor_id: who changed it.
            role: the role of the actor.
            owner: the memory's owner; see `HistoryManager.add_history`. Values of owner, context
                and cause that cannot be stored are refused, not replaced.
            context: the memory's metadata after the change, as JSON values.
            cause: why it was changed: short texts under keys of your choice.

        Raises:
            OwnerConflict: the memory has another owner; nothing was written.
        """
        given = {
            "memory_id": memory_id,
            "old_memory": old_memory,
            "new_memory": new_memory,
            "event": event,
            "created_at": created_at,
            "updated_at": updated_at,
            "is_deleted": is_deleted,
            "actor_id": actor_id,
            "role": role,
            "owner": owner,
            "context": context,
            "cause": cause,
        }
        with Sanitizer() as sanitizer:
            submission = checked_records([sanitizer.record(given)])
        self._call(lambda manager: manager.store.writer.submit(submission))

    def batch_add_history(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Record many changes, all or none and in order.

        Args:
            records: mappings with mem0's column names, and `owner`, `context` and `cause` as in
                `add_history`. Other keys are ignored, as in mem0.

        Raises:
            OwnerConflict: a memory has another owner; nothing was written.
        """
        with Sanitizer() as sanitizer:
            submission = checked_records(sanitizer.records(records))
        if submission.records:
            self._call(lambda manager: manager.store.writer.submit(submission))
        else:
            self._call(lambda manager: manager.batch_add_history([]))

    def update_history(
        self,
        memory_id: str,
        new_memory: str,
        *,
        updated_at: datetime | str | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        owner: Owner | Mapping[str, str | None] | None = None,
        context: Mapping[str, Any] | None = None,
        cause: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Record a memory's new text; return the record, as `get_history` does.

        The record is an UPDATE whose `old_memory` is the latest text, or an ADD if the memory does
        not exist: see `HistoryManager.update_history`.

        Args:
            memory_id: the memory that changed.
            new_memory: its new text.
            updated_at: when it was changed; default: now.
            actor_id: who changed it.
            role: the role of the actor.
            owner, context, cause: as in `add_history`.

        Raises:
            OwnerConflict: the memory has another owner; nothing was written.
        """
        with Sanitizer() as sanitizer:
            memory = sanitizer.text("memory_id", memory_id)
            text = sanitizer.text("new_memory", new_memory)
            actor, actors_role = sanitizer.text("actor_id", actor_id), sanitizer.text("role", role)
        return self._call(
            lambda manager: manager.update_history(
                memory,
                text,
                updated_at=updated_at,
                actor_id=actor,
                role=actors_role,
                owner=owner,
                context=context,
                cause=cause,
            )
        ).as_dict()

    def save_messages(self, messages: Iterable[Mapping[str, Any]], session_scope: str) -> None:
        """Append messages to a session scope's buffer, which keeps the last ten.

        Args:
            messages: mappings with role, content and name. Content that is not text is stored as
                JSON.
            session_scope: the scope, as mem0 names it.
        """
        with Sanitizer() as sanitizer:
            to_store = [sanitizer.message(message) for message in messages or ()]
            scope = sanitizer.text("session_scope", session_scope)
        if to_store:
            submission = checked_messages(to_store, check_name("session_scope", scope))
            self._call(lambda manager: manager.store.writer.submit(submission))

    # Reading

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's records, in the order of recording.

        Args:
            memory_id: the memory.
        """
        memory = Sanitizer().text("memory_id", memory_id)
        return [record.as_dict() for record in self._call(lambda m: m.get_history(memory))]

    def get_last_messages(
        self, session_scope: str, limit: int = MESSAGES_KEPT
    ) -> list[dict[str, Any]]:
        """Return the last messages of a session scope, in the order of saving.

        Args:
            session_scope: the scope.
            limit: the largest number of messages.
        """
        scope = Sanitizer().text("session_scope", session_scope)
        found = self._call(lambda manager: manager.get_last_messages(scope, limit))
        return [message_as_given(message) for message in found]

    query_history = iterating(HistoryManager.query_history)
    count_history = waiting(HistoryManager.count_history)
    memories = iterating(HistoryManager.memories)
    memories_at = iterating(HistoryManager.memories_at)
    memory_at = waiting(HistoryManager.memory_at)
    diff = waiting(HistoryManager.diff)
    check = waiting(HistoryManager.check)

    # Taking back and erasing

    restore = waiting(HistoryManager.restore)
    rollback = waiting(HistoryManager.rollback)
    undo = waiting(HistoryManager.undo)
    erase = waiting(HistoryManager.erase)
    erasures = waiting(HistoryManager.erasures)
    operations = waiting(HistoryManager.operations)

    @property
    def encryption(self) -> BlockingEncryption:
        """The keys of an encrypted history."""
        return BlockingEncryption(self._call)

    @property
    def ledger(self) -> BlockingLedger:
        """The ledger; without one, its calls raise `InvalidInput`."""
        return BlockingLedger(self._call)

    # The file

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None without a file, and after closing.

        For a history in memory, each access returns a new copy of it.
        """
        self._thread.require_own_process()
        with self._lock:
            if self._thread.is_closed or not self._store.is_sqlite:
                return None
            if self._path is None:
                return self._copy_of_memory()
            if self._connection is None:
                self._connection = self._connect(self._path)
            return self._connection

    def _connect(self, path: Path) -> sqlite3.Connection:
        with typed_errors(str(path)):
            # Not read-only: mem0 1.0 drops its table through it.
            connection = connect(path, "rw")
            connection.is_lent = True
            milliseconds = min(round(self._store.lock_timeout_s * 1_000), _LONGEST_MS)
            connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            # Only the manager's connection checkpoints: two of them could lose commits.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def _copy_of_memory(self) -> sqlite3.Connection:
        # A new copy each time: SQLite cannot safely overwrite one that a thread is reading.
        copy = sqlite3.connect(":memory:", check_same_thread=False, factory=_Copy)
        self._thread.call(self._store.copy_memory, copy)
        return copy

    def _call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        result: T = self._thread.call(self._store.call, function)
        return result

    # Reset and closing

    def reset(self) -> None:
        """Empty the store. A SQLite file then has neither table until the next call.

        Earlier calls are completed before it; later calls wait for it.
        """
        self._thread.call(self._store.reset)

    def close(self) -> None:
        """Refuse new calls, complete the running ones, and close the store. Idempotent."""
        self._thread.require_own_process()
        if not sys.is_finalizing():  # the loop's thread has ended by then
            self._close_nowait()
            self._thread.join()

    def __del__(self) -> None:
        # It may run in any thread, also in the loop's, so it must not wait.
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and thread.is_in_own_process and not sys.is_finalizing():
            self._close_nowait()

    def _close_nowait(self) -> None:
        self._thread.stop()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Copy(sqlite3.Connection):
    """A connection that closes itself when its last reference is gone."""

    def __del__(self) -> None:
        self.close()
