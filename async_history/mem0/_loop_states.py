"""What an AsyncMemory has for each event loop: its store there, the operations that run.

One AsyncMemory may serve several loops, one after another (`asyncio.run` twice) or at the same time
(a thread each). Each has a state of its own; a history in memory is one store beneath them all.
"""

import asyncio
import concurrent.futures
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._opening import from_any_folder, open_history, sqlite_file
from async_history._sqlite.manager import SQLiteHistoryManager
from async_history.errors import HistoryClosed, HistoryError, InvalidInput
from async_history.mem0._errors import history_not_written
from async_history.mem0._forks import forget_in_child, keep_inherited
from async_history.mem0._locks import NO_TURNS, TurnTaker, turns_of
from async_history.mem0._memory_host import HostedHistory
from async_history.mem0._operation import (
    LoopInbox,
    Operation,
    OperationStore,
    Recorder,
    current,
    is_running,
)
from async_history.mem0._to_thread_patch import sees_changes

T = TypeVar("T")
_log = logging.getLogger("async_history")

CLOSED: Final = "this AsyncMemory is closed; make another"

Where = str | os.PathLike[str] | HistoryManager


class _Own(Protocol):
    """A store that is opened and closed here."""

    async def aclose(self) -> None: ...

    def close(self) -> None: ...


class LoopState:
    """What belongs to the running loop.

    Args:
        store: what its operations write to.
        opening: opens the store, None where that is not to be done here.
        own: what is closed with it, None where that is not to be done here.
        on_closed: called when nothing runs here any more, and nothing will.
        turns: those of the store, on every loop.
    """

    close_timeout_s = 10.0
    """How long closing waits for operations that changed something and are not at their end."""

    def __init__(
        self,
        store: OperationStore,
        opening: Callable[[], Coroutine[Any, Any, object]] | None,
        own: _Own | None,
        on_closed: Callable[["LoopState"], None],
        turns: TurnTaker,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.doorway = LoopInbox()
        self.turns = turns
        self.resetting = asyncio.Lock()
        self.running: dict[asyncio.Task[Any], tuple[Operation, asyncio.Future[Any]]] = {}
        self.manager = store
        self._begun: set[asyncio.Task[None]] = set()
        self._own = own
        self._on_closed = on_closed
        self._opening = self._apart(opening()) if opening is not None else None
        self._closing: asyncio.Task[None] | None = None
        self._has_waited = self.loop.create_future()

    def _apart(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin a task that holds on to nothing of the operation it is begun in."""
        return self.loop.create_task(coroutine, context=contextvars.Context())

    # Running

    async def opened(self) -> OperationStore:
        """Return the store, open as far as it is opened here."""
        if self._opening is not None and not self._opening.done():
            await asyncio.shield(self._opening)
        if self._closing is not None:
            raise HistoryClosed(CLOSED)
        return self.manager

    @property
    def has_failed(self) -> bool:
        """Whether opening the store failed: the next call opens another."""
        opening = self._opening
        return (
            opening is not None
            and opening.done()
            and (opening.cancelled() or opening.exception() is not None)
        )

    def begin(self, recorder: Recorder, call: Callable[[], None]) -> None:
        """Begin an operation that nobody waits for: a failure is logged, closing waits for it."""
        task = self._apart(self._run_begun(recorder, call))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _run_begun(self, recorder: Recorder, call: Callable[[], None]) -> None:
        async def body() -> None:
            call()

        try:
            if self._opening is not None:
                await asyncio.shield(self._opening)
            await self.run(self._operation("call", recorder, recorder, self.manager), body)
        except HistoryError as error:
            _log.error("what was called outside of an operation was not written: %s", error)

    async def new_operation(self, name: str, memory: Any, recorder: Recorder) -> Operation:
        """Return an operation of a memory's that is going to run here."""
        return self._operation(name, memory, recorder, await self.opened())

    def _operation(
        self, name: str, memory: Any, recorder: Recorder, store: OperationStore
    ) -> Operation:
        return Operation(
            name,
            memory,
            recorder,
            store,
            self.doorway,
            self.turns,
            sees_changes=sees_changes(),
        )

    async def run(self, operation: Operation, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an operation to its last ack. Cancelled, it runs on if it has changed something."""
        operation.require_going_on()
        # Not the task itself, which would be cancelled too, nor a shield around it, which takes
        # another turn of the loop to tell how it ended.
        outcome: asyncio.Future[T] = self.loop.create_future()
        task = self.loop.create_task(_recorded(operation, body, outcome))
        self.running[task] = operation, outcome
        task.add_done_callback(functools.partial(self._ended, outcome))
        try:
            return await outcome
        except asyncio.CancelledError:
            if operation.cancel():
                task.cancel()
            raise
        finally:
            del outcome  # an error's traceback holds this frame, and the outcome the error

    def _ended(self, outcome: "asyncio.Future[Any]", task: "asyncio.Task[Any]") -> None:
        operation, _ = self.running.pop(task)
        operation.memory = None  # what began in it and lives on must not keep the memory alive
        outcome.cancel()  # in vain, but for a task that was cancelled before it began

    async def acked(self) -> None:
        """Wait until all that was handed in is durable, or has failed."""
        acks = [ack for operation, _ in self.running.values() for ack in operation.acks]
        if acks:
            await asyncio.wait(acks)

    # Closing

    async def aclose(self) -> None:
        """Cancel operations that have changed nothing, wait for the others, close what is own.

        What takes longer than `close_timeout_s` is left to end by itself, and logged; the store
        is closed after it.
        """
        closing = self.begin_closing()
        await asyncio.wait([closing, self._has_waited], return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            closing.result()

    def begin_closing(self) -> "asyncio.Task[None]":
        """Begin to close, on the loop; the task that does is done when nothing is left."""
        if self._closing is None:
            self._closing = self._apart(self._close())
        return self._closing

    async def _close(self) -> None:
        try:
            if self._begun:
                await asyncio.wait(self._begun, timeout=self.close_timeout_s)
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
            "closing left %d operations of AsyncMemory that still change the vector store after "
            "%g s (%s); their history is written when they end, if the event loop runs until then",
            len(left),
            self.close_timeout_s,
            ", ".join(sorted(operation.name for operation in left)),
        )
        self._has_waited.set_result(None)
        while self.running:
            await asyncio.wait(self.running)

    def let_go(self) -> None:
        """Close what is own without waiting, from any thread, also while garbage is collected."""
        if self._own is None:
            return
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(self._own.close)
        else:
            self._own.close()


async def _recorded(
    operation: Operation, body: Callable[[], Coroutine[Any, Any, T]], outcome: "asyncio.Future[T]"
) -> None:
    """Run an operation's body, wait for its acks, and tell how it went."""
    current.set(operation)
    try:
        result = await _acked(operation, body)
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except Exception as error:  # told to the caller, or to the log
        if outcome.done():
            _log.error("an operation whose caller was cancelled failed: %s", error)
        else:
            outcome.set_exception(error)
    else:
        if not outcome.done():
            outcome.set_result(result)


async def _acked(operation: Operation, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        result = await body()
    except BaseException as error:
        for failure, _ in await operation.unwritten():
            _log.error("the history of a failed operation was not written: %s", failure)
        if operation.refusal is not None and isinstance(error, Exception):
            raise operation.refusal from error
        raise
    unwritten = await operation.unwritten()
    if unwritten:
        raise history_not_written(result, unwritten) from unwritten[0][0]
    if operation.refusal is not None:  # which mem0 has logged at most
        raise operation.refusal
    return result


class LoopStates:
    """The states of an AsyncMemory, one for each loop that uses it.

    Args:
        where: a URL, or a manager, which is never closed here.
        options: what `open_history` takes besides the URL.
        between_processes: whether operations take turns with those of other processes.

    Raises:
        InvalidInput: at once, where the URL or an option can't be used.
    """

    longest_close_s = 3 * LoopState.close_timeout_s
    """How long the closing on another loop is waited for: its operations', and its manager's."""

    def __init__(
        self, where: Where, options: HistoryOptions, *, between_processes: bool = True
    ) -> None:
        self.is_closed = False
        self._lock = threading.Lock()
        self._states: dict[asyncio.AbstractEventLoop, LoopState] = {}
        self._shared = where if isinstance(where, HistoryManager) else None
        self._hosted: HostedHistory | None = None
        self._options = options
        if not isinstance(where, HistoryManager):
            where = where or "null://"
            path = sqlite_file(where)
            # What a later loop opens must be the same file if the folder has changed.
            self._url = from_any_folder(where)
            of_options = open_history(self._url, **options)  # checks them
            self.store_name = of_options.backend.store_name
            self._turns = turns_of(of_options, between_processes=between_processes)
            if isinstance(of_options, SQLiteHistoryManager) and path is None:
                self._hosted = HostedHistory(self._url, options)
        elif not options:
            self.store_name = where.backend.store_name
            self._turns = turns_of(where, between_processes=between_processes)
        else:
            raise InvalidInput(
                "options are for a store that is opened here; the manager was opened with its own"
            )
        forget_in_child(self)

    def forget(self) -> None:
        """Begin again in a forked child."""
        keep_inherited(self._states)
        self._lock = threading.Lock()
        self._states = {}

    def begin(self, recorder: Recorder, call: Callable[[], None]) -> None:
        """Begin an operation of its own on the running loop.

        Raises:
            HistoryError: no loop runs on this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise HistoryError(
                "the history of AsyncMemory was called outside of an operation and of an event "
                "loop; nothing was written. Call it on a loop, or use Memory"
            ) from None
        self.here().begin(recorder, call)

    def here(self) -> LoopState:
        """Return the running loop's state."""
        if self.is_closed:
            raise HistoryClosed(CLOSED)
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None or state.has_failed:
            state = self._new_state(loop)
        return state

    def _new_state(self, loop: asyncio.AbstractEventLoop) -> LoopState:
        with self._lock:
            gone = [other for other in self._states.values() if other.loop.is_closed()]
            for other in gone:
                del self._states[other.loop]
            if self._shared is not None:
                state = LoopState(self._shared, None, None, self._closed, self._turns)
            elif self._hosted is not None:
                state = LoopState(self._hosted, self._hosted.open, None, self._closed, self._turns)
            else:
                manager = open_history(self._url, **self._options)
                state = LoopState(
                    manager, lambda: _open(manager), manager, self._closed, self._turns
                )
            self._states[loop] = state
        for other in gone:
            other.let_go()
        return state

    def _closed(self, state: LoopState) -> None:
        with self._lock:
            if self._states.get(state.loop) is state:
                del self._states[state.loop]
            is_last = self.is_closed and not self._states
        if is_last:
            self._turns = NO_TURNS
            if self._hosted is not None:
                self._hosted.close()

    async def aclose(self) -> None:
        """Close on every loop; wait until that is done, or what it left is logged."""
        self._begin_closing()
        elsewhere = self._begin_elsewhere()
        here = self._states.get(asyncio.get_running_loop())
        if here is not None:
            await here.aclose()
        if elsewhere:
            await asyncio.wait(
                [asyncio.wrap_future(closing) for closing in elsewhere],
                timeout=self.longest_close_s,
            )
        if self._hosted is not None and not self._states:
            await self._hosted.aclose()

    def close(self) -> None:
        """Close on every loop: on a loop begin it, elsewhere wait until that is done."""
        self._begin_closing()
        elsewhere = self._begin_elsewhere()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            concurrent.futures.wait(elsewhere, timeout=self.longest_close_s)
            if self._hosted is not None and not self._states:
                self._hosted.close()
                self._hosted.join()
            return
        here = self._states.get(loop)
        if here is not None:
            here.begin_closing()
        elif self._hosted is not None and not self._states:
            self._hosted.close()

    def _begin_closing(self) -> None:
        self.is_closed = True
        if not self._states:
            self._turns = NO_TURNS

    def _begin_elsewhere(self) -> "list[concurrent.futures.Future[None]]":
        """Begin to close the states of other loops; let go of those whose loops run no more."""
        begun = []
        for state in list(self._states.values()):
            if is_running(state.loop):
                continue
            if state.loop.is_running():
                begun.append(asyncio.run_coroutine_threadsafe(state.aclose(), state.loop))
            else:
                state.let_go()
                self._closed(state)
        return begun

    def let_go(self) -> None:
        """Close without waiting, from any thread, also while garbage is collected."""
        for state in list(self._states.values()):
            state.let_go()
        if self._hosted is not None:
            self._hosted.close()


async def _open(manager: HistoryManager) -> None:
    await manager
