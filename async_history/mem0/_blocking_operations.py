"""What `Memory` gives mem0 as its history: opened when it is used, and told what becomes of it.

mem0's `Memory` logs at most when its history can't be written, so that its caller is told of a
change that has no record. Here a failure is kept until the operation ends, and raised then.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._opening import from_any_folder, open_history
from async_history.blocking import BlockingHistoryManager
from async_history.errors import HistoryClosed, HistoryError
from async_history.mem0._errors import Unwritten, history_not_written
from async_history.mem0._forks import forget_in_child, keep_inherited
from async_history.mem0._locks import NO_TURNS, current_turn, turns_of
from async_history.mem0._operation import to_submit

T = TypeVar("T")
_log = logging.getLogger("async_history")

_CLOSE_TIMEOUT_S: Final = 10.0
"""How long closing waits for operations that run in other threads."""


class _Store(BlockingHistoryManager):
    """A store that is also asked what mem0's `SQLiteManager` has no call for."""

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return self._call(function)


class BlockingRecorder:
    """What mem0 takes for its `SQLiteManager`, from any thread.

    Args:
        where: a URL, as `open_history` takes it.
        options: what it takes besides.
        between_processes: whether operations take turns with those of other processes.

    Raises:
        InvalidInput: at once, where the URL or an option can't be used.
    """

    is_resetting = False
    """Whether mem0 resets: up to 2.0.6 it drops its table through a `connection` it finds."""
    resets = 0
    """How often it was reset."""

    def __init__(
        self,
        where: str | os.PathLike[str],
        options: HistoryOptions,
        *,
        between_processes: bool = True,
    ) -> None:
        self.db_path = where
        self._url = from_any_folder(where)  # it is opened later
        self._options = options
        checked = open_history(self._url, **options)
        self._turns = turns_of(checked, between_processes=between_processes)
        self._is_closed = False
        self._store: _Store | None = None
        self._begin()
        forget_in_child(self)

    def create(self) -> None:
        """Make or adopt what is to be written, and leave it closed: a child may fork meanwhile."""
        _Store(self._url, **self._options).close()

    def _begin(self) -> None:
        self._of_thread = threading.local()
        self._running = 0
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)

    def forget(self) -> None:
        """Begin again in a forked child, which opens the store for itself."""
        self._begin()
        if self._store is not None:
            keep_inherited(self._store)
            self._store = None

    # Operations

    def run(self, body: Callable[[], T]) -> T:
        """Run one of mem0's operations, on this thread, to its last record.

        Raises:
            HistoryNotWritten: with what `body` returned, where its history was not written.
            HistoryError: the store can't be opened, is closed, or can't be written, as
                `HistoryManager.require_writable` tells. `body` was not called.
        """
        if self._unwritten is not None:
            return body()  # within another operation
        with self._admitted():
            self._opened().ask(_require_writable)
            unwritten = self._of_thread.unwritten = list[Unwritten]()
            self._of_thread.refusal = None
            try:
                result = body()
            except BaseException as error:
                for failure, _ in unwritten:
                    _log.error("the history of a failed operation was not written: %s", failure)
                refusal = self._of_thread.refusal
                if refusal not in (None, error) and isinstance(error, Exception):
                    raise refusal from error
                raise
            finally:
                self._of_thread.unwritten = None
        if unwritten:
            raise history_not_written(result, unwritten) from unwritten[0][0]
        if self._of_thread.refusal is not None:  # which mem0 has logged at most
            raise self._of_thread.refusal
        return result

    @property
    def _unwritten(self) -> list[Unwritten] | None:
        """What the operation on this thread could not write, None outside of an operation."""
        return getattr(self._of_thread, "unwritten", None)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        with self._lock:
            self._require_open()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._ended.notify_all()
                is_last = self._is_closed and not self._running
            if is_last:
                self._close_store()

    def _require_open(self) -> None:
        if self._is_closed:
            raise HistoryClosed("this Memory is closed; make another")

    def _opened(self) -> _Store:
        with self._lock:
            if self._unwritten is None and not self._running:
                self._require_open()
            if self._store is None:
                self._store = _Store(self._url, **self._options)
            return self._store

    @contextmanager
    def turn_of(self, memory_id: str) -> Iterator[None]:
        """Have this memory's turn; what keeps it from coming is told, where mem0 logs it at most.

        Raises:
            StorageLocked: another process has had it for too long, or it can't be waited for here.
            StorageError: it can't be asked for.
        """
        with ExitStack() as turns:
            if not self.has_turn_of(memory_id):
                with self._telling_refusal():
                    turns.enter_context(self._turns.of(memory_id, self))
            yield

    def has_turn_of(self, memory_id: str) -> bool:
        """Whether this thread has this memory's turn."""
        return self._turns.is_held_here(memory_id)

    def require_turn(self) -> None:
        """Ask before the vector store changes in a turn; nothing outside of one, or after that.

        Raises:
            StorageLocked: another process may have this memory's turn. Nothing of it has changed.
        """
        turn = current_turn.get()
        if turn is not None:
            with self._telling_refusal():
                turn.require_kept()

    def begin_change(self) -> None:
        """Ask, as `require_turn` does, and from now on no more."""
        self.require_turn()
        self._note_change()

    @staticmethod
    def _note_change() -> None:
        turn = current_turn.get()
        if turn is not None:
            turn.has_changed = True

    @contextmanager
    def _telling_refusal(self) -> Iterator[None]:
        """Let the operation raise this error at its end, also where mem0 logs it at most."""
        try:
            yield
        except HistoryError as error:
            self._of_thread.refusal = error
            raise

    # What mem0 calls

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None where there is none."""
        return None if self.is_resetting else self._opened().connection

    def add_history(
        self,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: str,
        *,
        created_at: str | None = None,
        updated_at: str | None = None,
        is_deleted: int = 0,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> None:
        """Record one change."""
        change = {
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
        self.batch_add_history([change])

    def batch_add_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record many changes, all or none and in order."""
        if records:
            self._note_change()  # the vector store's came before
            submission, kept = to_submit(records)
            self._write(
                lambda store: store.ask(lambda m: m.store.writer.submit(submission())), kept
            )

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Append messages to a session scope's buffer."""
        self._write(lambda store: store.save_messages(messages, session_scope), ())

    def _write(self, write: Callable[[_Store], object], records: Sequence[Any]) -> None:
        """Write now; within an operation a failure is kept for its end."""
        try:
            write(self._opened())
        except HistoryError as error:
            if self._unwritten is None:
                raise
            self._unwritten.append((error, records))

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's records, in the order in which they were recorded."""
        return self._opened().get_history(memory_id)

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the last messages of a session scope, in the order they were saved."""
        return self._opened().get_last_messages(session_scope, limit)

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Ask the manager what mem0's `SQLiteManager` has no call for."""
        return self._opened().ask(function)

    def reset(self) -> None:
        """Empty the store."""
        self.resets += 1
        store = self._opened()
        store.reset()
        store.get_last_messages("")  # makes its tables again, for who reads `connection`

    def close(self) -> None:
        """Do nothing: mem0's reset closes its history, and ours stays open. See `end`."""

    # Life

    def end(self) -> None:
        """Refuse new operations, wait for those of other threads, and close. Idempotent.

        What takes longer than `_CLOSE_TIMEOUT_S` is logged, and the store is closed after it.
        """
        own = 0 if self._unwritten is None else 1
        with self._lock:
            self._is_closed = True
            self._ended.wait_for(lambda: self._running <= own, _CLOSE_TIMEOUT_S)
            left = self._running
        if left > own:
            _log.error(
                "closing left %d operations of Memory that still run after %g s; their history is "
                "written when they end",
                left - own,
                _CLOSE_TIMEOUT_S,
            )
        if not left:
            self._close_store()

    def _close_store(self) -> None:
        self._turns = NO_TURNS
        if self._store is not None:
            self._store.close()


async def _require_writable(manager: HistoryManager) -> None:
    manager.require_writable()
