"""One public call of mem0: the records that its pipeline submits, and their acks.

mem0's pipeline calls its history from its own tasks and sometimes from worker threads. A context
variable says which operation a call belongs to.
"""

import asyncio
import functools
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from async_history._core.messages import Message
from async_history._core.recording import begun_at
from async_history._core.records import DETAILS, HistoryRecord, new_id, storable_record
from async_history._core.submissions import (
    AddRecords,
    Submission,
    checked_messages,
    checked_records,
)
from async_history._core.values import now_text
from async_history.blocking._sanitize import Sanitizer, complete_records, message_as_given
from async_history.errors import Erased, HistoryClosed, HistoryError, InvalidInput
from async_history.mem0._erased_here import ErasedHere
from async_history.mem0._errors import Unwritten
from async_history.mem0._payloads import Payload, with_details
from async_history.mem0._read_connection import ReadConnection
from async_history.mem0._tracing import in_trace
from async_history.mem0._turns import Turn, Turns, current_turn

_log = logging.getLogger("async_history")

current: "ContextVar[Operation | None]" = ContextVar("async_history_operation", default=None)
"""The operation that this task or thread belongs to."""


Call = Callable[[], "asyncio.Future[None] | Coroutine[Any, Any, object]"]
"""A call of a store, with its arguments."""

Records = Sequence[HistoryRecord | Mapping[str, Any]]


class SubmissionWriter(Protocol):
    """The part of `_core.backend.Writer` that an operation uses."""

    def submit(self, submission: Submission) -> "asyncio.Future[None]": ...


class SubmissionStore(Protocol):
    """The part of `_core.backend.Store` that an operation uses."""

    @property
    def writer(self) -> SubmissionWriter: ...

    def reset(self) -> "asyncio.Future[None]": ...


class OperationStore(Protocol):
    """The part of a history manager that an operation uses, on its own loop."""

    @property
    def store(self) -> SubmissionStore: ...

    def require_writable(self) -> None:
        """Raise the error that every write would raise; see `HistoryManager.require_writable`."""

    async def get_history(self, memory_id: str) -> list[HistoryRecord]: ...

    async def get_last_messages(self, session_scope: str) -> list[Message]: ...

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]: ...


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this thread is running this loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class LoopInbox:
    """Runs calls from any thread on the loop that created it, in order.

    Calls from the loop itself start at once. Calls from other threads wake the loop once for all
    that arrive before it runs: with hundreds of operations in worker threads, waking dominates.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[tuple[Operation, Call, Records, Turn | None]] = deque()
        self._is_woken = False

    def submit(
        self, operation: "Operation", call: Call, records: Records, turn: Turn | None
    ) -> None:
        """Start a call on the loop, before any later callback of this thread."""
        self._calls.append((operation, call, records, turn))
        if is_running(self._loop):
            self._run_calls()
        elif not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._run_calls)

    def _run_calls(self) -> None:
        self._is_woken = False
        while self._calls:
            operation, call, records, turn = self._calls.popleft()
            ack = _start(call)
            operation.acks[ack] = records
            if turn is not None:
                turn.note(ack)
            if operation.has_ended:
                ack.add_done_callback(_log_failure)


def _start(call: Call) -> "asyncio.Future[Any]":
    try:
        return asyncio.ensure_future(call())
    except Exception as error:  # raised by the ack, as for a call that fails later
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


def _log_failure(ack: "asyncio.Future[Any]") -> None:
    if not ack.cancelled() and ack.exception() is not None:
        _log.error(
            "a record that was submitted after the end of its operation was not written: %s",
            ack.exception(),
        )


class Operation:
    """One public call of mem0: its records and their acks.

    It is created on the loop and takes records from any thread. It can be cancelled until it first
    changes the vector store or the history, and between two of its parts, each of which changes one
    memory. Otherwise it runs to its end, so that each change of the vector store has its record.

    Args:
        name: mem0's name of the call.
        memory: the `AsyncMemory` that was called.
        recorder: the recorder of that memory.
        store: the store to write to.
        inbox: the inbox of the loop that it runs on.
        require_writable: raises what every write would raise, asked on the loop.
        turns: the turns of the store.
        erased_here: what this process has forgotten of the store.
        sees_changes: whether `begin_change` is called before the vector store changes.
    """

    def __init__(
        self,
        name: str,
        memory: Any,
        recorder: "Recorder",
        store: OperationStore,
        inbox: LoopInbox,
        require_writable: Callable[[], None],
        turns: Turns,
        erased_here: ErasedHere,
        *,
        sees_changes: bool = True,
    ) -> None:
        self.name = name
        self.memory = memory
        self.recorder = recorder
        self.manager = store
        self.turns = turns
        self.erased_here = erased_here
        self.history: Sequence[dict[str, Any]] = ()
        self.last_messages: Sequence[dict[str, Any]] = ()
        self.metadata: Mapping[str, Any] = {}
        self.messages: Sequence[Any] = ()
        self.payloads: dict[str, Payload] = {}
        self.acks: dict[asyncio.Future[Any], Records] = {}
        self.has_reset = False
        self.has_changed = not sees_changes
        self.refusal: HistoryError | None = None
        self._begun_at = begun_at()
        self._is_cancelled = False
        self._closed: str | None = None
        self._inbox = inbox
        self._require_writable = require_writable
        self._parts = 0
        self._parts_ended: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its result or error was given to its caller."""
        return self.memory is None

    # Before a change

    @property
    def may_be_refused(self) -> bool:
        """Whether nothing has changed yet, in the whole operation or in the current turn."""
        turn = current_turn.get()
        return not self.has_changed or (turn is not None and not turn.has_changed)

    def begin_change(self) -> None:
        """Check that the history can be written, before the vector store or the history changes.

        Raises:
            HistoryClosed, WrongLoop, StorageMissing: it cannot. Nothing has changed.
            StorageLocked: another process may have this memory's turn. The memory has not changed.
            asyncio.CancelledError: the operation was cancelled before.
        """
        if self.may_be_refused:
            self.require_going_on()
            self.note_change()

    def require_not_erased(self, memory_id: str, payload: Payload) -> None:
        """Check that a memory's owner was not forgotten here since the operation began.

        Raises:
            Erased: it was. The operation raises it too, where mem0 only logs it.
        """
        try:
            self.erased_here.require_not_erased(memory_id, payload, self._begun_at)
        except Erased as error:
            self.refusal = error
            raise

    def note_change(self) -> None:
        self.has_changed = True
        turn = current_turn.get()
        if turn is not None:
            turn.has_changed = True

    def require_going_on(self) -> None:
        """Check that a change may begin; raise as `begin_change` does."""
        if self._is_cancelled:
            raise asyncio.CancelledError
        try:
            if self._closed is not None:
                raise HistoryClosed(self._closed)
            self._require_writable()
            turn = current_turn.get()
            if turn is not None:
                turn.require_kept()
        except HistoryError as error:
            self.refusal = error
            raise

    def cancel(self) -> bool:
        """Cancel the operation if it has changed nothing; return whether that is so."""
        self._is_cancelled = not self.has_changed
        return self._is_cancelled

    @asynccontextmanager
    async def turn_of(self, memory_id: str) -> AsyncIterator[None]:
        """Hold a memory's turn. Its error is raised by the operation, where mem0 only logs it.

        Raises:
            StorageLocked: another process has had the turn for too long.
            StorageError: the turn can't be taken.
        """
        async with AsyncExitStack() as turns:
            if not self.turns.is_held_here(memory_id):
                try:
                    await turns.enter_async_context(self.turns.of(memory_id, self.manager))
                except HistoryError as error:
                    self.refusal = error
                    raise
            yield

    def refuse_parts(self, reason: str) -> None:
        """Refuse further parts."""
        self._closed = reason

    @contextmanager
    def part(self) -> Iterator[None]:
        """Run a part, which changes one memory, maybe in a task that outlives the operation's."""
        self.require_going_on()
        self._parts += 1
        try:
            yield
        finally:
            self._parts -= 1
            ended = self._parts_ended
            if not self._parts and ended is not None and not ended.done():
                ended.set_result(None)

    # Records

    def submit(self, call: Call, records: Records = ()) -> None:
        """Start a call on the loop, from any thread, in order, without waiting."""
        self._inbox.submit(self, call, records, current_turn.get())

    async def wait_for_acks(self) -> list[Unwritten]:
        """Wait for all parts and acks; return the errors with their records."""
        while self._parts:
            self._parts_ended = asyncio.get_running_loop().create_future()
            await self._parts_ended
        found: list[Unwritten] = []
        for ack, records in self.acks.items():
            try:
                await ack
            except Exception as error:  # raised or logged by the caller
                found.append((error, records))
        return found


class Recorder:
    """Stands in for mem0's `SQLiteManager`: submits everything to the current operation."""

    is_resetting = False
    """Whether mem0 is resetting. Up to 2.0.6 it drops its table through `connection`."""

    def __init__(
        self,
        db_path: str,
        store_name: tuple[str, ...] | None,
        begin: Callable[["Recorder", Callable[[], None]], None],
    ) -> None:
        self.db_path = db_path
        self._read_connection = ReadConnection(store_name)
        self._start_in_background = begin

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None without a file, and after closing."""
        return None if self.is_resetting else self._read_connection.get()

    def close_connection(self) -> None:
        """Close `connection`."""
        self._read_connection.close()

    @property
    def operation(self) -> Operation | None:
        """The operation of this memory that this task or thread belongs to."""
        operation = current.get()
        return operation if operation is not None and operation.recorder is self else None

    def require_operation(self) -> Operation:
        """Return the operation that this task or thread belongs to, or raise."""
        operation = self.operation
        if operation is None:
            raise HistoryError(
                "mem0's history was called outside of an operation of AsyncMemory; use "
                "`await memory.history(memory_id)`, or the manager itself"
            )
        return operation

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
        """Submit one change.

        Outside of an operation this, like every other call that writes, starts an operation in the
        background, on the running loop. `aclose` waits for it, and its failure is logged.
        """
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
        self._submit([change])

    def batch_add_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Submit many changes, all or none, completed from what the operation knows of them."""
        operation = self.operation
        if records and operation is not None:
            records = complete_records(records, operation.metadata, operation.messages)
        if records:
            self._submit(records)

    def _submit(self, changes: Sequence[Mapping[str, Any]]) -> None:
        operation = self.operation
        if operation is not None:
            self._send(*to_submit(changes, operation.payloads))
            return
        with in_trace():  # what is made in the background has this cause too
            call, records = to_submit(changes, {})
        self._start_in_background(self, functools.partial(self._send, call, records))

    def _send(self, call: Callable[[], AddRecords], records: Records) -> None:
        operation = self.require_operation()
        operation.note_change()  # the vector store's came before
        operation.submit(lambda: operation.manager.store.writer.submit(call()), records)

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return the records that the operation read before it called mem0."""
        return list(self.require_operation().history)

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Submit messages for a session scope's buffer."""
        if self.operation is None:
            self._start_in_background(
                self, functools.partial(self.save_messages, messages, session_scope)
            )
            return
        operation = self.require_operation()
        operation.begin_change()
        with Sanitizer() as sanitizer:
            to_store = [sanitizer.message(message) for message in messages]
            scope = sanitizer.text("session_scope", session_scope)
        if scope and to_store:
            operation.submit(
                lambda: operation.manager.store.writer.submit(checked_messages(to_store, scope))
            )

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the records that the operation read before it called mem0."""
        return list(self.require_operation().last_messages[-limit:]) if limit else []

    def reset(self) -> None:
        """Submit a reset."""
        if self.operation is None:
            self._start_in_background(self, self.reset)
            return
        operation = self.require_operation()
        operation.begin_change()
        operation.has_reset = True
        operation.submit(lambda: operation.manager.store.reset())

    def close(self) -> None:
        """Do nothing: `AsyncMemory.aclose` closes the store."""


def to_submit(
    changes: Sequence[Mapping[str, Any]], payloads: dict[str, Payload]
) -> tuple[Callable[[], AddRecords], Records]:
    """Return a function that gives the submission of changes, or raises, and their records.

    Args:
        payloads: the memories' last payloads by their ids, as far as they are known; those of
            these changes are removed.
    """
    with Sanitizer() as sanitizer:
        columns = [
            with_details(sanitizer.columns(change), payloads, sanitizer) for change in changes
        ]
    now = now_text()
    try:
        submission = checked_records(
            (storable_record(each, now) for each in columns), must_match_owner=False
        )
    except InvalidInput as error:
        known = [{k: v for k, v in each.items() if k not in DETAILS} for each in columns]
        return functools.partial(_refuse, error), [{**each, "id": new_id()} for each in known]
    return lambda: submission, submission.records


def _refuse(error: HistoryError) -> AddRecords:
    raise error


async def read_history(operation: Operation, memory_id: str) -> None:
    """Read the records that `Recorder.get_history` returns later."""
    records = await operation.manager.get_history(Sanitizer().text("memory_id", memory_id))
    operation.history = [record.as_dict() for record in records]


async def read_last_messages(operation: Operation, session_scope: str) -> None:
    """Read the messages that `Recorder.get_last_messages` returns later."""
    if session_scope:
        scope = Sanitizer().text("session_scope", session_scope)
        kept = await operation.manager.get_last_messages(scope)
        operation.last_messages = [message_as_given(message) for message in kept]
