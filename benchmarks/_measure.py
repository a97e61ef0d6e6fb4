"""Timing: tasks that record as fast as they can or at a fixed rate, with or without two watchers.

One watcher sleeps for a millisecond and notes how late it wakes (loop lag). The other makes an
unrelated call of `asyncio.to_thread` every five milliseconds, without waiting for the previous one,
so that a blocked executor does not delay the next call.
"""

import asyncio
import contextlib
import gc
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from benchmarks._records import NewRecord

Add = Callable[[NewRecord], Awaitable[object]]
"""A function that records one event, and returns when it is acked."""

LAG_SLEEP_S: Final = 0.001
PROBE_EVERY_S: Final = 0.005
_NEVER: Final = float("nan")

T = TypeVar("T")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all don't exceed; NaN if there are none."""
    if not values:
        return _NEVER
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer at one number of tasks. Times are in seconds.

    If the time limit was reached, unfinished acks and calls count with their wait so far.
    """

    peer: str
    tasks: int
    events: int
    seconds: float
    ran_out: bool
    ack_p50_s: float
    ack_p99_s: float
    lag_p99_s: float
    stall_s: float
    to_thread_p50_s: float
    to_thread_p99_s: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


class Watch:
    """The two watchers, as a context: `async with Watch() as watch:`."""

    def __init__(self, *, probe: bool = True) -> None:
        self.lags: list[float] = []
        self.calls: list[float] = []
        self._probe = probe
        self._tasks: list[asyncio.Task[None]] = []
        self._calling: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Watch":
        self._tasks = [asyncio.create_task(self._watch_loop())]
        if self._probe:
            await asyncio.to_thread(_nothing)  # starting the executor's thread is not measured
            self._tasks.append(asyncio.create_task(self._watch_executor()))
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *self._calling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_loop(self) -> None:
        while True:
            begun = time.perf_counter()
            try:
                await asyncio.sleep(LAG_SLEEP_S)
            finally:  # the longest stall may be the one that ends with the measurement
                self.lags.append(max(0.0, time.perf_counter() - begun - LAG_SLEEP_S))

    async def _watch_executor(self) -> None:
        due = time.perf_counter()
        while True:
            due = max(due + PROBE_EVERY_S, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            task = asyncio.create_task(self._call())
            self._calling.add(task)
            task.add_done_callback(self._calling.discard)

    async def _call(self) -> None:
        begun = time.perf_counter()
        try:
            await asyncio.to_thread(_nothing)
        finally:
            self.calls.append(time.perf_counter() - begun)


def _nothing() -> None:
    """Do nothing, for an unrelated call of `to_thread`."""


async def unwatched(add: Add, per_agent: Sequence[Sequence[NewRecord]]) -> float:
    """Let every task record one event after the other; return events a second.

    This is compared with peers without a loop: the watchers cost a busy loop about a sixth.
    """

    async def agent(records: Sequence[NewRecord]) -> None:
        for record in records:
            await add(record)

    events = sum(map(len, per_agent))
    return events / await timed(lambda: asyncio.gather(*map(agent, per_agent)))


async def flat_out(
    peer: str, add: Add, per_agent: Sequence[Sequence[NewRecord]], limit_s: float
) -> Cell:
    """Let every task record one event after the other, each awaiting its ack; at most `limit_s`."""
    waits: list[float] = []
    now = time.perf_counter

    async def agent(records: Sequence[NewRecord]) -> None:
        for record in records:
            begun = now()
            try:
                await add(record)
            finally:
                waits.append(now() - begun)

    async with Watch() as watch:
        begun = now()
        tasks = [asyncio.create_task(agent(records)) for records in per_agent]
        done, pending = await asyncio.wait(tasks, timeout=limit_s)
        seconds = now() - begun
        events = len(waits)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    return Cell(
        peer,
        len(tasks),
        events,
        seconds,
        bool(pending),
        percentile(waits, 0.5),
        percentile(waits, 0.99),
        percentile(watch.lags, 0.99),
        max(watch.lags),
        percentile(watch.calls, 0.5),
        percentile(watch.calls, 0.99),
    )


async def paced(
    add: Add, per_agent: Sequence[Sequence[NewRecord]], events_per_s: float
) -> list[float]:
    """Let all tasks record at a fixed total rate, each on its schedule; return the loop's lags."""
    every = len(per_agent) / events_per_s
    begin = time.perf_counter() + 0.1

    async def agent(number: int, records: Sequence[NewRecord]) -> None:
        due = begin + number / events_per_s
        for record in records:
            await asyncio.sleep(due - time.perf_counter())
            await add(record)
            due += every

    tasks = [asyncio.create_task(agent(i, records)) for i, records in enumerate(per_agent)]
    await asyncio.sleep(begin - time.perf_counter())
    async with Watch(probe=False) as watch:
        await asyncio.gather(*tasks)
    return watch.lags


class OthersLoad:
    """The number of processors that other programs keep busy, since its creation; Linux only.

    While other programs run, a peer that uses two processors looks slower than one that uses one.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._busy_s = _machine_busy_s() - _own_busy_s()

    def processors(self) -> float:
        busy_s = _machine_busy_s() - _own_busy_s() - self._busy_s
        return max(0.0, busy_s / (time.perf_counter() - self._begun))


class QuietTimes:
    """Measurements while other programs do not use the processors.

    It waits for such times, and measures again after disturbances, until its budget of lost seconds
    is used up.
    """

    def __init__(self, budget_s: float) -> None:
        self._left_s = budget_s

    def measure(self, measurement: Callable[[], T]) -> T:
        """Return the result of an undisturbed measurement, or of the last one."""
        while True:
            self._wait()
            load, begun = OthersLoad(), time.perf_counter()
            result = measurement()
            if self._left_s <= 0 or not load.processors() > _DISTURBED_PROCESSORS:
                return result
            self._left_s -= time.perf_counter() - begun

    def _wait(self) -> None:
        while self._left_s > 0:
            load = OthersLoad()
            time.sleep(_LOOK_S)
            if not load.processors() > _QUIET_PROCESSORS:
                return
            self._left_s -= _LOOK_S


_LOOK_S: Final = 0.2
_QUIET_PROCESSORS: Final = 0.25
_DISTURBED_PROCESSORS: Final = 0.4


def _machine_busy_s() -> float:
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _idle, _io, *rest = map(int, stat.readline().split()[1:])
    except OSError:
        return _NEVER
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def _own_busy_s() -> float:
    """Return the processor time of this process and its children, running and ended."""
    return sum(os.times()[:4]) + sum(map(_family_busy_s, _children("self")))


def _family_busy_s(pid: str) -> float:
    with contextlib.suppress(OSError):  # the process may have ended
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        user, system, user_waited_for, system_waited_for = map(
            int, stat.rpartition(")")[2].split()[11:15]
        )
        busy = user + system + user_waited_for + system_waited_for
        return busy / os.sysconf("SC_CLK_TCK") + sum(map(_family_busy_s, _children(pid)))
    return 0.0


def _children(pid: str) -> Iterator[str]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from thread.read_text(encoding="ascii").split()


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that one awaited call takes."""
    begun = time.perf_counter()
    await call()
    return time.perf_counter() - begun


@contextlib.contextmanager
def on_one_processor() -> Iterator[None]:
    """Keep this thread, and those it starts, on one processor.

    A call to another thread takes three times as long if the system puts that thread on a sleeping
    processor. That is more than the work of most calls.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the garbage collector from scanning existing objects during a measurement."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def median(values: Sequence[float]) -> float:
    """Return the median of the repetitions that measured a value; NaN if none did."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else _NEVER
