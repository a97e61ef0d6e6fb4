"""mem0's calls of its history, made on the event loop instead of in worker threads.

mem0 takes its history for something that blocks, and awaits `asyncio.to_thread(self.db.…)`. Ours
never blocks there, and the way to a thread and back takes longer than all else that an operation
does with its history. So mem0's module gets an `asyncio` whose `to_thread` leaves ours where it is.
Everything else goes to a thread as ever, plain mem0's own history too.

Lives here: that one difference, made when this package is imported. Not here: what the calls do
(_operations), which takes them from any thread: should another mem0 reach it in another way, all
works as before, slower.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mem0.memory import main as mem0_main

from async_history.mem0._operations import Recorder


class _Asyncio:
    """The module `asyncio`, but for `to_thread`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    def to_thread(
        function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a function in a worker thread, or here where it is a `Recorder`'s."""
        is_ours = isinstance(getattr(function, "__self__", None), Recorder)
        call = _called_here if is_ours else asyncio.to_thread
        return call(function, *arguments, **options)


async def _called_here(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


mem0_main.asyncio = _Asyncio()
