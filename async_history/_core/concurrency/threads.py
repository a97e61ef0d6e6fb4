"""Threads: starting them, which can fail, and running coroutines without an event loop."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar

from async_history._core.concurrency.running_loop import running_loop
from async_history.errors import StorageError

T = TypeVar("T")
R = TypeVar("R")
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


def error_for_future(error: BaseException) -> BaseException:
    """Return an error that a future can hold, which is not true of StopIteration."""
    if not isinstance(error, StopIteration):
        return error
    held = RuntimeError(f"the call raised {error!r}")
    held.__cause__ = error
    return held


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
            outcome = (done.set_exception, error_for_future(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)  # type: ignore[arg-type]

    start(threading.Thread(target=run, name="async_history cipher", daemon=True))
    return await done


async def computed_with_calls(
    function: Callable[P, Awaitable[R]],
    work: Callable[[Callable[P, Awaitable[R]]], Coroutine[Any, Any, T]],
) -> T:
    """Run work on a new thread that calls a function of this event loop; return its result.

    Each call begins at once, or once the calls before it have ended. Awaiting it blocks the thread.
    No call is running when this returns.

    Args:
        function: returns what is awaited on the event loop.
        work: gets what calls it; it awaits nothing else.

    Raises:
        StorageError: no thread could be started.
    """
    loop, turn = running_loop(), asyncio.Lock()

    async def in_turn(*args: P.args, **kwargs: P.kwargs) -> R:
        async with turn:
            return await function(*args, **kwargs)

    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return _Called(asyncio.run_coroutine_threadsafe(in_turn(*args, **kwargs), loop))

    try:
        return await computed(lambda: run_to_completion(work(call)))
    finally:
        async with turn:
            pass  # calls whose result is no longer awaited have ended too


class _Called(Awaitable[R]):
    """A call that has begun. It need not be awaited."""

    def __init__(self, result: concurrent.futures.Future[R]) -> None:
        self._result = result

    def __await__(self) -> Generator[Any, None, R]:
        return self._result.result()
        yield  # a generator, which never suspends


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
