"""Calls of a `HistoryManager` for code that does not await: the same arguments, the same errors."""

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.records.records import HistoryRecord
from async_history.errors import CursorGone

P = ParamSpec("P")
T = TypeVar("T")

_PART: Final = 100
"""Records that an iteration reads from the loop's thread at once."""


class Caller(Protocol):
    """Runs calls on a separate loop."""

    def _call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Call a function with the currently open manager; return the result."""


def waiting(
    method: Callable[Concatenate[HistoryManager, P], Awaitable[T]],
) -> Callable[Concatenate[Caller, P], T]:
    """Return a method that waits for the result of a coroutine method."""

    @wraps(method)
    def call(self: Caller, /, *arguments: P.args, **options: P.kwargs) -> T:
        def begin(manager: HistoryManager) -> Awaitable[T]:
            begun: Awaitable[T] = getattr(manager, method.__name__)(*arguments, **options)
            return begun

        return self._call(begin)

    return call


def iterating(
    method: Callable[Concatenate[HistoryManager, P], AsyncIterable[HistoryRecord]],
) -> Callable[Concatenate[Caller, P], Iterator[HistoryRecord]]:
    """Return a method that iterates over records, which are read page by page.

    Arguments that are not valid are refused by the call itself, before the iteration.
    """

    @wraps(method)
    def call(self: Caller, /, *arguments: P.args, **options: P.kwargs) -> Iterator[HistoryRecord]:
        async def begin(manager: HistoryManager) -> _Records:
            return _Records(manager, getattr(manager, method.__name__)(*arguments, **options))

        def iterate() -> Iterator[HistoryRecord]:
            while part := self._call(records.next_part):
                yield from part

        records = self._call(begin)
        return iterate()

    signature = inspect.signature(method).replace(return_annotation=Iterator[HistoryRecord])
    vars(call)["__signature__"] = signature
    return call


class _Records:
    """Records of a manager, read in parts on its loop."""

    def __init__(self, manager: HistoryManager, found: AsyncIterable[HistoryRecord]) -> None:
        self._manager = manager
        self._found: AsyncIterator[HistoryRecord] = aiter(found)

    async def next_part(self, manager: HistoryManager) -> list[HistoryRecord]:
        """Return the next records; empty at the end.

        Raises:
            CursorGone: a reset opened another manager.
        """
        if manager is not self._manager:
            raise CursorGone("the history was reset during the iteration; ask again")
        part: list[HistoryRecord] = []
        async for record in self._found:
            part.append(record)
            if len(part) == _PART:
                break
        return part
