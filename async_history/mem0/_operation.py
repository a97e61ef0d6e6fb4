"""One public call of mem0: the records that its pipeline submits, and their acks.

mem0's pipeline calls its history from its own tasks and sometimes from worker threads. A context
variable says which operation a call belongs to.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Protocol

from async_history._core.operations.operations import StoreOperation
from async_history._core.records.messages import Message
from async_history._core.records.recording import Surroundings, surround
from async_history._core.records.records import HistoryRecord
from async_history._core.telemetry import NoteMemory, memory_operation
from async_history._core.writing.submissions import Submission
from async_history.errors import Erased, HistoryClosed, HistoryError
from async_history.mem0._errors import Unwritten
from async_history.mem0._threads.loop_inbox import LoopInbox
from async_history.mem0._threads.workers import Workers, calling
from async_history.mem0._turns.erased_here import ErasedHere
from async_history.mem0._turns.new_memories import NewMemories
from async_history.mem0._turns.turns import Turn, Turns, current_turn
from async_history.mem0._vectors.payloads import Payload

_log = logging.getLogger("async_history")
_NOTHING: Final = Surroundings()

current: "ContextVar[Operation | None]" = ContextVar("async_history_operation", default=None)
"""The operation that this task or thread belongs to."""


Call = Callable[[], "asyncio.Future[None]"]
"""A call of a store, with its arguments."""

Records = Sequence[HistoryRecord | Mapping[str, Any]]


class SubmissionWriter(Protocol):
    """The part of `_core.backend.Writer` that an operation uses."""

    def submit(self, submission: Submission) -> "asyncio.Future[None]": ...


class SubmissionStore(Protocol):
    """The part of `_core.backend.Store` that an operation uses."""

    @property
    def writer(self) -> SubmissionWriter: ...

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]": ...


class OperationStore(Protocol):
    """The part of a history manager that an operation uses, on its own loop."""

    @property
    def store(self) -> SubmissionStore: ...

    def require_writable(self) -> None:
        """Raise the error that every write would raise; see `HistoryManager.require_writable`."""

    async def get_history(self, memory_id: str) -> list[HistoryRecord]: ...

    async def get_last_messages(self, session_scope: str) -> list[Message]: ...


class OperationRecorder(Protocol):
    """The part of a `Recorder` that an operation uses."""

    db_path: str


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
        erased_here: the owners that this process has forgotten in the store.
        sees_changes: whether `begin_change` is called before the vector store changes.
        begun: the values for its records, with the time when it began.
        workers: the threads for its calls; None for mem0's own threads.
    """

    def __init__(
        self,
        name: str,
        memory: Any,
        recorder: OperationRecorder,
        store: OperationStore,
        inbox: LoopInbox,
        require_writable: Callable[[], None],
        turns: Turns,
        erased_here: ErasedHere,
        *,
        sees_changes: bool = True,
        begun: Surroundings = _NOTHING,
        workers: Workers | None = None,
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
        self.new = NewMemories(turns, store, asyncio.get_running_loop())
        self.acks: dict[asyncio.Future[Any], Records] = {}
        self.has_reset = False
        self._sees_changes = sees_changes
        self.has_changed = not sees_changes
        self.refusal: HistoryError | None = None
        self._begun = begun
        self._workers = workers
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

    def enter_context(self) -> None:
        """Make this task, which has its own context, part of the operation."""
        current.set(self)
        calling.set(self._workers)
        surround(self._begun)

    def reported(self) -> AbstractContextManager[NoteMemory]:
        """Return the context manager for its telemetry."""
        return memory_operation(self.name, self.recorder.db_path)

    def reported_change(
        self, name: str, memory_id: str | None
    ) -> AbstractContextManager[NoteMemory]:
        """Return the context manager for the telemetry of its change of one memory."""
        return memory_operation(name, self.recorder.db_path, memory_id, within=self.name)

    # Before a change

    @property
    def may_be_refused(self) -> bool:
        """Whether nothing has changed yet, in the whole operation or in the current turn."""
        turn = current_turn.get()
        return not self.has_changed or (turn is not None and not turn.has_changed)

    def begin_change(self) -> None:
        """Check that the history can be written, before the vector store or the history changes.

        Raises:
            HistoryClosed, WrongLoop, StorageMissing: it cannot be written. Nothing has changed.
            StorageLocked: another process may have this memory's turn. The memory has not changed.
            asyncio.CancelledError: the operation was cancelled before.
        """
        if self.may_be_refused:
            self.require_going_on(current_turn.get())
            self.note_change()

    def require_not_erased(self, memory_id: str, payload: Payload) -> None:
        """Check that a memory's owner was not forgotten here since the operation began.

        Raises:
            Erased: it was forgotten. If mem0 only logs this, the operation raises it.
        """
        try:
            self.erased_here.require_not_erased(memory_id, payload, self._begun.begun_at)
        except Erased as error:
            self.refusal = error
            raise

    def note_change(self) -> None:
        self.has_changed = True
        turn = current_turn.get()
        if turn is not None:
            turn.has_changed = True

    def require_going_on(self, turn: Turn | None = None) -> None:
        """Check that a change may begin, with a turn or without; raise as `begin_change` does."""
        self._require_not_ended()
        try:
            self._require_writable()
            if turn is not None:
                turn.require_kept()
        except HistoryError as error:
            self.refusal = error
            raise

    def _require_not_ended(self) -> None:
        if self._is_cancelled:
            raise asyncio.CancelledError
        if self._closed is not None:
            self.refusal = HistoryClosed(self._closed)
            raise self.refusal

    def cancel(self) -> bool:
        """Cancel the operation if it has changed nothing; return whether it was cancelled."""
        self._is_cancelled = not self.has_changed
        return self._is_cancelled

    def refuse_parts(self, reason: str) -> None:
        """Refuse further parts."""
        self._closed = reason

    def part(self, memory_id: str | None) -> "_Part":
        """Return a part, for `async with`: a change of a memory, in its turn.

        Its task may outlive the operation's. A part without a memory, or of a memory whose turn is
        held, takes no turn. If mem0 only logs the errors of taking it, the operation raises them.

        Raises:
            StorageLocked: another process has had the turn for too long.
            StorageError: the turn cannot be taken.
            HistoryError, asyncio.CancelledError: as `begin_change`, if that is not called before
                the part's change.
        """
        return _Part(self, memory_id)

    def has_turn_of(self, memory_id: str) -> bool:
        """Return whether it is already changing (in this task or thread) or adding this memory."""
        return memory_id in self.new or self.turns.is_held_here(memory_id)

    def begin_part(self) -> None:
        """Count a new part, or raise if no part may begin any more.

        Raises:
            HistoryClosed, asyncio.CancelledError: as `begin_change`.
        """
        self._require_not_ended()
        self._parts += 1

    def require_change(self) -> None:
        """Check that a part's change may begin, unless `begin_change` will check it."""
        if not (self._sees_changes and self.may_be_refused):
            self.require_going_on(current_turn.get())

    def end_part(self) -> None:
        """Count a part that ended."""
        self._parts -= 1
        ended = self._parts_ended
        if not self._parts and ended is not None and not ended.done():
            ended.set_result(None)

    # Records

    def submit(self, call: Call, records: Records = ()) -> None:
        """Start a call on the loop, from any thread, in order, without waiting."""
        self._inbox.submit(partial(self._start, call, records, current_turn.get()))

    def _start(self, call: Call, records: Records, turn: Turn | None) -> None:
        ack = _started(call)
        self.acks[ack] = records
        for record in records:
            self.new.recorded(_memory_of(record), ack)
        if turn is not None:
            turn.note(ack)
        if self.has_ended:
            ack.add_done_callback(_log_failure)

    async def wait_for_acks(self) -> list[Unwritten]:
        """Wait for all parts and acks; return the errors with their records."""
        while self._parts:
            self._parts_ended = asyncio.get_running_loop().create_future()
            await self._parts_ended
        self.new.end()
        found: list[Unwritten] = []
        for ack, records in self.acks.items():
            try:
                await ack
            except Exception as error:  # raised or logged by the caller
                found.append((error, records))
        return found


class _Part:
    """A part of an operation: a class, because each change enters one."""

    __slots__ = ("_memory_id", "_operation", "_turn")

    def __init__(self, operation: Operation, memory_id: str | None) -> None:
        self._operation = operation
        self._memory_id = memory_id
        self._turn: Turn | None = None

    async def __aenter__(self) -> None:
        operation, memory_id = self._operation, self._memory_id
        operation.begin_part()
        try:
            if memory_id is not None and not operation.has_turn_of(memory_id):
                turn = operation.turns.of(memory_id, operation.manager)
                await turn.take()
                self._turn = turn
            operation.require_change()
        except BaseException as error:
            if isinstance(error, HistoryError):
                operation.refusal = error
            self._end()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._turn is not None:
            self._turn.end()
        self._operation.end_part()


def _memory_of(record: HistoryRecord | Mapping[str, Any]) -> str:
    if isinstance(record, HistoryRecord):  # asked first: asking for a Mapping takes much longer
        return record.memory_id
    return str(record["memory_id"])


def _started(call: Call) -> "asyncio.Future[Any]":
    try:
        return call()
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
