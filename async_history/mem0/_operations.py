"""One call of mem0's: the records its pipeline hands in, their acks, and turns per memory.

mem0's pipeline calls its history from tasks of its own, and may from worker threads. A context
variable, which reaches them, tells which operation a call belongs to.

Lives here: operations, the object that mem0 takes for its SQLite history, turns. Not here: which
manager, and when it opens and closes (mem0).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from async_history._mem0_values import Mending, completed, message_as_given
from async_history.errors import HistoryError
from async_history.manager import HistoryManager
from async_history.submissions import few_records, messages_to_save

current: "ContextVar[Operation | None]" = ContextVar("async_history_operation", default=None)
"""The operation that this task or thread works for."""


Call = Callable[[], "asyncio.Future[None] | Coroutine[Any, Any, object]"]
"""One of a manager's, with its arguments."""


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether this thread is running a loop now."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Doorway:
    """Takes calls from any thread to the loop it was made on, in order.

    From the loop itself they begin at once. For other threads it is woken once for as many as come
    before it looks: with hundreds of operations in worker threads, waking it is what costs.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handed_in: deque[tuple[Operation, Call]] = deque()
        self._is_woken = False

    def hand_in(self, operation: "Operation", call: Call) -> None:
        """Let a call begin on the loop. What this thread reports there next comes after it."""
        self._handed_in.append((operation, call))
        if is_running(self._loop):
            self._begin()
        elif not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._is_woken = False
        while self._handed_in:
            operation, call = self._handed_in.popleft()
            operation.acks.append(_begun(call))


def _begun(call: Call) -> "asyncio.Future[Any]":
    try:
        return asyncio.ensure_future(call())
    except Exception as error:  # told by the ack, as that of a call that failed later
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


class Operation:
    """One call's records and their acks. Made on the loop; handed records from any thread.

    Args:
        recorder: whose operation it is.
        doorway, turns: those of the loop it runs on.
    """

    def __init__(
        self, recorder: "Recorder", manager: HistoryManager, doorway: Doorway, turns: "Turns"
    ) -> None:
        self.recorder = recorder
        self.manager = manager
        self.turns = turns
        self.records: list[dict[str, Any]] = []
        self.history: Sequence[dict[str, Any]] = ()
        self.last_messages: Sequence[dict[str, Any]] = ()
        self.metadata: Mapping[str, Any] = {}
        self.messages: Sequence[Any] = ()
        self.acks: list[asyncio.Future[Any]] = []
        self.has_turn_of: str | None = None
        self.has_reset = False
        self._doorway = doorway

    def hand_in(self, call: Call) -> None:
        """Call on the loop, from any thread, in the order of the calls here; not waited for."""
        self._doorway.hand_in(self, call)

    async def failures(self) -> list[Exception]:
        """Wait for all acks; return what failed."""
        found: list[Exception] = []
        for ack in self.acks:
            try:
                await ack
            except Exception as error:  # told, by who asks
                found.append(error)
        return found


class Recorder:
    """What mem0 takes for its `SQLiteManager`: hands everything to the current operation."""

    connection: Final = None
    """mem0 1.0 drops the tables through it where there is one; `AsyncMemory.reset` does that."""

    def __init__(self, db_path: str) -> None:
        self.db_path = db_path

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
        """Hand in one change."""
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
        operation = self.require_operation()
        if records:
            self._hand_in(completed(records, operation.metadata, operation.messages))

    def _hand_in(self, changes: Sequence[Mapping[str, Any]]) -> None:
        operation = self.require_operation()
        with Mending() as mending:
            records = [mending.record(change) for change in changes]
        operation.records += records
        operation.hand_in(lambda: operation.manager._hand_in(few_records(records)))

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return what the operation has read, before mem0's part of it began."""
        return list(self.require_operation().history)

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Hand in messages for a scope's buffer."""
        operation = self.require_operation()
        with Mending() as mending:
            to_store = [mending.message(message) for message in messages]
            scope = mending.text("session_scope", session_scope)
        if scope and to_store:
            operation.hand_in(lambda: operation.manager._hand_in(messages_to_save(to_store, scope)))

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return what the operation has read, before mem0's part of it began."""
        return list(self.require_operation().last_messages[-limit:]) if limit else []

    def reset(self) -> None:
        """Hand in a reset."""
        operation = self.require_operation()
        operation.has_reset = True
        operation.hand_in(operation.manager._hand_in_reset)

    def close(self) -> None:
        """Do nothing: the manager is closed by who opened it."""


async def read_history(operation: Operation, memory_id: str) -> None:
    """Read what `Recorder.get_history` is going to return."""
    records = await operation.manager.get_history(Mending().text("memory_id", memory_id))
    operation.history = [record.as_dict() for record in records]


async def read_last_messages(operation: Operation, session_scope: str) -> None:
    """Read what `Recorder.get_last_messages` is going to return."""
    if session_scope:
        scope = Mending().text("session_scope", session_scope)
        kept = await operation.manager.get_last_messages(scope)
        operation.last_messages = [message_as_given(message) for message in kept]


class Turns:
    """One at a time for each memory, first come first served."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def of(self, memory_id: str) -> "_Turn":
        """Return this memory's turn, to be waited for and kept: `async with` it."""
        return _Turn(self._locks, memory_id)


class _Turn:
    __slots__ = ("_lock", "_locks", "_memory_id")

    def __init__(self, locks: dict[str, tuple[asyncio.Lock, int]], memory_id: str) -> None:
        self._locks = locks
        self._memory_id = memory_id

    async def __aenter__(self) -> None:
        self._lock, waiting = self._locks.get(self._memory_id) or (asyncio.Lock(), 0)
        self._locks[self._memory_id] = (self._lock, waiting + 1)
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        lock, waiting = self._locks[self._memory_id]
        if waiting == 1:
            del self._locks[self._memory_id]
        else:
            self._locks[self._memory_id] = (lock, waiting - 1)
