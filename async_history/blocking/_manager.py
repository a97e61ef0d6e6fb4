"""The synchronous face: mem0's `SQLiteManager` in signature and behaviour, over any URL.

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

from async_history._core.loop_thread import LoopThread
from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.records import Event, check_name
from async_history._core.submissions import MESSAGES_KEPT, checked_messages, checked_records
from async_history._opening import file_options, open_history, sqlite_file
from async_history._sqlite.errors import absolute, connect, typed_errors
from async_history.blocking._sanitize import Sanitizer, message_as_given
from async_history.blocking._store import LoopStore

T = TypeVar("T")

_LONGEST_MS: Final = 2**31 - 1
"""The longest that SQLite can be told to wait for a lock."""


class BlockingHistoryManager:
    """A history for code that does not await: from any thread, inside a running loop or outside.

    Args:
        db_path: whatever `open_history` takes, `":memory:"` too.
        options: the backend's keyword arguments, as `open_history` takes them.

    Each call returns when its work is done, and writes when they are durable. Text that no
    database can hold (NUL, lone surrogates) is replaced by U+FFFD, and a value that is not text
    becomes text (a list or a mapping JSON), with one warning a call.

    Raises:
        HistoryClosed: by every call after `close`.
        WrongLoop: by every call in a forked process; open another there.
        HistoryError: as the manager of the same URL raises it.
    """

    def __init__(
        self, db_path: str | os.PathLike[str] = ":memory:", **options: Unpack[HistoryOptions]
    ) -> None:
        self.db_path = db_path
        path = sqlite_file(db_path)
        # Absolute, for what is opened later must be the same file if the folder has changed.
        self._path = None if path is None else absolute(path)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        options = {**file_options(db_path), **options}
        # Checks them before a thread begins.
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
    ) -> None:
        """Record one change of a memory."""
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
        }
        with Sanitizer() as mending:
            submission = checked_records([mending.record(given)])
        self._call(lambda manager: manager.store.writer.submit(submission))

    def batch_add_history(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Record many changes, all or none and in order. Keys that mem0 ignores are ignored."""
        with Sanitizer() as mending:
            submission = checked_records(mending.records(records))
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
    ) -> dict[str, Any]:
        """Record that a memory says something else now; return the record, as `get_history` does.

        It is an UPDATE whose `old_memory` is what the memory said before, or an ADD where it was
        not there: see `HistoryManager.update_history`.
        """
        with Sanitizer() as mending:
            memory = mending.text("memory_id", memory_id)
            text = mending.text("new_memory", new_memory)
            who = {
                "actor_id": mending.text("actor_id", actor_id),
                "role": mending.text("role", role),
            }
        return self._call(
            lambda manager: manager.update_history(memory, text, updated_at=updated_at, **who)
        ).as_dict()

    def save_messages(self, messages: Iterable[Mapping[str, Any]], session_scope: str) -> None:
        """Append messages to a session scope's rolling buffer, which keeps the last ten."""
        with Sanitizer() as mending:
            to_store = [mending.message(message) for message in messages or ()]
            scope = mending.text("session_scope", session_scope)
        if to_store:
            submission = checked_messages(to_store, check_name("session_scope", scope))
            self._call(lambda manager: manager.store.writer.submit(submission))

    # Reading

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's records, in the order in which they were recorded."""
        memory = Sanitizer().text("memory_id", memory_id)
        return [record.as_dict() for record in self._call(lambda m: m.get_history(memory))]

    def get_last_messages(
        self, session_scope: str, limit: int = MESSAGES_KEPT
    ) -> list[dict[str, Any]]:
        """Return the last `limit` messages of a session scope, in the order they were saved."""
        scope = Sanitizer().text("session_scope", session_scope)
        found = self._call(lambda manager: manager.get_last_messages(scope, limit))
        return [message_as_given(message) for message in found]

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None where there is none, and once closed.

        Of a history in memory each reading of this attribute gives a copy, as it is then.
        """
        self._thread.require_own_process()
        with self._lock:
            if self._thread.is_closed or not self._store.is_sqlite:
                return None
            if self._path is None:
                return self._copy_of_memory()
            if self._connection is None:
                self._connection = self._connected(self._path)
            return self._connection

    def _connected(self, path: Path) -> sqlite3.Connection:
        with typed_errors(str(path)):
            # Not read-only: mem0 1.0 drops its table through it.
            connection = connect(path, "rw")
            connection.is_lent = True
            milliseconds = min(round(self._store.lock_timeout_s * 1_000), _LONGEST_MS)
            connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            # Two that copy the log into the file can lose commits: the manager's does.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def _copy_of_memory(self) -> sqlite3.Connection:
        # Not one copy that is renewed: SQLite can't, safely, while any thread reads it.
        copy = sqlite3.connect(":memory:", check_same_thread=False, factory=_Copy)
        self._thread.call(self._store.copy_memory, copy)
        return copy

    def _call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        result: T = self._thread.call(self._store.call, function)
        return result

    # Life

    def reset(self) -> None:
        """Empty the store. A SQLite file has neither table then, until the next call.

        Calls before it are completed, calls after it wait for it.
        """
        self._thread.call(self._store.reset)

    def close(self) -> None:
        """Refuse new calls, complete those under way, and let go of the store. Idempotent."""
        self._thread.require_own_process()
        if not sys.is_finalizing():  # the loop's thread runs no more then
            self._let_go()
            self._thread.join()

    def __del__(self) -> None:
        # On any thread, also the loop's own: nothing here may wait.
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and thread.is_in_own_process and not sys.is_finalizing():
            self._let_go()

    def _let_go(self) -> None:
        self._thread.leave()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Copy(sqlite3.Connection):
    """Closes itself when nobody uses it any more."""

    def __del__(self) -> None:
        self.close()
