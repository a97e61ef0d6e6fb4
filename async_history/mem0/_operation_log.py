"""Operations of mem0's classes in the history's log, whose manager may be on another loop."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.operations.operation_log import Tally, ended
from async_history._core.operations.operations import OperationEnd, StoreOperation
from async_history.errors import HistoryError

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


@contextlib.contextmanager
def logged_blocking(
    ask: Callable[[Callable[[HistoryManager], Awaitable[Any]]], Any], operation: StoreOperation
) -> Iterator[Tally]:
    """Log the operation in the body, which runs in a thread, as `logged` does on a loop."""

    def end(error: str | None) -> None:
        noted = ended(operation, tally, error)
        ask(lambda manager: manager.store.operations.end(noted))

    ask(lambda manager: manager.store.operations.begin(operation))
    tally = Tally()
    try:
        yield tally
    except Exception as error:
        # If the store itself failed, the operation stays unfinished.
        with contextlib.suppress(HistoryError):
            end(type(error).__name__)
        raise
    end(None)
