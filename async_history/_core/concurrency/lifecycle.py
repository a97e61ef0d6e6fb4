"""Opening, closing, and the loop and process that a manager belongs to."""

import asyncio
import contextlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from threading import get_ident
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakMethod

from async_history._core.concurrency.running_loop import running_loop
from async_history._core.validation import check_seconds
from async_history.errors import HistoryClosed, WrongLoop

Opened = TypeVar("Opened")
"""The open object."""

_process = object()
"""The id of this process, to detect a forked child: asking the system in each call would cost more
than all other checks together.
"""


def _enter_child() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)

CLOSE_TIMEOUT_S = 10.0
"""Default seconds that closing waits for accepted work."""


class LoopBound(ABC, Generic[Opened]):
    """An object that is opened once, on one event loop of one process, and closed.

    If it is still open when it is garbage-collected, a `ResourceWarning` names it, and it is
    closed.
    """

    _open: Opened | None = None  # also if a subclass refuses its arguments

    def __init__(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self._close_timeout_s = check_seconds("close_timeout_s", close_timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._process = _process
        self._closed = False
        self._has_ended = False
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
        self._thread = get_ident()
        self._process = _process
        try:
            opened = await self._opening()
        except BaseException:
            self._closed = True
            raise
        self._open = opened
        if self._closed:
            await asyncio.shield(self._close_task(opened))
            raise HistoryClosed("the manager was closed while it was being opened")
        return self

    async def aclose(self) -> None:
        """Refuse new work, wait until accepted work is durable, and release the store.

        It waits at most `close_timeout_s`. Further calls, also concurrent ones, wait for the same
        closing.
        """
        self._require_own_loop()
        self._closed = True
        if self._open is not None:
            await asyncio.shield(self._close_task(self._open))

    def close(self) -> None:
        """Close from any thread. On the manager's loop, it begins closing and returns at once; on
        another thread, it returns when closing is done.
        """
        self._require_own_process()
        self._closed = True
        loop, opened = self._loop, self._open
        if loop is None or opened is None:
            return
        if self._is_in_own_loop():
            self._close_task(opened)
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(self.aclose(), loop).result(
                self._close_timeout_s + CLOSE_TIMEOUT_S
            )
        else:
            self._abandon(opened)

    def __del__(self) -> None:
        opened, loop = self._open, self._loop if self._open is not None else None
        if opened is None or loop is None or self._closed or self._process is not _process:
            return
        try:
            warnings.warn(
                f"unclosed {self!r}: use `async with`, or await `aclose()`",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
        finally:  # a filter may make an error of the warning
            self._closed = True
            self._close_without_caller(opened, loop)

    def _close_without_caller(self, opened: Opened, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to close; from any thread."""
        if loop.is_running():
            with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                loop.call_soon_threadsafe(self._close_task, opened)
        else:
            self._abandon(opened)

    def _close_task(self, opened: Opened) -> "asyncio.Task[None]":
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(opened))
        return self._closing

    def _state(self) -> str:
        """Return its state in a few words, from any thread, without checks."""
        if self._process is not _process:
            return "opened before the process forked"
        if self._closed:
            is_closing = self._closing is not None and not self._closing.done()
            return "closing" if is_closing else "closed"
        if self._open is None:
            return "not open yet" if self._loop is None else "opening"
        return "open"

    def _end(self) -> None:
        """Mark as closed: the open object has ended, by itself unless this is closed already."""
        if not self._closed:
            self._has_ended = self._closed = True

    def _raise_end(self, opened: Opened) -> None:
        """Raise why the open object has ended by itself. Not called after an ordinary close."""

    def _weak_end(self) -> Callable[[], None]:
        """Return a function that calls `_end` while this object exists, and does not keep it."""
        weak = WeakMethod(self._end)

        def end() -> None:
            if (method := weak()) is not None:
                method()

        return end

    def _require_open(self) -> Opened:
        opened = self._open
        loop = self._loop
        if (  # all that is checked below, in one expression: each call asks
            opened is not None
            and not self._closed
            and self._process is _process
            and get_ident() == self._thread
            and loop is not None
            and loop.is_running()
        ):
            return opened
        if self._closed or opened is None:
            self._require_own_process()
            if opened is not None and self._has_ended:
                self._raise_end(opened)
            raise HistoryClosed(
                "the manager is closed; open another"
                if self._closed
                else "the manager is not open yet: `async with` it, or await it"
            )
        self._require_own_loop()
        return opened

    def _require_own_loop(self) -> None:
        self._require_own_process()
        if self._loop is not None and not self._is_in_own_loop():
            raise WrongLoop(
                "this manager belongs to another event loop; open one in the loop that uses it"
            )

    def _is_in_own_loop(self) -> bool:
        # Not asyncio.get_running_loop(): before Python 3.12 it asks the system for the process id,
        # which can cost more than the rest of the call.
        return self._loop is not None and self._loop.is_running() and get_ident() == self._thread

    def _require_own_process(self) -> None:
        if self._process is not _process:
            raise WrongLoop(
                "this manager was opened before the process forked; open one in the process that "
                "uses it"
            )

    # Opening and closing, by subclasses

    @abstractmethod
    async def _opening(self) -> Opened: ...

    @abstractmethod
    async def _close(self, opened: Opened) -> None:
        """Write accepted work, then release the store. Called once, in its loop."""

    @abstractmethod
    def _abandon(self, opened: Opened) -> None:
        """Release the store without the loop, which has stopped, and do not wait."""
