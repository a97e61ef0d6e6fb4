"""The synchronous face: mem0's `SQLiteManager` in signature and behaviour, over any URL.

    history = BlockingHistoryManager("history.db")
    history.add_history("memory-1", None, "likes tea", "ADD")

Lives here: the calls, the loop thread of each object, mem0's kind of reset, and what mem0 accepts
that the contract refuses. Not here: how anything is stored.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from anyio import to_thread
from anyio.from_thread import BlockingPortal

from async_history._sqlite import connect, typed_errors, wait_for_lock
from async_history.backends.sqlite import LOCK_TIMEOUT_S, SQLiteHistoryManager
from async_history.errors import CommitUnknown, HistoryClosed, WrongLoop
from async_history.manager import CLOSE_TIMEOUT_S, HistoryManager
from async_history.opening import open_history, postgres_schema, sqlite_file
from async_history.records import Event, parse_time
from async_history.submissions import MESSAGES_KEPT

T = TypeVar("T")

_log = logging.getLogger("async_history")

_LONGEST_CLOSE_S: Final = 2 * CLOSE_TIMEOUT_S
"""A manager's closing is bounded itself; past this it is not believed, and calls are cancelled."""
_EXIT_S: Final = 1.0
"""How long the end of the program waits for the calls of daemon threads, and for closing."""
_BUSY_MS: Final = 5_000
"""How long `connection` waits for a lock: as long as the one that mem0 opens."""
_DROP_TABLES: Final = """
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS history;
DROP TABLE IF EXISTS messages;
COMMIT;
"""


class BlockingHistoryManager:
    """A history for code that does not await: from any thread, inside a running loop or outside.

    Args:
        db_path: whatever `open_history` takes, `":memory:"` too.
        options: the backend's keyword arguments, as `open_history` takes them.

    Each call returns when its work is done, and writes when they are durable. Text that no
    database can hold (NUL, lone surrogates) is replaced by U+FFFD with one warning a call.

    Raises:
        HistoryClosed: by every call after `close`.
        WrongLoop: by every call in a forked process; open another there.
        HistoryError: as the manager of the same URL raises it.
    """

    def __init__(self, db_path: str | os.PathLike[str] = ":memory:", **options: Any) -> None:
        self.db_path = db_path
        path = sqlite_file(db_path)
        # Absolute, for what is opened later must be the same file if the folder has changed.
        self._path = None if path is None else path.absolute()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._store = _Store(db_path, self._path, options)
        self._thread = _LoopThread(self._store.aclose)
        try:
            self._thread.call(self._store.open)
        except BaseException:
            self.close()
            raise

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
        with Mending() as mending:
            mended = mending.record(given)
        self._call(lambda manager: manager.add_history(**mended))

    def batch_add_history(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Record many changes, all or none and in order. Keys that mem0 ignores are ignored."""
        with Mending() as mending:
            mended = [mending.record(record) for record in records]
        self._call(lambda manager: manager.batch_add_history(mended))

    def save_messages(self, messages: Iterable[Mapping[str, Any]], session_scope: str) -> None:
        """Append messages to a session scope's rolling buffer, which keeps the last ten."""
        with Mending() as mending:
            mended = [mending.message(message) for message in messages or ()]
            scope = mending.text("session_scope", session_scope)
        if mended:
            self._call(lambda manager: manager.save_messages(mended, scope))

    # Reading

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's records, in the order in which they were recorded."""
        memory = Mending().text("memory_id", memory_id)
        return [record.as_dict() for record in self._call(lambda m: m.get_history(memory))]

    def get_last_messages(
        self, session_scope: str, limit: int = MESSAGES_KEPT
    ) -> list[dict[str, Any]]:
        """Return the last `limit` messages of a session scope, in the order they were saved."""
        scope = Mending().text("session_scope", session_scope)
        found = self._call(lambda manager: manager.get_last_messages(scope, limit))
        return [message.as_dict() for message in found]

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
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
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
        thread: _LoopThread | None = getattr(self, "_thread", None)
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


class _LoopThread:
    """An event loop on a thread of its own, which runs what other threads call until told to end.

    Not `anyio.from_thread.start_blocking_portal`: it can only be left by waiting for its end, which
    a garbage collection must not, and up to anyio 4.4 at least the program's exit waits for it.
    Threads that begin on a daemon thread, a connection's for one, are daemons too: none of them
    keeps the program alive, and they serve its other threads until the last of those has ended.

    Args:
        finish: run at the end, when no further calls come.
    """

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._finish = finish
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._entering = 0
        self.is_closed = False
        self._told, self._all_entered = asyncio.Event(), asyncio.Event()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="async_history blocking", daemon=True
        )
        self._thread.start()
        started.result()

    def _run(self, started: "concurrent.futures.Future[None]") -> None:
        _loop_threads.add(self)
        try:
            anyio.run(self._serve, started)
        except BaseException as error:
            if started.done():
                _log.exception("the history's loop thread died")
            else:
                started.set_exception(error)
        finally:
            _loop_threads.discard(self)

    async def _serve(self, started: "concurrent.futures.Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        async with BlockingPortal() as self._portal:
            started.set_result(None)
            await self._told.wait()
            with anyio.move_on_after(_LONGEST_CLOSE_S):
                await self._all_entered.wait()
                await self._finish()
            await self._portal.stop(cancel_remaining=True)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine function on the loop and return its result."""
        self.require_own_process()
        if threading.current_thread() is self._thread:
            raise WrongLoop("this is the history's own loop thread, which can't wait for itself")
        try:
            return self._entered(function, args).result()
        except concurrent.futures.CancelledError as error:
            raise CommitUnknown("the history was closed while the call was under way") from error

    def _entered(
        self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> "concurrent.futures.Future[T]":
        """Hand a call to the loop, which does not end before it has taken it."""
        with self._lock:
            if self.is_closed:
                raise HistoryClosed("the history is closed; open another")
            self._entering += 1
        try:
            return self._portal.start_task_soon(function, *args)
        except RuntimeError as error:
            raise HistoryClosed("the history's loop thread has ended; open another") from error
        finally:
            with self._lock:
                self._entering -= 1
                self._say_if_all_entered()

    def leave(self) -> None:
        """Refuse new calls and tell the thread to end, without waiting for it."""
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._say(self._told)
                self._say_if_all_entered()

    def join(self, within_s: float | None = None) -> None:
        """Wait for the thread's end, where it can be waited for."""
        if threading.current_thread() is not self._thread:
            self._thread.join(within_s)

    def _say_if_all_entered(self) -> None:
        if self.is_closed and not self._entering:
            self._say(self._all_entered)

    def _say(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(event.set)

    @property
    def is_in_own_process(self) -> bool:
        return os.getpid() == self._process

    def require_own_process(self) -> None:
        if not self.is_in_own_process:
            raise WrongLoop(
                "this history was opened before the process forked; open one in the process that "
                "uses it"
            )


_loop_threads: set[_LoopThread] = set()


@atexit.register
def _leave_all() -> None:
    """Close what the program has left open, now that its own threads have ended."""
    threads = [thread for thread in _loop_threads.copy() if thread.is_in_own_process]
    deadline = time.monotonic() + _EXIT_S
    for thread in threads:
        thread.leave()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class _Store:
    """The manager, on its loop: opened when it is needed, and shut while it is reset."""

    def __init__(
        self, url: str | os.PathLike[str], path: Path | None, options: Mapping[str, Any]
    ) -> None:
        self._url = path or url
        self._path = path
        self._options = options
        self._is_server = postgres_schema(url) is not None
        self.is_sqlite = False
        self._manager: HistoryManager | None = None
        self._closed = False
        self._turn = asyncio.Lock()  # nobody enters during an opening or a reset
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        async with self._turn:
            await self._opened()

    async def call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        async with self._turn:
            manager = await self._opened()
            self._running += 1
            self._idle.clear()
        try:
            return await function(manager)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _opened(self) -> HistoryManager:
        if self._closed:
            raise HistoryClosed("the history was closed before this call's turn")
        if self._manager is None:
            self._manager = open_history(self._url, **self._options)
            self.is_sqlite = isinstance(self._manager, SQLiteHistoryManager)
            try:
                await self._manager
            except BaseException:
                self._manager = None
                raise
        return self._manager

    async def reset(self) -> None:
        """Empty a server's schema, which others use too; forget anything else, tables and all."""
        if self._is_server:
            await self.call(lambda manager: manager.reset())
            return
        async with self._turn:
            await self._idle.wait()
            if self._closed:
                raise HistoryClosed("the history was closed before this call's turn")
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.aclose()
            if self._path is not None:
                await to_thread.run_sync(_drop_tables, self._path, abandon_on_cancel=True)

    async def copy_memory(self, target: sqlite3.Connection) -> None:
        """Copy a database in memory into another."""
        async with self._turn:
            manager = self._manager
            if isinstance(manager, SQLiteHistoryManager):
                async with manager._turn:
                    if manager._writing is not None:
                        await manager._writing.backup(target)

    async def aclose(self) -> None:
        self._closed = True
        if self._manager is not None:
            await self._manager.aclose()
        # Calls, and what a manager that could not wait left to end by itself: a loop that ended
        # before them would cancel them.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def _drop_tables(path: Path) -> None:
    """Drop mem0's two tables, as its own reset does."""
    with typed_errors(str(path)), closing(connect(path, "rw")) as connection:
        wait_for_lock(lambda: connection.executescript(_DROP_TABLES), LOCK_TIMEOUT_S)


class Mending:
    """Makes what mem0 hands in storable, and says at the end, once, what had to be changed."""

    def __init__(self) -> None:
        self._changed: dict[str, None] = {}

    def __enter__(self) -> "Mending":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._changed:
            _log.warning("recorded with changes: %s", "; ".join(self._changed))

    def record(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a history record's columns; its id is ours to give, as in mem0."""
        record = {name: self.text(name, given.get(name)) for name in _RECORD_TEXTS}
        record.update((name, self.time(name, given.get(name))) for name in _RECORD_TIMES)
        return record | {
            "event": given.get("event"),
            "is_deleted": bool(given.get("is_deleted", 0)),
        }

    def message(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message's columns."""
        return {
            "role": self.text("role", given.get("role")),
            "content": self.content(given.get("content")),
            "name": self.text("name", given.get("name")),
        }

    def content(self, value: Any) -> Any:
        """Return a message's content."""
        return self.text("content", value)

    def text(self, name: str, value: Any) -> Any:
        """Return a value as a column of text keeps it; what is neither text nor number, as it is.

        SQLite turns a number into text there; every other store would refuse it.
        """
        if isinstance(value, str):
            mended, count = _UNSTORABLE.subn("\ufffd", value)
            if count:
                self._changed[f"{name} had characters that no database holds, now U+FFFD"] = None
            return mended
        if isinstance(value, int | float):
            return str(int(value) if isinstance(value, bool) else value)
        return value

    def time(self, name: str, value: Any) -> datetime | str | None:
        """Return a time as the contract takes it; for what is none, none."""
        if value is None or isinstance(value, datetime):
            return value
        if isinstance(value, str) and "-" in value and parse_time(value) is not None:
            return value
        self._changed[f"{name} was no time, and is left out: {value!r:.60}"] = None
        return None


_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_RECORD_TEXTS: Final = ("memory_id", "old_memory", "new_memory", "actor_id", "role")
_RECORD_TIMES: Final = ("created_at", "updated_at")
