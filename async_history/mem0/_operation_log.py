"""Operations of mem0's classes in the history's log, whose manager may be on another loop."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.operations.operations import OperationEnd, StoreOperation

T = TypeVar("T")


class Ask(Protocol):
    """Calls a function with the history manager, on the manager's loop."""

    async def __call__(self, function: Callable[[HistoryManager], Awaitable[T]], /) -> T: ...


class AskedLog:
    """The log of a history manager, for `logged` on another loop."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def begin(self, operation: StoreOperation) -> None:
        """Add an operation."""
        await self._ask(lambda manager: manager.store.operations.begin(operation))

    async def end(self, end: OperationEnd) -> tuple[int, int] | None:
        """Set the outcome of an operation."""
        return await self._ask(lambda manager: manager.store.operations.end(end))
