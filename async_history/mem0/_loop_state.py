"""The state of an AsyncMemory on one event loop: its store there, and its running operations."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from async_history._core.concurrency.yielding import OnceATurn
from async_history._core.records.recording import Surroundings
from async_history._core.wording import counted
from async_history.errors import HistoryClosed, HistoryError
from async_history.mem0._late_changes import raise_unwritten, take_back
from async_history.mem0._operation import Operation, OperationStore
from async_history.mem0._recorder import Recorder
from async_history.mem0._steps import LoopSteps
from async_history.mem0._threads.loop_inbox import LoopInbox
from async_history.mem0._threads.workers import Workers
from async_history.mem0._to_thread_patch import sees_changes
from async_history.mem0._tracing import in_trace
from async_history.mem0._turns.erased_here import erased_here
from async_history.mem0._turns.turns import Turns

T = TypeVar("T")
_log = logging.getLogger("async_history")

_NOTHING: Final = Surroundings()
CLOSED: Final = "this AsyncMemory is closed; make another"


class _OwnStore(Protocol):
    """A store that its loop state closes."""

    async def aclose(self) -> None: ...

    def close(self) -> None: ...


class LoopState:
    """The state of an AsyncMemory on the running loop.

    Args:
        store: the store that operations write to.
        opening: opens the store; None for a store that was opened elsewhere.
        own: the store to close with this state; None for a store that is shared.
        on_closed: called when the last operation has ended and the state is closed.
        turns: the turns of the store, shared by all loops.
    """

    close_timeout_s = 10.0
    """Seconds that closing waits for operations that have changed something."""

    def __init__(
        self,
        store: OperationStore,
        opening: Callable[[], Coroutine[Any, Any, object]] | None,
        own: _OwnStore | None,
        on_closed: Callable[["LoopState"], None],
        turns: Turns,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = LoopInbox()
        self.turns = turns.on_this_loop()
        self._erased_here = erased_here(turns.queues)
        self.resetting = asyncio.Lock()
        self.running: dict[asyncio.Task[Any], tuple[Operation, asyncio.Future[Any]]] = {}
        self.manager = store
        self._require_writable = OnceATurn(store.require_writable)
        self._background: set[asyncio.Task[None]] = set()
        self._own = own
        self._on_closed = on_closed
        self._opening = self._create_task(opening()) if opening is not None else None
        self.is_open = opening is None
        self.has_failed = False
        if self._opening is not None:
            self._opening.add_done_callback(self._on_opened)
        self._closing: asyncio.Task[None] | None = None
        self._has_waited = self.loop.create_future()

    def _create_task(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Create a task that does not inherit the context of the running operation."""
        # A task factory need not take a context: a program's own often takes two arguments.
        return contextvars.Context().run(self.loop.create_task, coroutine)

    # Running

    def _on_opened(self, opening: "asyncio.Task[object]") -> None:
        self.has_failed = opening.cancelled() or opening.exception() is not None
        self.is_open = not self.has_failed and self._closing is None

    async def open_store(self) -> OperationStore:
        """Wait until the store is open, and return it."""
        if self._opening is not None and not self._opening.done():
            await asyncio.shield(self._opening)
        if self._closing is not None:
            raise HistoryClosed(CLOSED)
        return self.manager

    def start_in_background(self, recorder: Recorder, call: Callable[[], None]) -> None:
        """Start an operation in the background: its failure is logged, and closing waits for it."""
        task = self._create_task(self._run_in_background(recorder, call))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _run_in_background(self, recorder: Recorder, call: Callable[[], None]) -> None:
        async def body() -> None:
            call()

        try:
            if self._opening is not None:
                await asyncio.shield(self._opening)
            await self.run(self.new_operation("call", recorder, recorder), body)
        except HistoryError as error:
            _log.error("a call outside of an operation was not written: %s", error)

    def new_operation(
        self,
        name: str,
        memory: Any,
        recorder: Recorder,
        begun: Surroundings = _NOTHING,
        workers: Workers | None = None,
    ) -> Operation:
        """Return a new operation of a memory, to be run on this loop. The store is open."""
        return Operation(
            name,
            memory,
            recorder,
            self.manager,
            self.inbox,
            self._require_writable,
            self.turns,
            self._erased_here,
            sees_changes=sees_changes(),
            begun=begun,
            workers=workers,
        )

    async def run(self, operation: Operation, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an operation until its last ack. Cancelled after its first change, it completes."""
        operation.require_going_on()
        # A future: the task would be cancelled with its caller, and a shield takes one more
        # iteration of the loop.
        outcome: asyncio.Future[T] = self.loop.create_future()
        task = self.loop.create_task(_run_operation(operation, body, outcome))
        self.running[task] = operation, outcome
        task.add_done_callback(self._on_ended)
        try:
            return await outcome
        except asyncio.CancelledError:
            if operation.cancel():
                task.cancel()
            raise
        finally:
            del outcome  # an error's traceback holds this frame, and the outcome the error

    def _on_ended(self, task: "asyncio.Task[Any]") -> None:
        operation, outcome = self.running.pop(task)
        operation.memory = None  # tasks that outlive it must not keep the memory alive
        outcome.cancel()  # has an effect only if the task was cancelled before it began

    async def wait_for_background(self) -> None:
        """Wait until all operations in the background have ended."""
        if self._background:
            await asyncio.wait(self._background)

    async def wait_for_acks(self) -> None:
        """Wait until all submitted records are durable or have failed."""
        await self.wait_for_background()
        acks = [ack for operation, _ in self.running.values() for ack in operation.acks]
        if acks:
            await asyncio.wait(acks)

    # Closing

    async def aclose(self) -> None:
        """Cancel operations that have changed nothing, wait for the others, and close the store.

        Operations that take longer than `close_timeout_s` are logged and left to end by
        themselves. The store is closed after them.
        """
        closing = self.start_closing()
        await asyncio.wait([closing, self._has_waited], return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            closing.result()

    def start_closing(self) -> "asyncio.Task[None]":
        """Start closing, on the loop; return the task, which is done when all is closed."""
        self.is_open = False
        if self._closing is None:
            self._closing = self._create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        try:
            if self._background:
                await asyncio.wait(self._background, timeout=self.close_timeout_s)
            await self._end_operations()
            if self._opening is not None:
                await asyncio.wait([self._opening])
            if self._own is not None and not self.has_failed:
                await self._own.aclose()
        finally:
            self._on_closed(self)

    async def _end_operations(self) -> None:
        for task, (operation, outcome) in list(self.running.items()):
            if operation.cancel():
                if not outcome.done():
                    outcome.set_exception(
                        HistoryClosed(
                            f"this AsyncMemory was closed before its {operation.name} had changed "
                            "anything; nothing was written"
                        )
                    )
                task.cancel()
        if self.running:
            await asyncio.wait(self.running, timeout=self.close_timeout_s)
        if not self.running:
            return
        left = [operation for operation, _ in self.running.values()]
        for operation in left:
            operation.refuse_parts(CLOSED)
        _log.error(
            "closing left %s of AsyncMemory that may change the vector store after %g s (%s); the "
            "history is written when they end, if the event loop runs until then",
            counted(len(left), "operation"),
            self.close_timeout_s,
            ", ".join(sorted(operation.name for operation in left)),
        )
        self._has_waited.set_result(None)
        while self.running:
            await asyncio.wait(self.running)

    def abandon(self) -> None:
        """Close the store without waiting. Safe from any thread and from a finalizer."""
        if self._own is None:
            return
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(self._own.close)
        else:
            self._own.close()


async def _run_operation(
    operation: Operation, body: Callable[[], Coroutine[Any, Any, T]], outcome: "asyncio.Future[T]"
) -> None:
    """Run an operation's body, wait for its acks, and set its outcome."""
    operation.enter_context()
    try:
        with operation.reported(), in_trace():
            try:
                result = await body()
            except BaseException as error:
                await _end_failed(operation, error)
                raise
            await _end(operation, result)
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):  # which end the loop, or the task
        raise
    except BaseException as error:  # raised to the caller, or logged; a panic of Rust is one
        if outcome.done():
            _log.error("an operation whose caller was cancelled failed: %s", error)
        else:
            outcome.set_exception(error)
    else:
        if not outcome.done():
            outcome.set_result(result)


async def _end_failed(operation: Operation, error: BaseException) -> None:
    """Wait for the acks of an operation that failed; raise its refusal, if mem0 hid that."""
    unwritten = await operation.wait_for_acks()
    for failure, _ in unwritten:
        _log.error("the history of a failed operation was not written: %s", failure)
    await take_back(LoopSteps(operation), unwritten)
    refusal = operation.refusal
    if refusal not in (None, error) and isinstance(error, Exception):
        raise refusal from error


async def _end(operation: Operation, result: object) -> None:
    """Wait for the acks of an operation; raise what mem0 could not."""
    unwritten = await operation.wait_for_acks()
    if unwritten:
        await take_back(LoopSteps(operation), unwritten)
        raise_unwritten(result, unwritten)
    if operation.refusal is not None:  # mem0 only logs it
        raise operation.refusal
