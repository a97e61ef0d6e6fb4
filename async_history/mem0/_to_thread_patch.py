# mypy: disable-error-code=import-untyped
"""The replacement of `asyncio.to_thread` in mem0's module.

mem0 expects its history to block, and awaits `asyncio.to_thread(self.db.…)`. Calls of the
`Recorder` do not block, and a switch to a thread and back takes longer than the rest of an
operation's work on its history. So mem0's module gets an `asyncio` whose `to_thread` calls a
`Recorder` on the loop. It also calls `Operation.begin_change` before the vector store changes. All
other calls of this library's classes run in their `Workers`, or are awaited if the embedder, model
or vector store has a coroutine function (`aembed` for `embed`). Plain mem0's calls run in a thread
as before.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

from mem0.memory import main as mem0_main

from async_history.mem0._operation import Operation, current
from async_history.mem0._recorder import Recorder
from async_history.mem0._threads.workers import calling
from async_history.mem0._vectors.local_stores import call_alone, lock_of
from async_history.mem0._vectors.payloads import WatchedStore, unwatched

Call = Callable[..., Coroutine[Any, Any, Any]]

_READS: Final = frozenset(
    (
        *("get", "list", "search", "search_batch", "keyword_search"),
        *("embed", "embed_batch", "generate_response", "invoke", "rerank"),
    )
)
"""Methods of vector stores, embedders, models and rerankers that change nothing."""
_PARTS: Final = ("vector_store", "embedding_model", "llm", "reranker")


class _Asyncio:
    """The module `asyncio` with another `to_thread`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    def to_thread(
        function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a function in a worker thread, or a `Recorder`'s method directly."""
        owner = getattr(function, "__self__", None)
        if type(owner) is Recorder:  # isinstance takes ten times as long: it has an abstract base
            return _call_directly(function, *arguments, **options)
        call = _call_of(owner, function)
        operation = current.get()
        if (
            operation is None
            or getattr(function, "__name__", None) in _READS
            or not operation.may_be_refused
            or _only_reads(function, operation.memory)
        ):
            return call(*arguments, **options)
        return _call_changing(operation, call, *arguments, **options)


async def _call_directly(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


async def _call_changing(
    operation: Operation, call: Call, /, *arguments: Any, **options: Any
) -> Any:
    operation.begin_change()
    return await call(*arguments, **options)


def _call_of(owner: object, function: Callable[..., Any]) -> Call:
    """Return a call of a function that does not block the loop. `owner` is the method's object."""
    workers = calling.get()
    if workers is None:
        return partial(asyncio.to_thread, function)
    if owner is None:
        return partial(workers.run, function)
    part, name = unwatched(owner), getattr(function, "__name__", "")
    if _has_coroutine_function(part, name):
        own: Call = getattr(owner, f"a{name}")
        return own
    lock = lock_of(part)
    if lock is not None:
        return partial(workers.run, call_alone, lock, function)
    return partial(workers.run, function)


_known: Final[dict[tuple[type, str], bool]] = {}


def _has_coroutine_function(owner: object, name: str) -> bool:
    kind = type(owner)
    if (known := _known.get((kind, name))) is None:
        known = inspect.iscoroutinefunction(getattr(kind, f"a{name}", None))
        _known[kind, name] = known  # of a few classes, for as long as the program runs
    return known


def _only_reads(function: Callable[..., Any], memory: object) -> bool:
    """Return whether a function of mem0's pipeline with another name also changes nothing."""
    if isinstance(function, FunctionType) and "<locals>" not in function.__qualname__:
        return function.__module__.startswith("mem0.")  # text helpers
    if isinstance(function, MethodType) and type(function.__self__) is WatchedStore:
        return False  # its own methods that read are in `_READS`
    parts = list(map(vars(memory).get, _PARTS))
    if isinstance(function, MethodType):
        # A method belongs only to its own object, and most are not methods of a part.
        parts = [part for part in parts if part is function.__self__]
    return any(function == getattr(part, name, None) for part in parts for name in _READS)


def sees_changes() -> bool:
    """Return whether mem0's module still has the replaced `asyncio`."""
    return isinstance(mem0_main.asyncio, _Asyncio)


mem0_main.asyncio = _Asyncio()
