"""The comparison of peers: in one run, in a new random order in each repetition."""

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks._findings import MANY_TASKS, OURS, Findings
from benchmarks._measure import (
    Add,
    Cell,
    QuietTimes,
    flat_out,
    paced,
    percentile,
    quiet_collector,
    timed,
    unwatched,
)
from benchmarks._peers import Peer, null
from benchmarks._records import NewRecord, agents

TASKS: Final = (1, 100, MANY_TASKS, 10_000)
PAIRS: Final = 2
"""Measurements in a repetition for what is compared directly, because it is the claim."""
_LONE_TURN: Final = 50
"""Events that one side records before the other side's turn, for the ack of a single task."""
_PACE_PER_S: Final = 10_000

Note = Callable[[], None]
Measurement = Callable[[], Note]
"""A function that measures and returns a function that notes the result, if undisturbed."""
Pair = Callable[[], AbstractAsyncContextManager[tuple[Add, Add]]]
"""Opens our store and another one, to record in them in turns."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of a run.

    `quiet_wait_s` is the time that a repetition may lose to disturbances by other programs.
    """

    tasks: tuple[int, ...] = TASKS
    events: int = 120_000
    stop_slow_s: float = 2.5
    stop_fast_s: float = 60.0
    lone_events: int = 3_000
    paced_s: float = 3.0
    quiet_wait_s: float = 60.0


class Comparison:
    """Measurements into `findings`, each in a separate folder.

    Args:
        peers: all peers to measure at each number of tasks, by name, ours included.
        stopped_by_clock: the names of peers that are too slow to record all events.
    """

    def __init__(
        self,
        scale: Scale,
        folder: Path,
        peers: Mapping[str, Peer],
        stopped_by_clock: Collection[str],
        findings: Findings,
    ) -> None:
        self.findings = findings
        self.peers = peers
        self._scale = scale
        self._stopped_by_clock = stopped_by_clock
        self._folder = folder / "now"
        self._folder.mkdir()
        self._numbers = count()
        self._random = random.Random()
        self.agents = cache(lambda tasks: agents(tasks, scale.events))

    def repeat(self, times: int) -> None:
        """Repeat all measurements, and print how long each repetition took."""
        for number in range(times):
            seconds = self._repetition()
            print(f"repetition {number + 1} of {times}: {seconds:.0f} s", flush=True)

    def _repetition(self) -> float:
        """Measure everything once, in a random order; return the seconds it took."""
        begun = time.perf_counter()
        quiet_times = QuietTimes(self._scale.quiet_wait_s)
        measurements = self.measurements()
        self._random.shuffle(measurements)
        for measurement in measurements:
            note = quiet_times.measure(measurement)
            note()
            shutil.rmtree(self._folder)
            self._folder.mkdir()
        return time.perf_counter() - begun

    def measurements(self) -> list[Measurement]:
        """Return the measurements of a repetition; scripts add their own."""
        return [
            partial(self._cell, name, tasks) for name in self.peers for tasks in self._scale.tasks
        ]

    def fresh(self) -> Path:
        """Return a new folder, which is removed with the measurement."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def side_by_side(self, *measurements: Measurement) -> Note:
        """Do measurements that are compared directly after one another, in a random order."""
        order = self._random.sample(measurements, len(measurements))
        notes = [measurement() for measurement in order]

        def note_all() -> None:
            for note in notes:
                note()

        return note_all

    def _cell(self, name: str, tasks: int) -> Note:
        is_slow = name in self._stopped_by_clock or tasks == 1
        limit_s = self._scale.stop_slow_s if is_slow else self._scale.stop_fast_s
        per_agent = self.agents(tasks)

        async def measure() -> Cell:
            async with self.peers[name](self.fresh()) as add:
                return await flat_out(name, add, per_agent, limit_s)

        with quiet_collector():
            cell = asyncio.run(measure())
        return lambda: self.findings.cells[name, tasks].append(cell)

    def many_tasks(self, peer: Peer, noted: list[float]) -> Note:
        """Let 1,000 tasks record without watchers."""

        async def record() -> float:
            async with peer(self.fresh()) as add:
                return await unwatched(add, self.agents(MANY_TASKS))

        with quiet_collector():
            events_per_s = asyncio.run(record())
        return lambda: noted.append(events_per_s)

    def lone_ack(self, pair: Pair, other: str) -> Note:
        """Measure the ack of a single task, ours and the other's, in turns on the same loop."""
        (records,) = agents(1, 2 * self._scale.lone_events)
        waits: dict[str, list[float]] = {OURS: [], other: []}

        async def record_all(name: str, add: Add, some: Sequence[NewRecord]) -> None:
            for record in some:
                waits[name].append(await timed(partial(add, record)))

        async def measure() -> None:
            async with pair() as (add, add_other):
                for start in range(0, len(records), 2 * _LONE_TURN):
                    middle, end = start + _LONE_TURN, start + 2 * _LONE_TURN
                    await record_all(OURS, add, records[start:middle])
                    await record_all(other, add_other, records[middle:end])

        with quiet_collector():
            asyncio.run(measure())

        def note() -> None:
            for name, seconds in waits.items():
                self.findings.lone_ack_s[name].append(percentile(seconds, 0.5))

        return note

    def paced_lag(self) -> Note:
        """Let 1,000 tasks record at a fixed rate, in our store and in the null store."""
        per_agent = agents(MANY_TASKS, round(self._scale.paced_s * _PACE_PER_S))

        def measure(name: str, peer: Peer) -> Note:
            async def lags() -> list[float]:
                async with peer(self.fresh()) as add:
                    return await paced(add, per_agent, _PACE_PER_S)

            with quiet_collector():
                lag_s = percentile(asyncio.run(lags()), 0.99)
            return lambda: self.findings.paced_lag_s[name].append(lag_s)

        ours = partial(measure, OURS, self.peers[OURS])
        return self.side_by_side(ours, partial(measure, "null", null))
