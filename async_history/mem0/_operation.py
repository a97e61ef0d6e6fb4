"""One call of mem0's: the records its pipeline hands in, their acks.

mem0's pipeline calls its history from tasks of its own, and may from worker threads. A context
variable, which reaches them, tells which operation a call belongs to.
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

from async_history._core.records import HistoryRecord, Message, new_id, now_text, storable_record
from async_history._core.submissions import (
    AddRecords,
    Submission,
    checked_messages,
    checked_records,
)
from async_history.blocking._sanitize import Sanitizer, completed, message_as_given
from async_history.errors import HistoryClosed, HistoryError, InvalidInput
from async_history.mem0._errors import Unwritten
from async_history.mem0._locks import Turn, TurnTaker, current_turn
from async_history.mem0._read_connection import LentConnection

_log = logging.getLogger("async_history")

current: "ContextVar[Operation | None]" = ContextVar("async_history_operation", default=None)
"""The operation that this task or thread works for."""


Call = Callable[[], "asyncio.Future[None] | Coroutine[Any, Any, object]"]
"""One of a store's, with its arguments."""

Records = Sequence[HistoryRecord | Mapping[str, Any]]


class SubmissionWriter(Protocol):
    """What an operation uses of an open store's writer: see `_core.backend.Writer`."""

    def submit(self, submission: Submission) -> "asyncio.Future[None]": ...


class SubmissionStore(Protocol):
    """What an operation uses of an open store: see `_core.backend.Store`."""

    @property
    def writer(self) -> SubmissionWriter: ...

    def reset(self) -> "asyncio.Future[None]": ...


class OperationStore(Protocol):
    """What an operation uses of a history manager, on the loop it runs on."""

    @property
    def store(self) -> SubmissionStore: ...

    def require_writable(self) -> None:
        """Raise now what every write would raise."""

    async def get_history(self, memory_id: str) -> list[HistoryRecord]: ...

    async def get_last_messages(self, session_scope: str) -> list[Message]: ...

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]: ...


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this thread is running a loop now."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class LoopInbox:
    """Takes calls from any thread to the loop it was made on, in order.

    From the loop itself they begin at once. For other threads it is woken once for as many as come
    before it looks: with hundreds of operations in worker threads, waking it is what costs.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handed_in: deque[tuple[Operation, Call, Records, Turn | None]] = deque()
        self._is_woken = False

    def hand_in(
        self, operation: "Operation", call: Call, records: Records, turn: Turn | None
    ) -> None:
        """Let a call begin on the loop. What this thread reports there next comes after it."""
        self._handed_in.append((operation, call, records, turn))
        if is_running(self._loop):
            self._begin()
        elif not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._is_woken = False
        while self._handed_in:
            operation, call, records, turn = self._handed_in.popleft()
            ack = _begun(call)
            operation.acks[ack] = records
            if turn is not None:
                turn.note(ack)
            if operation.has_ended:
                ack.add_done_callback(_log_failure)


def _begun(call: Call) -> "asyncio.Future[Any]":
    try:
        return asyncio.ensure_future(call())
    except Exception as error:  # told by the ack, as that of a call that failed later
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


def _log_failure(ack: "asyncio.Future[Any]") -> None:
    if not ack.cancelled() and ack.exception() is not None:
        _log.error("what an operation handed in after its end was not written: %s", ack.exception())


class Operation:
    """One call's records and their acks. Made on the loop; handed records from any thread.

    It may be stopped until its first change of the vector store or the history, and between two of
    its parts, each of which changes one memory. Within a part, and from the only change of an
    operation without parts to its end, it runs on whatever happens: what reached the vector store
    has its record.

    Args:
        name: what mem0 calls it.
        memory: whose operation it is.
        recorder: what that memory takes for its history.
        doorway: that of the loop it runs on.
        turns: those of the store.
        sees_changes: whether changes of the vector store are told here before they begin.
    """

    def __init__(
        self,
        name: str,
        memory: Any,
        recorder: "Recorder",
        store: OperationStore,
        doorway: LoopInbox,
        turns: TurnTaker,
        *,
        sees_changes: bool = True,
    ) -> None:
        self.name = name
        self.memory = memory
        self.recorder = recorder
        self.manager = store
        self.turns = turns
        self.history: Sequence[dict[str, Any]] = ()
        self.last_messages: Sequence[dict[str, Any]] = ()
        self.metadata: Mapping[str, Any] = {}
        self.messages: Sequence[Any] = ()
        self.acks: dict[asyncio.Future[Any], Records] = {}
        self.has_reset = False
        self.has_changed = not sees_changes
        self.refusal: HistoryError | None = None
        self._is_cancelled = False
        self._closed: str | None = None
        self._doorway = doorway
        self._parts = 0
        self._parts_ended: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its caller has been told how it went."""
        return self.memory is None

    # What it may still do

    @property
    def may_be_refused(self) -> bool:
        """Whether nothing has changed yet: in all of it, or in the turn that it has."""
        turn = current_turn.get()
        return not self.has_changed or (turn is not None and not turn.has_changed)

    def begin_change(self) -> None:
        """Ask before the vector store or the history changes.

        Raises:
            HistoryClosed, WrongLoop: the history can't be written. Nothing has changed.
            StorageLocked: another process may have this memory's turn. Nothing of it has changed.
            asyncio.CancelledError: the operation was cancelled before.
        """
        if self.may_be_refused:
            self.require_going_on()
            self.note_change()

    def note_change(self) -> None:
        self.has_changed = True
        turn = current_turn.get()
        if turn is not None:
            turn.has_changed = True

    def require_going_on(self) -> None:
        """Raise where no further change may begin, as `begin_change` does."""
        if self._is_cancelled:
            raise asyncio.CancelledError
        try:
            if self._closed is not None:
                raise HistoryClosed(self._closed)
            self.manager.require_writable()
            turn = current_turn.get()
            if turn is not None:
                turn.require_kept()
        except HistoryError as error:
            self.refusal = error
            raise

    def cancel(self) -> bool:
        """Stop if nothing has changed; return whether that is so."""
        self._is_cancelled = not self.has_changed
        return self._is_cancelled

    @asynccontextmanager
    async def turn_of(self, memory_id: str) -> AsyncIterator[None]:
        """Have this memory's turn; what keeps it from coming is told, where mem0 logs it at most.

        Raises:
            StorageLocked: another process has had it for too long.
            StorageError: it can't be asked for.
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
        """Let no further part begin."""
        self._closed = reason

    @contextmanager
    def part(self) -> Iterator[None]:
        """Change one memory, in a task that may outlive the one that began the operation."""
        self.require_going_on()
        self._parts += 1
        try:
            yield
        finally:
            self._parts -= 1
            ended = self._parts_ended
            if not self._parts and ended is not None and not ended.done():
                ended.set_result(None)

    # Its records

    def hand_in(self, call: Call, records: Records = ()) -> None:
        """Call on the loop, from any thread, in the order of the calls here; not waited for."""
        self._doorway.hand_in(self, call, records, current_turn.get())

    async def unwritten(self) -> list[Unwritten]:
        """Wait for all parts and acks; return what failed, with its records."""
        while self._parts:
            self._parts_ended = asyncio.get_running_loop().create_future()
            await self._parts_ended
        found: list[Unwritten] = []
        for ack, records in self.acks.items():
            try:
                await ack
            except Exception as error:  # told, by who asks
                found.append((error, records))
        return found


class Recorder:
    """What mem0 takes for its `SQLiteManager`: hands everything to the current operation."""

    is_resetting = False
    """Whether mem0 resets: up to 2.0.6 it drops its table through a `connection` it finds."""

    def __init__(
        self,
        db_path: str,
        store_name: tuple[str, ...] | None,
        begin: Callable[["Recorder", Callable[[], None]], None],
    ) -> None:
        self.db_path = db_path
        self._lent = LentConnection(store_name)
        self._begin = begin

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None where there is none, and once closed."""
        return None if self.is_resetting else self._lent.get()

    def end(self) -> None:
        """Close the connection that was lent."""
        self._lent.close()

    @property
    def operation(self) -> Operation | None:
        """The operation of this memory's that this task or thread works for."""
        operation = current.get()
        return operation if operation is not None and operation.recorder is self else None

    def require_operation(self) -> Operation:
        """Return the operation that this task or thread works for."""
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
        """Hand in one change.

        Outside of an operation this, and every other call that writes, begins one of its own, on
        the running loop: nobody waits for it but `aclose`, and its failure is logged.
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
        self._hand_in([change])

    def batch_add_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Hand in many changes, all or none; with what the operation knows of them besides."""
        operation = self.operation
        if records and operation is not None:
            records = completed(records, operation.metadata, operation.messages)
        if records:
            self._hand_in(records)

    def _hand_in(self, changes: Sequence[Mapping[str, Any]]) -> None:
        if self.operation is None:
            self._begin(self, functools.partial(self._hand_in, changes))
            return
        operation = self.require_operation()
        operation.note_change()  # the vector store's came before
        call, records = to_submit(changes)
        operation.hand_in(lambda: operation.manager.store.writer.submit(call()), records)

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return what the operation has read, before mem0's part of it began."""
        return list(self.require_operation().history)

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Hand in messages for a scope's buffer."""
        if self.operation is None:
            self._begin(self, functools.partial(self.save_messages, messages, session_scope))
            return
        operation = self.require_operation()
        operation.begin_change()
        with Sanitizer() as mending:
            to_store = [mending.message(message) for message in messages]
            scope = mending.text("session_scope", session_scope)
        if scope and to_store:
            operation.hand_in(
                lambda: operation.manager.store.writer.submit(checked_messages(to_store, scope))
            )

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return what the operation has read, before mem0's part of it began."""
        return list(self.require_operation().last_messages[-limit:]) if limit else []

    def reset(self) -> None:
        """Hand in a reset."""
        if self.operation is None:
            self._begin(self, self.reset)
            return
        operation = self.require_operation()
        operation.begin_change()
        operation.has_reset = True
        operation.hand_in(lambda: operation.manager.store.reset())

    def close(self) -> None:
        """Do nothing: the manager is closed by who opened it."""


def to_submit(changes: Sequence[Mapping[str, Any]]) -> tuple[Callable[[], AddRecords], Records]:
    """Return what hands changes in, or raises why that can't be, and their records with ids."""
    with Sanitizer() as mending:
        columns = [mending.columns(change) for change in changes]
    now = now_text()
    try:
        submission = checked_records(storable_record(each, now) for each in columns)
    except InvalidInput as error:
        return functools.partial(_refuse, error), [{**each, "id": new_id()} for each in columns]
    return lambda: submission, submission.records


def _refuse(error: HistoryError) -> AddRecords:
    raise error


async def read_history(operation: Operation, memory_id: str) -> None:
    """Read what `Recorder.get_history` is going to return."""
    records = await operation.manager.get_history(Sanitizer().text("memory_id", memory_id))
    operation.history = [record.as_dict() for record in records]


async def read_last_messages(operation: Operation, session_scope: str) -> None:
    """Read what `Recorder.get_last_messages` is going to return."""
    if session_scope:
        scope = Sanitizer().text("session_scope", session_scope)
        kept = await operation.manager.get_last_messages(scope)
        operation.last_messages = [message_as_given(message) for message in kept]
