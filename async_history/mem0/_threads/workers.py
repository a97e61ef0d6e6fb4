"""Worker threads for waiting calls: mem0's calls of the embedder, model and vector store.

`asyncio.to_thread` has few threads, sized for computing, and wakes the loop for each result. Here
threads are added while calls wait in the queue because the running calls wait. The loop hands over
the calls of an iteration together, because a thread that is woken meanwhile only contends with the
loop for the GIL. It is woken once for all results that arrive before it runs.
"""

import asyncio
import atexit
import contextvars
import copy
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import repeat, starmap
from queue import Empty, SimpleQueue
from typing import Any, Final

from async_history._core.concurrency.threads import computed, error_for_future, start
from async_history._core.validation import check_count
from async_history.errors import StorageError

DEFAULT_THREADS: Final = 128

_COMPUTING: Final = 2
"""Threads for calls that do not wait: more would only contend for the GIL."""
_LOOK_EVERY_S: Final = 0.005
_WAITING_S: Final = 0.001
"""A call that takes longer than this is considered waiting, not computing."""
_LOST_S: Final = 0.1
"""Seconds after which calls and results are moved again if an exception, such as one that a signal
handler raises, came before the function that moves them."""


class Workers:
    """Worker threads. Any number of event loops may use them.

    Args:
        threads: the most threads at a time.
        idle_s: seconds after which a thread without a call ends.

    Raises:
        InvalidInput: `threads` is not a positive whole number.
    """

    def __init__(self, threads: int = DEFAULT_THREADS, *, idle_s: float = 5.0) -> None:
        self._most = check_count("threads", threads, least=1)
        self._idle_s = idle_s
        self.forget_threads()
        _all.add(self)

    def forget_threads(self) -> None:
        """Start without threads and calls: at first, and in a forked child."""
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._notes: deque[bool] = deque()  # for each None in the queue, whether it ends a thread
        self._lock = threading.Lock()
        self._threads: set[object] = set()  # a place for each, also before it has started
        self._begun = 0
        self._changed_at = time.monotonic()  # when a look last added or ended threads
        self._running: set[int] = set()  # the threads in a call
        self._results: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Results] = (
            weakref.WeakKeyDictionary()
        )
        self._last_results: _Results | None = None

    @property
    def threads(self) -> int:
        """The number of threads."""
        return len(self._threads)

    async def run(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call a function in a worker thread, with this task's context variables.

        If the task is cancelled, a queued call never begins; a running one completes.
        """
        loop = asyncio.get_running_loop()
        results = self._last_results
        if results is None or results.loop() is not loop:  # faster than the weak mapping
            results = self._last_results = self._results_of(loop)
        outcome = loop.create_future()
        context = contextvars.copy_context()
        if not results.calls:
            loop.call_soon(self._hand_over, loop, results)
        results.calls.append((results, outcome, context, function, arguments, options))
        if not results.is_watched:
            loop.call_later(_LOST_S, self._watch, loop, results)
            results.is_watched = True
        results.waiting += 1
        try:
            return await outcome
        finally:
            results.waiting -= 1
            del outcome  # an error's traceback holds this frame, and the outcome the error

    def _results_of(self, loop: asyncio.AbstractEventLoop) -> "_Results":
        results = self._results.get(loop)
        if results is None:
            results = self._results[loop] = _Results(loop)
        return results

    def _hand_over(self, loop: asyncio.AbstractEventLoop, results: "_Results") -> None:
        """Put an iteration's calls into the queue of the threads."""
        now = time.monotonic()
        if results.looked_at < now - _LOST_S:
            self._look_later(loop, results, now)
        # In C, so that no signal handler runs between taking a call and putting it.
        taken = starmap(results.calls.popleft, repeat((), len(results.calls)))
        deque(map(self._calls.put, taken), maxlen=0)
        if len(self._threads) < _COMPUTING:
            self._add_threads(min(self._calls.qsize(), _COMPUTING - len(self._threads)))

    def _watch(self, loop: asyncio.AbstractEventLoop, results: "_Results") -> None:
        """Move calls and results that were lost, as long as tasks wait for results."""
        results.is_watched = False
        if not results.waiting:
            return
        loop.call_later(_LOST_S, self._watch, loop, results)
        results.is_watched = True
        if results.calls or not self._calls.empty():
            self._hand_over(loop, results)
        results.deliver()

    def _look_later(self, loop: asyncio.AbstractEventLoop, results: "_Results", now: float) -> None:
        loop.call_later(_LOOK_EVERY_S, self._look, loop, results, self._begun, now)
        results.looked_at = now

    def _look(
        self,
        loop: asyncio.AbstractEventLoop,
        results: "_Results",
        begun_before: int,
        then: float,
    ) -> None:
        """Add threads if calls wait in the queue because the running calls wait."""
        if results.looked_at != then:  # this one was late, and another is scheduled
            return
        self._end_surplus()
        waiting = self._calls.qsize()
        if not waiting:
            results.looked_at = -math.inf
            return
        now, begun = time.monotonic(), self._begun
        waiting -= len(self._notes)  # if one of them got a thread, another would remain
        threads = len(self._threads)
        # A thread that has not begun a queued call waits for the GIL or a processor, and so would
        # further threads.
        are_running = threads - len(self._running) <= threads // 3
        are_waiting = threads * (now - then) >= (begun - begun_before) * _WAITING_S
        if waiting > 0 and are_running and are_waiting:
            self._add_threads(min(waiting, max(threads, 1)))
            self._changed_at = now
        self._look_later(loop, results, now)

    def _end_surplus(self) -> None:
        """End half of the idle threads if none was added for `idle_s`.

        The threads take calls in turn. So under a steady load none of them is idle for `idle_s`,
        however many there are.
        """
        now = time.monotonic()
        if now - self._changed_at < self._idle_s:
            return
        self._changed_at = now
        threads = len(self._threads)
        idle = threads - len(self._running)
        for _ in range(min(idle // 2, threads - _COMPUTING)):
            self._note(ends=True)

    def _add_threads(self, wanted: int) -> None:
        with self._lock:
            number = min(wanted, self._most - len(self._threads))
            self._start({object() for _ in range(number)})

    def _start(self, places: set[object]) -> None:
        """Start a thread that takes one of some places and starts the next.

        If the system gives no more threads, calls wait for those that are there. Without any, the
        queued calls get the error.
        """
        try:
            self._threads.update(places)
            if places:
                # A daemon: otherwise the program's exit would wait for idle threads.
                # `_wait_at_exit` waits for running calls.
                name = "async_history call"
                start(threading.Thread(target=self._work, args=(places,), name=name, daemon=True))
        except BaseException as error:
            self._threads.difference_update(places)
            places.clear()
            if not isinstance(error, StorageError):
                raise
            if not self._threads:
                self._refuse(error)

    def _refuse(self, error: StorageError) -> None:
        """Give an error to all queued calls."""
        while not self._calls.empty():
            call = self._calls.get_nowait()
            if call is None:
                self._notes.popleft()
            else:
                results, outcome, *_ = call
                results.give(outcome, None, copy.copy(error))

    def _work(self, places: set[object]) -> None:
        try:
            place = places.pop()
        except KeyError:  # an exception came while its start was awaited
            return
        if places:  # so that the loop waits for the start of only one thread
            self._start(places)
        calls, notes, running = self._calls, self._notes, self._running
        thread = threading.get_ident()
        idle_until = time.monotonic() + self._idle_s
        while True:
            try:
                call = calls.get(timeout=max(0.0, idle_until - time.monotonic()))
            except Empty:
                with self._lock:
                    if calls.empty():
                        self._threads.discard(place)
                        if self._threads:
                            self._note(ends=False)
                        return
                continue
            if call is None:
                if not notes.popleft():
                    continue
                with self._lock:
                    self._threads.discard(place)
                return
            self._begun += 1
            running.add(thread)
            _run(call)
            running.discard(thread)
            del call  # an idle thread keeps nothing alive
            idle_until = time.monotonic() + self._idle_s

    def _note(self, *, ends: bool) -> None:
        """Wake a thread, to end it or to let it look at the time.

        Up to CPython 3.12, a thread in SimpleQueue.get whose call another thread took as its
        timeout passed waits without one. So each thread that ends when it was idle wakes another.
        """
        self._notes.append(ends)
        self._calls.put(None)

    def end_threads(self) -> None:
        """End idle threads now, and the others after their calls. Later calls get new ones.

        Safe from any thread and from a finalizer: it takes no lock.
        """
        for _ in range(len(self._threads)):
            self._note(ends=True)

    def wait_until_idle(self) -> None:
        """Wait until no call is running. It does not wait for queued calls."""
        while self._running:
            time.sleep(_LOOK_EVERY_S)


class _Results:
    """The results of calls for one event loop, which wake it once for many results.

    Attributes:
        calls: those of the loop's current iteration, which the threads do not have yet.
        waiting: the number of tasks that wait for a result.
        looked_at: when `_look` was scheduled, in seconds; minus infinity if it is not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)  # which is the key of a weak mapping to this
        self.calls: deque[_Call] = deque()
        self.waiting = 0
        self.is_watched = False
        self.looked_at = -math.inf
        self._is_woken = False
        self._given: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()

    def give(
        self, outcome: "asyncio.Future[Any]", result: Any, error: BaseException | None
    ) -> None:
        self._given.append((outcome, result, error))
        if self._is_woken:
            return
        self._is_woken = True
        loop = self.loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self.deliver)
                return
        except RuntimeError:  # it is closed
            pass
        self._given.clear()  # no task waits for them

    def deliver(self) -> None:
        """Wake the tasks whose results are there."""
        self._is_woken = False
        given = self._given
        while given:
            outcome, result, error = given[0]
            if outcome.done():
                pass
            elif error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
            given.popleft()


_Call = tuple[
    _Results,
    "asyncio.Future[Any]",
    contextvars.Context,
    Callable[..., Any],
    tuple[Any, ...],
    dict[str, Any],
]
"""A call to run in a thread: where its result goes, its future there, and what to call in which
context. A tuple, because there are several for each operation."""


def _run(call: _Call) -> None:
    results, outcome, context, function, arguments, options = call
    if outcome.cancelled():
        return
    try:
        result = context.run(function, *arguments, **options)
    except BaseException as error:  # raised where the call is awaited
        results.give(outcome, None, error_for_future(error))
    else:
        results.give(outcome, result, None)
    finally:
        del call, outcome  # an error's traceback holds this frame, and the outcome the error


calling: Final[contextvars.ContextVar[Workers | None]] = contextvars.ContextVar(
    "async_history_workers", default=None
)
"""The workers for mem0's calls in this task; None for plain mem0."""


class using:  # noqa: N801 - a generator's context manager takes four times as long
    """Set the workers for calls inside; None sets none."""

    __slots__ = ("_token", "_workers")

    def __init__(self, workers: Workers | None) -> None:
        self._workers = workers

    def __enter__(self) -> None:
        self._token = calling.set(self._workers)

    def __exit__(self, *_: object) -> None:
        calling.reset(self._token)


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that blocks in a thread: one of the workers, where this task has some.

    Without, in a new one: those of the loop's executor may all be waiting for this.
    """
    workers = calling.get()
    if workers is None:
        context = contextvars.copy_context()
        return await computed(partial(context.run, function, *arguments))
    return await workers.run(function, *arguments)


_all: "weakref.WeakSet[Workers]" = weakref.WeakSet()


def _wait_at_exit() -> None:
    for workers in list(_all):
        workers.wait_until_idle()


def _forget_threads() -> None:
    for workers in list(_all):
        workers.forget_threads()


atexit.register(_wait_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
