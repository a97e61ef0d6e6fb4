# mypy: disable-error-code=import-untyped
"""What mem0 does in worker threads, seen before it begins; its history's part done on the loop.

mem0 takes its history for something that blocks, and awaits `asyncio.to_thread(self.db.…)`. Ours
never blocks there, and the way to a thread and back takes longer than all else that an operation
does with its history. So mem0's module gets an `asyncio` whose `to_thread` leaves ours where it is.
It also tells an operation of ours that the vector store is about to change. Everything else goes to
a thread as ever, plain mem0's own history too.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mem0.memory import main as mem0_main

from async_history.mem0._operation import Operation, Recorder, current

_READS: Final = frozenset(
    (
        *("get", "list", "search", "search_batch", "keyword_search"),
        *("embed", "embed_batch", "generate_response", "invoke", "rerank"),
    )
)
"""Names of what vector stores, embedders, models and rerankers do without changing anything."""
_PARTS: Final = ("vector_store", "embedding_model", "llm", "reranker")


class _Asyncio:
    """The module `asyncio`, but for `to_thread`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    def to_thread(
        function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a function in a worker thread, or here where it is a `Recorder`'s."""
        if isinstance(getattr(function, "__self__", None), Recorder):
            return _called_here(function, *arguments, **options)
        operation = current.get()
        if operation is None or not operation.may_be_refused:
            return asyncio.to_thread(function, *arguments, **options)
        if _only_reads(function, operation.memory):
            return asyncio.to_thread(function, *arguments, **options)
        return _changing(operation, function, *arguments, **options)


async def _called_here(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


async def _changing(
    operation: Operation, function: Callable[..., Any], /, *arguments: Any, **options: Any
) -> Any:
    operation.begin_change()
    return await asyncio.to_thread(function, *arguments, **options)


def _only_reads(function: Callable[..., Any], memory: object) -> bool:
    """Return whether a function of mem0's pipeline changes nothing, as far as is known for sure."""
    if getattr(function, "__name__", None) in _READS:
        return True
    if inspect.isfunction(function) and "<locals>" not in function.__qualname__:
        return function.__module__.startswith("mem0.")  # its tools for texts
    return any(
        function == getattr(part, name, None)
        for part in map(vars(memory).get, _PARTS)
        for name in _READS
    )


def sees_changes() -> bool:
    """Return whether mem0's module still has our `asyncio`."""
    return isinstance(mem0_main.asyncio, _Asyncio)


mem0_main.asyncio = _Asyncio()
