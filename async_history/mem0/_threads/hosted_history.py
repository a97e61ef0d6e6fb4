"""One history in memory for all loops of a program, on a separate event loop.

A manager in memory belongs to one loop and ends with it. mem0's `:memory:` outlives an
`asyncio.run`, and every thread sees the same one.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar, cast

from async_history._core.concurrency.loop_thread import LoopThread
from async_history._core.manager import HistoryManager
from async_history._core.operations.operations import StoreOperation
from async_history._core.options import HistoryOptions
from async_history._core.records.messages import Message
from async_history._core.records.records import HistoryRecord
from async_history._core.writing.submissions import Submission
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history.blocking._store import LoopStore
from async_history.errors import HistoryClosed
from async_history.mem0._threads.forks import forget_in_child, keep_inherited

T = TypeVar("T")
_log = logging.getLogger("async_history")


async def ask(store: object, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
    """Call a function with the manager that an `AsyncMemory` writes to, on the manager's loop."""
    if isinstance(store, HostedHistory):
        return await store.ask(function)
    return await function(cast(HistoryManager, store))


class HostedHistory:
    """A store in memory, usable from any loop.

    Args:
        url, options: as `open_history` takes them.
    """

    def __init__(self, url: str | os.PathLike[str], options: HistoryOptions) -> None:
        self._url, self._options = url, options
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._is_closed = False
        forget_in_child(self)

    def forget(self) -> None:
        """Start with an empty history in a forked child."""
        self._lock = threading.Lock()
        if self._thread is not None:
            keep_inherited((self._thread, self._store))
            self._thread = None
            _log.warning(
                "a history in memory belongs to the process that opened it: this forked process "
                "starts with an empty one"
            )

    async def open(self) -> None:
        """Open the store if no other loop has."""
        await run_in_thread(self._open)

    def _open(self) -> None:
        with self._lock:
            if self._is_closed:
                raise HistoryClosed("this AsyncMemory is closed; make another")
            if self._thread is not None:
                return
            self._store = LoopStore(self._url, None, self._options)
            thread = LoopThread(self._store.aclose)
            try:
                thread.call(self._store.open)
            except BaseException:
                thread.stop()
                raise
            self._thread = thread

    # Calls of an operation

    def require_writable(self) -> None:
        """Raise `HistoryClosed` after closing."""
        self._require_thread()

    def _require_thread(self) -> LoopThread:
        if self._thread is None or self._thread.is_closed:
            raise HistoryClosed("this AsyncMemory is closed; make another")
        return self._thread

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        """Queue a submission."""

        async def written(manager: HistoryManager) -> None:
            await manager.store.writer.submit(submission)

        return self.ask(written)

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> "asyncio.Future[T]":
        """Call a function with the manager, on its loop."""
        return asyncio.wrap_future(self._require_thread().submit(self._store.call, function))

    async def get_history(self, memory_id: str) -> list[HistoryRecord]:
        """As `HistoryManager.get_history`."""
        return await self.ask(lambda manager: manager.get_history(memory_id))

    async def get_last_messages(self, session_scope: str) -> list[Message]:
        """As `HistoryManager.get_last_messages`."""
        return await self.ask(lambda manager: manager.get_last_messages(session_scope))

    @property
    def store(self) -> Self:
        """This object, which is its own store."""
        return self

    @property
    def writer(self) -> Self:
        """This object, which is its own writer."""
        return self

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset."""

        async def reset(manager: HistoryManager) -> None:
            await manager.store.reset(operation)

        return self.ask(reset)

    # Closing

    async def aclose(self) -> None:
        """Close the store and wait until it is closed."""
        self.close()
        await run_in_thread(self.join)

    def close(self) -> None:
        """Close the store without waiting. Safe from any thread and from a finalizer."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.stop()

    def join(self) -> None:
        """Wait until the store is closed."""
        if self._thread is not None:
            self._thread.join()
