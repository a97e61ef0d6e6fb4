"""A manager's life: opened once, on one event loop of one process, and closed."""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from async_history._core.running_loop import running_loop
from async_history._core.validation import check_seconds
from async_history.errors import HistoryClosed, WrongLoop

_process = object()
"""This process, for telling it from a forked child: asking the system at each call costs more than
all other checks together."""


def _enter_child() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)

CLOSE_TIMEOUT_S = 10.0
"""How long closing waits for what was accepted, unless told otherwise."""


class LoopBound(ABC):
    """Something that is opened on an event loop, belongs to it, and is closed."""

    def __init__(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self._close_timeout_s = check_seconds("close_timeout_s", close_timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._process = _process
        self._is_open = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Self:
        if self._loop is not None:
            raise HistoryClosed("a manager is opened once; make another with open_history")
        self._loop = running_loop()
        self._thread = threading.get_ident()
        self._process = _process
        try:
            await self._open()
        except BaseException:
            self._closed = True
            raise
        if self._closed:
            await asyncio.shield(self._close_task())
            raise HistoryClosed("the manager was closed while it was being opened")
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """Refuse new work, wait until what was accepted is durable, and let go of the store.

        Waits at most `close_timeout_s`. Closing twice, also at the same time, is closing once.
        """
        self._require_own_loop()
        self._closed = True
        if self._is_open:
            await asyncio.shield(self._close_task())

    def close(self) -> None:
        """Close from anywhere: from the manager's loop it begins closing and returns at once,
        from another thread it returns when closing is done."""
        self._require_own_process()
        self._closed = True
        loop = self._loop
        if loop is None or not self._is_open:
            return
        if self._is_in_own_loop():
            self._close_task()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(self.aclose(), loop).result(
                self._close_timeout_s + CLOSE_TIMEOUT_S
            )
        else:
            self._abandon()

    def _close_task(self) -> "asyncio.Task[None]":
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return self._closing

    def _require_open(self) -> None:
        if self._closed or not self._is_open:
            self._require_own_process()
            raise HistoryClosed(
                "the manager is closed; open another"
                if self._closed
                else "the manager is not open yet: `async with` it, or await it"
            )
        self._require_own_loop()

    def _require_own_loop(self) -> None:
        self._require_own_process()
        if self._loop is not None and not self._is_in_own_loop():
            raise WrongLoop(
                "this manager belongs to another event loop; open one in the loop that uses it"
            )

    def _is_in_own_loop(self) -> bool:
        # Not asyncio.get_running_loop(): before Python 3.12 each call of it asks the system for
        # the process id, which can cost more than all of the call it is made from.
        return (
            self._loop is not None
            and self._loop.is_running()
            and threading.get_ident() == self._thread
        )

    def _require_own_process(self) -> None:
        if self._process is not _process:
            raise WrongLoop(
                "this manager was opened before the process forked; open one in the process that "
                "uses it"
            )

    # What a backend provides

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None:
        """Drain and let go. Called once, in the manager's loop, not cancelled."""

    @abstractmethod
    def _abandon(self) -> None:
        """Let go without the loop, which has stopped: what was not acked is not waited for."""
