"""Forgetting an owner, for `AsyncMemory` and `Memory`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.manager import HistoryManager
from async_history.mem0._blocking_operations import BlockingRecorder
from async_history.mem0._forgetting.forget_request import ForgetReport, ForgetRequest
from async_history.mem0._forgetting.owner_removal import OwnerRemoval, Steps, Stores
from async_history.mem0._operation import Operation
from async_history.mem0._threads.hosted_history import ask
from async_history.mem0._turns.erased_here import ErasedHere
from async_history.mem0._vectors.local_stores import in_store_thread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoopSteps:
    """The steps of an `AsyncMemory`, as parts of an operation."""

    operation: Operation
    erased_here: ErasedHere

    async def call(self, function: Callable[[], T]) -> T:
        done: T = await in_store_thread(self.operation.memory, function)
        return done

    async def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return await ask(self.operation.manager, function)

    @asynccontextmanager
    async def change(self, memory_id: str | None) -> AsyncIterator[Callable[[], None]]:
        async with self.operation.part(memory_id):
            yield self.operation.begin_change


@dataclass(frozen=True, slots=True)
class ThreadSteps:
    """The steps of a `Memory`. None of them suspends."""

    history: BlockingRecorder
    erased_here: ErasedHere

    async def call(self, function: Callable[[], T]) -> T:
        return function()

    async def ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        return self.history.ask(function)

    @asynccontextmanager
    async def change(self, memory_id: str | None) -> AsyncIterator[Callable[[], None]]:
        if memory_id is None:
            yield self.history.begin_change
            return
        with self.history.turn_of(memory_id):
            yield self.history.begin_change


async def forget(memory: Any, operation: Operation, asked: ForgetRequest) -> ForgetReport:
    """Forget an owner in an `AsyncMemory`, as its operation."""
    return await _forget(memory, LoopSteps(operation, operation.erased_here), asked)


def forget_blocking(memory: Any, history: BlockingRecorder, asked: ForgetRequest) -> ForgetReport:
    """Forget an owner in a `Memory`."""
    steps = ThreadSteps(history, history.erased_here)
    return run_to_completion(_forget(memory, steps, asked))


async def _forget(memory: Any, steps: Steps, asked: ForgetRequest) -> ForgetReport:
    """Forget an owner. After an interruption, call it again: removed memories stay removed."""
    stores = await steps.call(lambda: Stores.of(memory, asked.owner))
    removal = OwnerRemoval(stores, steps, asked)
    return await (removal.count() if asked.dry_run else removal.run())
