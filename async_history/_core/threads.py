"""Threads: starting them, which can fail, and running coroutines without an event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from async_history._core.running_loop import running_loop
from async_history.errors import StorageError

T = TypeVar("T")
P = ParamSpec("P")


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        StorageError: the system gives this process no more threads, or the program is ending.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise StorageError(
            f"no thread could be started ({error}): end some of this process's "
            f"{threading.active_count()}, or raise its limits of threads and memory"
        ) from error


async def computed(function: Callable[[], T]) -> T:
    """Call a function on a new thread, and return its result.

    Not on one of the loop's executor: a program's calls may hold all of those while they wait for
    this.

    If the caller is cancelled, this raises at once; the function completes, and its result is
    ignored.

    Raises:
        StorageError: no thread could be started.
    """
    loop = running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_: Callable[[T], None] | Callable[[BaseException], None], value: object) -> None:
        if not done.done():
            set_(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[object, object] = (done.set_result, function())
        except BaseException as error:
            outcome = (done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)  # type: ignore[arg-type]

    start(threading.Thread(target=run, name="async_history cipher", daemon=True))
    return await done


def for_a_thread(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return a function that calls a coroutine function on this event loop from a thread.

    The call begins at once. Awaiting it blocks the thread.
    """
    loop = running_loop()

    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        called = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)

        async def result() -> T:
            return called.result()

        return result()

    return call


def run_to_completion(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, without an event loop, and return its result.

    Code for all databases consists of coroutines, because a server's answers must be awaited. The
    steps for SQLite return at once. Those of other databases block a thread that waits for the
    event loop.

    Raises:
        RuntimeError: the coroutine suspended.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits, on a thread without an event loop")
