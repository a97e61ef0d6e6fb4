"""The states of an AsyncMemory on all event loops that use it.

One AsyncMemory may serve several loops, one after another (`asyncio.run` twice) or at the same time
(one in each thread). Each loop has its own state. All loops share one history in memory.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._opening import from_any_folder, open_history, sqlite_file
from async_history._sqlite.manager import SQLiteHistoryManager
from async_history.errors import HistoryClosed, HistoryError, InvalidInput
from async_history.mem0._loop_state import CLOSED, LoopState
from async_history.mem0._recorder import Recorder
from async_history.mem0._threads.forks import forget_in_child, keep_inherited
from async_history.mem0._threads.hosted_history import HostedHistory
from async_history.mem0._threads.loop_inbox import is_running
from async_history.mem0._turns.store_turns import NO_TURNS, turns_of

Where = str | os.PathLike[str] | HistoryManager


class LoopStates:
    """The states of an AsyncMemory, one for each loop that uses it.

    Args:
        where: a URL, or a manager, which is shared and not closed.
        options: the other options of `open_history`.
        between_processes: whether operations on one memory are serialized with those of other
            processes.

    Raises:
        InvalidInput: the URL or an option can't be used.
    """

    longest_close_s = 3 * LoopState.close_timeout_s
    """Seconds to wait for another loop to close its operations and its manager."""

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
            # A later loop must open the same file, also after a change of the working directory.
            self._url = from_any_folder(where)
            manager = open_history(self._url, **options)  # checks the options
            self.store_name = manager.backend.store_name
            self._turns = turns_of(manager, between_processes=between_processes)
            if isinstance(manager, SQLiteHistoryManager) and path is None:
                self._hosted = HostedHistory(self._url, options)
        elif not options:
            self.store_name = where.backend.store_name
            self._turns = turns_of(where, between_processes=between_processes)
        else:
            raise InvalidInput(
                "history= is a manager, which was opened with its own options: give no others"
            )
        forget_in_child(self)

    def forget(self) -> None:
        """Start without states in a forked child."""
        keep_inherited(self._states)
        self._lock = threading.Lock()
        self._states = {}

    def start_in_background(self, recorder: Recorder, call: Callable[[], None]) -> None:
        """Start an operation in the background on the running loop.

        Raises:
            HistoryError: no loop is running in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise HistoryError(
                "the history of AsyncMemory was called outside of an operation and of an event "
                "loop; nothing was written. Call it on a loop, or use Memory"
            ) from None
        self.here().start_in_background(recorder, call)

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
            closed = [other for other in self._states.values() if other.loop.is_closed()]
            for other in closed:
                del self._states[other.loop]
            if self._shared is not None:
                state = LoopState(self._shared, None, None, self._on_state_closed, self._turns)
            elif self._hosted is not None:
                state = LoopState(
                    self._hosted, self._hosted.open, None, self._on_state_closed, self._turns
                )
            else:
                manager = open_history(self._url, **self._options)
                state = LoopState(
                    manager,
                    lambda: _wait_until_open(manager),
                    manager,
                    self._on_state_closed,
                    self._turns,
                )
            self._states[loop] = state
        for other in closed:
            other.abandon()
        return state

    def _on_state_closed(self, state: LoopState) -> None:
        with self._lock:
            if self._states.get(state.loop) is state:
                del self._states[state.loop]
            is_last = self.is_closed and not self._states
        if is_last:
            self._turns = NO_TURNS
            if self._hosted is not None:
                self._hosted.close()

    async def aclose(self) -> None:
        """Close on every loop; return when closed, or when unfinished operations are logged."""
        self._mark_closed()
        elsewhere = self._start_closing_elsewhere()
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
        """Close on every loop. On a loop, start closing; elsewhere, wait until it is done."""
        self._mark_closed()
        elsewhere = self._start_closing_elsewhere()
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
            here.start_closing()
        elif self._hosted is not None and not self._states:
            self._hosted.close()

    def _mark_closed(self) -> None:
        self.is_closed = True
        if not self._states:
            self._turns = NO_TURNS

    def _start_closing_elsewhere(self) -> "list[concurrent.futures.Future[None]]":
        """Start closing the states of other loops; abandon those whose loops have stopped."""
        begun = []
        for state in list(self._states.values()):
            if is_running(state.loop):
                continue
            if state.loop.is_running():
                begun.append(asyncio.run_coroutine_threadsafe(state.aclose(), state.loop))
            else:
                state.abandon()
                self._on_state_closed(state)
        return begun

    def abandon(self) -> None:
        """Close without waiting. Safe from any thread and from a finalizer."""
        for state in list(self._states.values()):
            state.abandon()
        if self._hosted is not None:
            self._hosted.close()


async def _wait_until_open(manager: HistoryManager) -> None:
    await manager
