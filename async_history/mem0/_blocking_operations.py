"""The history that `Memory` gives to mem0, and its operations.

mem0 only logs when its history cannot be written, so a change without a record looks complete. Here
the error is kept and raised at the end of the operation.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.records.recording import begun_at, operation
from async_history._core.telemetry import memory_operation
from async_history._core.wording import counted
from async_history._opening import from_any_folder, open_history
from async_history.blocking import BlockingHistoryManager
from async_history.errors import HistoryClosed, HistoryError
from async_history.mem0._add_history import AddHistory
from async_history.mem0._errors import Unwritten
from async_history.mem0._late_changes import raise_unwritten, take_back
from async_history.mem0._recorder import to_submit
from async_history.mem0._steps import ThreadSteps
from async_history.mem0._threads.forks import forget_in_child, keep_inherited
from async_history.mem0._tracing import in_trace
from async_history.mem0._turns.erased_here import erased_here
from async_history.mem0._turns.new_memories import NewMemories
from async_history.mem0._turns.store_turns import NO_TURNS, turns_of
from async_history.mem0._turns.turns import current_turn
from async_history.mem0._vectors.payloads import Payload

T = TypeVar("T")
_log = logging.getLogger("async_history")

_CLOSE_TIMEOUT_S: Final = 10.0
"""Seconds for which closing waits for operations in other threads."""


class _Store(BlockingHistoryManager):
    """A `BlockingHistoryManager` that can call any method of its underlying manager."""

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return self._call(function)


class BlockingRecorder(AddHistory):
    """Replaces mem0's `SQLiteManager`, in any thread.

    Args:
        where: a URL, as `open_history` takes it.
        options: the other options of `open_history`.
        between_processes: whether operations on one memory are serialized with those of other
            processes.

    Raises:
        InvalidInput: the URL or an option is not valid.
    """

    is_resetting = False
    """Whether mem0 is resetting. Up to 2.0.6 it drops its table through `connection`."""
    resets = 0
    """Number of resets so far."""

    def __init__(
        self,
        where: str | os.PathLike[str],
        options: HistoryOptions,
        *,
        between_processes: bool = True,
    ) -> None:
        self.db_path = where
        self._url = from_any_folder(where)  # opened later, maybe after a change of directory
        self._options = options
        checked = open_history(self._url, **options)
        self.shown = checked.backend.where
        self._turns = turns_of(checked, between_processes=between_processes)
        self.erased_here = erased_here(self._turns.queues)
        self._is_closed = False
        self._store: _Store | None = None
        self._set_up()
        forget_in_child(self)

    def create(self) -> None:
        """Create or adopt the store, and close it again: the process may fork before it is used."""
        _Store(self._url, **self._options).close()

    def _set_up(self) -> None:
        self._thread_state = threading.local()
        self._running = 0
        self._lock = threading.Lock()
        self._operation_ended = threading.Condition(self._lock)

    def forget(self) -> None:
        """Start unopened in a forked child, which opens the store for itself."""
        self._set_up()
        if self._store is not None:
            keep_inherited(self._store)
            self._store = None

    # Operations

    def run(
        self,
        memory: Any,
        name: str,
        body: Callable[[], T],
        memory_id: str | None = None,
        *,
        within: str | None = None,
    ) -> T:
        """Run one of a memory's operations in this thread, until its last record is written.

        Args:
            name, memory_id: its name in telemetry, and its memory if there is exactly one.
            within: the name of the operation in another thread that this is part of.

        Raises:
            Erased: its records were refused, because an owner was erased meanwhile. Its changes
                were removed from the vector store again.
            HistoryNotWritten: its history was not written. The error has the result of `body`.
            HistoryError: the store is closed, or cannot be opened or written (see
                `HistoryManager.require_writable`). `body` was not called.
        """
        if self._unwritten is not None:
            within = self._thread_state.name  # it is part of another operation
            with memory_operation(name, self.shown, memory_id, within=within) as note_memory:
                made = body()
                if memory_id is None:
                    note_memory(made)
                return made
        with memory_operation(name, self.shown, memory_id, within=within):
            return self._run(memory, name, body)

    @property
    def running(self) -> str | None:
        """The name of the operation in this thread; None outside an operation."""
        name: str | None = None if self._unwritten is None else self._thread_state.name
        return name

    def _run(self, memory: Any, name: str, body: Callable[[], T]) -> T:
        with self._count_running():
            self._open_store().ask(_require_writable)
            unwritten = self._thread_state.unwritten = list[Unwritten]()
            self._thread_state.name = name
            self._thread_state.payloads = {}
            new = self._thread_state.new = NewMemories(self._turns, self, None)
            self._thread_state.refusal = None
            try:
                with operation(), in_trace():
                    result = body()
            except BaseException as error:
                for failure, _ in unwritten:
                    _log.error("the history of a failed operation was not written: %s", failure)
                run_to_completion(take_back(ThreadSteps(memory, self), unwritten))
                refusal = self._thread_state.refusal
                if refusal not in (None, error) and isinstance(error, Exception):
                    raise refusal from error
                raise
            finally:
                self._thread_state.unwritten = None
                self._thread_state.payloads = None
                self._thread_state.new = None
                new.end()
        run_to_completion(take_back(ThreadSteps(memory, self), unwritten))
        raise_unwritten(result, unwritten)
        if self._thread_state.refusal is not None:  # mem0 only logs it
            raise self._thread_state.refusal
        return result

    @property
    def _unwritten(self) -> list[Unwritten] | None:
        """What the operation in this thread could not write; None outside an operation."""
        return getattr(self._thread_state, "unwritten", None)

    @property
    def payloads(self) -> dict[str, Payload] | None:
        """The payloads that the operation in this thread has noted; None outside an operation."""
        return getattr(self._thread_state, "payloads", None)

    @property
    def new(self) -> NewMemories | None:
        """What the operation in this thread has begun to add; None outside an operation."""
        return getattr(self._thread_state, "new", None)

    def require_not_erased(self, memory_id: str, payload: Payload) -> None:
        """Check that a memory's owner was not forgotten here since the operation began.

        Raises:
            Erased: it was forgotten. If mem0 only logs this, the operation raises it.
        """
        with self._keep_refusal():
            self.erased_here.require_not_erased(memory_id, payload, begun_at())

    @contextmanager
    def _count_running(self) -> Iterator[None]:
        with self._lock:
            self._require_open()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._operation_ended.notify_all()
                is_last = self._is_closed and not self._running
            if is_last:
                self._close_opened()

    def _require_open(self) -> None:
        if self._is_closed:
            raise HistoryClosed("this Memory is closed; make another")

    def _open_store(self) -> _Store:
        with self._lock:
            if self._unwritten is None and not self._running:
                self._require_open()
            if self._store is None:
                self._store = _Store(self._url, **self._options)
            return self._store

    @contextmanager
    def turn_of(self, memory_id: str) -> Iterator[None]:
        """Hold a memory's turn. If mem0 only logs its error, the operation raises it.

        Raises:
            StorageLocked: another process has had the turn for too long, or waiting would block a
                loop that the turn needs.
            StorageError: the turn cannot be taken.
        """
        with ExitStack() as turns:
            if not self.has_turn_of(memory_id):
                with self._keep_refusal():
                    turns.enter_context(self._turns.of(memory_id, self))
            yield

    def has_turn_of(self, memory_id: str) -> bool:
        """Return whether this thread is already changing or adding this memory."""
        return memory_id in (self.new or ()) or self._turns.is_held_here(memory_id)

    def require_turn(self) -> None:
        """Check, before the vector store changes, that the current turn, if any, is not lost.

        Raises:
            StorageLocked: another process may have this memory's turn. The memory has not changed.
        """
        turn = current_turn.get()
        if turn is not None:
            with self._keep_refusal():
                turn.require_kept()

    def begin_change(self) -> None:
        """Check the turn like `require_turn`, for the last time in this turn."""
        self.require_turn()
        self._note_change()

    @staticmethod
    def _note_change() -> None:
        turn = current_turn.get()
        if turn is not None:
            turn.has_changed = True

    @contextmanager
    def _keep_refusal(self) -> Iterator[None]:
        """Keep an error for the end of the operation, because mem0 may only log it."""
        try:
            yield
        except HistoryError as error:
            self._thread_state.refusal = error
            raise

    # Calls of mem0

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None without a file."""
        return None if self.is_resetting else self._open_store().connection

    def batch_add_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record many changes, all or none and in order."""
        if records:
            self._record(records)

    def _record(self, changes: Sequence[Mapping[str, Any]]) -> None:
        self._note_change()  # the vector store changed before
        submission, sent = to_submit(changes, {} if self.payloads is None else self.payloads)
        self._write(lambda store: store.ask(lambda m: m.store.writer.submit(submission())), sent)
        if self.new is not None:
            for change in changes:
                self.new.recorded(str(change["memory_id"]))

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Append messages to a session scope's buffer."""
        self._write(lambda store: store.save_messages(messages, session_scope), ())

    def _write(self, write: Callable[[_Store], object], records: Sequence[Any]) -> None:
        """Write now; within an operation, keep an error until its end."""
        try:
            write(self._open_store())
        except HistoryError as error:
            if self._unwritten is None:
                raise
            self._unwritten.append((error, records))

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's records, in the order of recording."""
        return self._open_store().get_history(memory_id)

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the last messages of a session scope, in the order of saving."""
        return self._open_store().get_last_messages(session_scope, limit)

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Call a function with the manager, on its loop."""
        return self._open_store().ask(function)

    def reset(self) -> None:
        """Empty the store."""
        self.resets += 1
        store = self._open_store()
        store.reset()
        store.get_last_messages("")  # creates the tables again, for readers of `connection`

    def close(self) -> None:
        """Do nothing: mem0's reset closes its history, and this one stays open."""

    # Closing

    def close_store(self) -> None:
        """Refuse new operations, wait for those in other threads, and close. Idempotent.

        Operations that take longer than `_CLOSE_TIMEOUT_S` are logged. The store is closed after
        the last of them.
        """
        own = 0 if self._unwritten is None else 1
        with self._lock:
            self._is_closed = True
            self._operation_ended.wait_for(lambda: self._running <= own, _CLOSE_TIMEOUT_S)
            left = self._running
        if left > own:
            _log.error(
                "closing left %s of Memory running after %g s; the history is written at the end",
                counted(left - own, "operation"),
                _CLOSE_TIMEOUT_S,
            )
        if not left:
            self._close_opened()

    def _close_opened(self) -> None:
        self._turns = NO_TURNS
        if self._store is not None:
            self._store.close()


async def _require_writable(manager: HistoryManager) -> None:
    manager.require_writable()
