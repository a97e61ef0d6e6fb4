"""The steps of operations on memories that `AsyncMemory` and `Memory` share.

An operation is written once, as a coroutine. An `AsyncMemory` runs it on its loop. A `Memory` runs
it with `run_to_completion`, because none of its steps suspends.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Protocol, TypeVar

from async_history._core.manager import HistoryManager
from async_history.mem0._operation import Operation
from async_history.mem0._threads.hosted_history import ask
from async_history.mem0._turns.erased_here import ErasedHere
from async_history.mem0._vectors.local_stores import in_store_thread

T = TypeVar("T")


class Steps(Protocol):
    """The steps of an operation of `AsyncMemory` or `Memory`."""

    @property
    def memory(self) -> Any:
        """The `AsyncMemory` or `Memory`."""

    @property
    def erased_here(self) -> ErasedHere:
        """The owners that this process has forgotten in the store."""

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that blocks."""

    async def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Call a function with the history, on its loop."""

    def begin_change(self) -> None:
        """Check that the history can be written, before something changes."""

    def turn(self, memory_id: str | None) -> AbstractAsyncContextManager[None]:
        """Hold a memory's turn; none without a memory."""


@dataclass(frozen=True, slots=True)
class LoopSteps:
    """The steps of an `AsyncMemory`, as parts of an operation."""

    operation: Operation

    @property
    def memory(self) -> Any:
        return self.operation.memory

    @property
    def erased_here(self) -> ErasedHere:
        return self.operation.erased_here

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        done: T = await in_store_thread(self.operation.memory, function, *arguments)
        return done

    async def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return await ask(self.operation.manager, function)

    def begin_change(self) -> None:
        self.operation.begin_change()

    @asynccontextmanager
    async def turn(self, memory_id: str | None) -> AsyncIterator[None]:
        async with self.operation.part(memory_id):
            yield


class BlockingHistory(Protocol):
    """The part of a `BlockingRecorder` that the steps of a `Memory` use."""

    @property
    def erased_here(self) -> ErasedHere: ...

    def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T: ...

    def begin_change(self) -> None: ...

    def turn_of(self, memory_id: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class ThreadSteps:
    """The steps of a `Memory`. None of them suspends."""

    memory: Any
    history: BlockingHistory

    @property
    def erased_here(self) -> ErasedHere:
        return self.history.erased_here

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return self.history.ask(function)

    def begin_change(self) -> None:
        self.history.begin_change()

    @asynccontextmanager
    async def turn(self, memory_id: str | None) -> AsyncIterator[None]:
        if memory_id is None:
            yield
            return
        with self.history.turn_of(memory_id):
            yield


async def result_of(called: Any) -> Any:
    """Return the result of a function of mem0, which is a coroutine in `AsyncMemory`."""
    return await called if isawaitable(called) else called
