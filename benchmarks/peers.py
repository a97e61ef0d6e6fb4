"""How fast is a durable ack, and what does it cost the rest of the program? Peers in one run.

    python -m benchmarks.peers [--quick] [--repeat 3] [--dir FOLDER]

Every peer records the same events from 1, 100, 1,000 and 10,000 tasks into a fresh file; the slow
ones are stopped by the clock. The order is drawn anew in each repetition, what is compared stands
side by side, and medians are taken: ratios hold from machine to machine, seconds do not.
"""

import asyncio
import random
import shutil
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from matplotlib import pyplot as plt

from async_history import open_history
from benchmarks._measure import (
    Cell,
    OthersLoad,
    QuietTimes,
    flat_out,
    median,
    paced,
    percentile,
    quiet_collector,
    timed,
    unwatched,
)
from benchmarks._memory import Memory, measure_in_child
from benchmarks._peers import PEERS, Peer, ceiling, null, ours, raw_in_thread
from benchmarks._records import NewRecord, agents, as_made
from benchmarks._report import (
    Bar,
    as_json,
    each,
    milliseconds,
    options_parser,
    print_bars,
    print_load,
    print_table,
    rate,
    results_folder,
    save_plot,
    work_folder,
    write_json,
)

OURS: Final = "async_history"
TASKS: Final = (1, 100, 1_000, 10_000)
CROWD: Final = 1_000
"""The number of tasks most bars are about."""
_STOPPED_BY_CLOCK: Final = ("mem0", "mem0, WAL", "one aiosqlite connection", "SQLAlchemy sessions")
_LONE_TURN: Final = 50
"""Events one side records before the other has its turn, for the lone task's ack."""
_PACE_PER_S: Final = 10_000
_PAIRS: Final = 2
"""Times that what is compared side by side is measured in a repetition: it is the claim."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: the full run, and `--quick`.

    `quiet_wait_s` is what may be lost, in each repetition, to times that others disturb.
    """

    tasks: tuple[int, ...] = TASKS
    events: int = 120_000
    stop_slow_s: float = 2.5
    stop_fast_s: float = 60.0
    lone_events: int = 3_000
    paced_s: float = 3.0
    batch_records: int = 100_000
    hold_lock_s: float = 3.0
    quiet_wait_s: float = 60.0


FULL: Final = Scale()
QUICK: Final = Scale(
    tasks=(1, 100, CROWD),
    events=6_000,
    stop_slow_s=0.4,
    stop_fast_s=5.0,
    lone_events=300,
    paced_s=0.5,
    batch_records=5_000,
    hold_lock_s=1.5,
    quiet_wait_s=0.0,
)


@dataclass(slots=True)
class Findings:
    """What was measured, a value for each repetition."""

    cells: dict[tuple[str, int], list[Cell]] = field(default_factory=lambda: defaultdict(list))
    crowd: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)
    lone_ack_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    paced_lag_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    batch: list[float] = field(default_factory=list)
    batch_ceiling: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def of(self, peer: str, tasks: int, figure: str) -> float:
        """Return the median of one figure of a cell; NaN where it was not measured."""
        return median([getattr(cell, figure) for cell in self.cells.get((peer, tasks), [])])


Note = Callable[[], None]
Measurement = Callable[[], Note]
"""Measure, and return how it is noted, if nobody disturbed it."""


class Run:
    """Measures into `findings`, each measurement in a folder of its own."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.findings = Findings()
        self._scale = scale
        self._folder = folder / "now"
        self._folder.mkdir()
        self._numbers = count()
        self._random = random.Random()
        self._agents = cache(lambda tasks: agents(tasks, scale.events))

    def repetition(self) -> float:
        """Measure everything once, in an order of its own; return the seconds it took."""
        begun = time.perf_counter()
        quiet_times = QuietTimes(self._scale.quiet_wait_s)
        compared = [self._lone_ack, self._paced_lag, self._batch, self._crowd_and_ceiling]
        measurements: list[Measurement] = [self._memory, *compared * _PAIRS]
        measurements += [
            partial(self._cell, name, tasks) for name in PEERS for tasks in self._scale.tasks
        ]
        self._random.shuffle(measurements)
        for measurement in measurements:
            note = quiet_times.measure(measurement)
            note()
            shutil.rmtree(self._folder)
            self._folder.mkdir()
        return time.perf_counter() - begun

    def _fresh(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _both(self, one: Measurement, other: Measurement) -> Note:
        """Do both, in either order: what is compared stands side by side."""
        notes = [measurement() for measurement in self._random.sample((one, other), 2)]

        def note_both() -> None:
            for note in notes:
                note()

        return note_both

    def _cell(self, name: str, tasks: int) -> Note:
        is_slow = name in _STOPPED_BY_CLOCK or tasks == 1
        limit_s = self._scale.stop_slow_s if is_slow else self._scale.stop_fast_s
        per_agent = self._agents(tasks)

        async def measure() -> Cell:
            async with PEERS[name](self._fresh()) as add:
                return await flat_out(name, add, per_agent, limit_s)

        with quiet_collector():
            cell = asyncio.run(measure())
        return lambda: self.findings.cells[name, tasks].append(cell)

    def _ceiling(self, records: Sequence[NewRecord], noted: list[float]) -> Note:
        with quiet_collector():
            events_per_s = ceiling(self._fresh(), records)
        return lambda: noted.append(events_per_s)

    def _crowd(self) -> Note:
        async def crowd() -> float:
            async with ours(self._fresh()) as add:
                return await unwatched(add, self._agents(CROWD))

        with quiet_collector():
            events_per_s = asyncio.run(crowd())
        return lambda: self.findings.crowd.append(events_per_s)

    def _crowd_and_ceiling(self) -> Note:
        records = as_made(self._agents(CROWD))
        return self._both(self._crowd, partial(self._ceiling, records, self.findings.ceiling))

    def _lone_ack(self) -> Note:
        """One task: our ack and a raw transaction in a thread, by turns in the same loop."""
        (records,) = agents(1, 2 * self._scale.lone_events)
        waits: dict[str, list[float]] = {OURS: [], "raw": []}

        async def measure() -> None:
            async with ours(self._fresh()) as add, raw_in_thread(self._fresh()) as add_raw:
                for start in range(0, len(records), 2 * _LONE_TURN):
                    for record in records[start : start + _LONE_TURN]:
                        waits[OURS].append(await timed(partial(add, record)))
                    for record in records[start + _LONE_TURN : start + 2 * _LONE_TURN]:
                        waits["raw"].append(await timed(partial(add_raw, record)))

        with quiet_collector():
            asyncio.run(measure())

        def note() -> None:
            for name, seconds in waits.items():
                self.findings.lone_ack_s[name].append(percentile(seconds, 0.5))

        return note

    def _paced_lag(self) -> Note:
        per_agent = agents(CROWD, round(self._scale.paced_s * _PACE_PER_S))

        def measure(name: str, peer: Peer) -> Note:
            async def lags() -> list[float]:
                async with peer(self._fresh()) as add:
                    return await paced(add, per_agent, _PACE_PER_S)

            with quiet_collector():
                lag_s = percentile(asyncio.run(lags()), 0.99)
            return lambda: self.findings.paced_lag_s[name].append(lag_s)

        return self._both(partial(measure, OURS, ours), partial(measure, "null", null))

    def _batch(self) -> Note:
        records = as_made(agents(CROWD, self._scale.batch_records))[: self._scale.batch_records]

        async def batch() -> float:
            mappings = [record.as_mapping() for record in records]
            async with open_history(self._fresh() / "history.db") as history:
                return await timed(lambda: history.batch_add_history(mappings))

        def measure() -> Note:
            with quiet_collector():
                records_per_s = len(records) / asyncio.run(batch())
            return lambda: self.findings.batch.append(records_per_s)

        return self._both(measure, partial(self._ceiling, records, self.findings.batch_ceiling))

    def _memory(self) -> Note:
        memory = measure_in_child(self._fresh(), self._scale.hold_lock_s)
        return lambda: self.findings.memory.append(memory)


# Telling


def show_cells(found: Findings) -> None:
    """Print a row for each peer at each number of tasks, medians of the repetitions."""
    table: list[Sequence[str]] = []
    for tasks in sorted({tasks for _, tasks in found.cells}):
        for name in PEERS:
            of = partial(found.of, name, tasks)
            table.append(
                (
                    name,
                    f"{tasks:,}",
                    rate(of("events_per_s")),
                    *(milliseconds(of(figure)) for figure in _TIMES),
                )
            )
        if tasks == CROWD:
            table.append(
                ("ceiling: raw executemany", "-", rate(median(found.ceiling)), *"-" * len(_TIMES))
            )
    print_table(("peer", "tasks", "events/s", *_TIMES.values()), table)


_TIMES: Final = {
    "ack_p50_s": "ack p50 ms",
    "ack_p99_s": "ack p99 ms",
    "lag_p99_s": "loop lag p99 ms",
    "stall_s": "longest stall ms",
    "to_thread_p50_s": "to_thread p50 ms",
    "to_thread_p99_s": "to_thread p99 ms",
}


def bars(found: Findings) -> list[Bar]:
    """Return the rows of what must be reached that this script can answer."""
    crowd = found.of(OURS, CROWD, "events_per_s")
    calls = found.of(OURS, CROWD, "to_thread_p99_s")
    calls_mem0 = found.of("mem0", CROWD, "to_thread_p99_s")

    def against(peer: str, limit: float) -> Bar:
        theirs = found.of(peer, CROWD, "events_per_s")
        figures = f"{rate(crowd)} / {rate(theirs)} events/s"
        return Bar(f"1,000 tasks: events/s against {peer}", limit, crowd / theirs, figures)

    return [
        _rate_bar("1,000 tasks: events/s against the ceiling", 0.75, found.crowd, found.ceiling),
        against("mem0", 40),
        against("mem0, WAL", 10),
        against("one aiosqlite connection", 3),
        _time_bar(
            "1 task: p50 ack against raw in a thread",
            1.3,
            found.lone_ack_s[OURS],
            found.lone_ack_s["raw"],
        ),
        _time_bar(
            "10,000 events/s paced: loop lag p99 against null",
            2,
            found.paced_lag_s[OURS],
            found.paced_lag_s["null"],
        ),
        Bar(
            "1,000 tasks: to_thread p99 against mem0",
            1 / 20,
            calls / calls_mem0,
            f"{milliseconds(calls)} / {milliseconds(calls_mem0)} ms",
            at_most=True,
        ),
        _rate_bar(
            "batch_add_history of many records against the ceiling",
            0.8,
            found.batch,
            found.batch_ceiling,
        ),
        _memory_bar(found.memory),
    ]


def _ratios(ours_: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return a ratio for each repetition: both sides of it were measured side by side."""
    return [mine / other for mine, other in zip(ours_, theirs, strict=True)]


def _rate_bar(name: str, limit: float, mine: Sequence[float], others: Sequence[float]) -> Bar:
    ratios = _ratios(mine, others)
    figures = f"{rate(median(mine))} / {rate(median(others))} a second; {each(ratios)}"
    return Bar(name, limit, median(ratios), figures)


def _time_bar(name: str, limit: float, mine: Sequence[float], others: Sequence[float]) -> Bar:
    ratios = _ratios(mine, others)
    figures = f"{milliseconds(median(mine))} / {milliseconds(median(others))} ms; {each(ratios)}"
    return Bar(name, limit, median(ratios), figures, at_most=True)


def _memory_bar(runs: Sequence[Memory]) -> Bar:
    name = "locked, 10,000 tasks of 10 KB: memory against the queue's limits"
    measured = [run for run in runs if run.peak_growth_bytes is not None]
    held = [(run.peak_growth_bytes or 0) - run.waiting_bytes for run in measured]
    if not runs or not held:
        return Bar(name, 1, float("nan"), "VmHWM is Linux only", at_most=True)
    grown, waiting = median(held), median([float(run.waiting_bytes) for run in measured])
    limit = runs[0].limit_bytes
    figures = (
        f"{grown / 1e6:.0f} / {limit / 1e6:.0f} MB, and waiting callers' own "
        f"{waiting / 1e6:.0f} MB, of {runs[0].offered_bytes / 1e6:.0f} MB offered"
    )
    return Bar(name, 1, grown / limit, figures, at_most=True)


def plot(found: Findings, path: Path) -> None:
    """Draw events a second, and what an unrelated `to_thread` call waits, by number of tasks."""
    figure, (rates, calls) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    tasks = sorted({tasks for _, tasks in found.cells})
    for number, name in enumerate(PEERS):
        width = 2.5 if name == OURS else 1.2
        style = "--" if name in ("async_history, null", "writer, no database") else "-"
        for axes, measure in ((rates, "events_per_s"), (calls, "to_thread_p99_s")):
            if axes is calls and name == "async_history, null":
                continue  # it never lets go of the loop, so nothing else is called
            scale = 1.0 if axes is rates else 1e3
            values = [scale * found.of(name, many, measure) for many in tasks]
            axes.plot(
                tasks, values, f"C{number}o{style}", markersize=4, linewidth=width, label=name
            )
    rates.axhline(median(found.ceiling), color="black", linewidth=1, label="ceiling: executemany")
    rates.set_title("events recorded a second")
    calls.set_title("an unrelated to_thread call meanwhile, p99 in ms")
    for axes in (rates, calls):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tasks")
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_plot(figure, path)


def findings_as_json(found: Findings, reached: Sequence[Bar]) -> dict[str, Any]:
    """Return all repetitions and the bars, for the JSON file."""
    return {
        "bars": [as_json(bar) for bar in reached],
        "crowd_events_per_s": found.crowd,
        "ceiling_events_per_s": found.ceiling,
        "lone_ack_p50_s": found.lone_ack_s,
        "paced_lag_p99_s": found.paced_lag_s,
        "batch_records_per_s": found.batch,
        "batch_ceiling_records_per_s": found.batch_ceiling,
        "memory": [asdict(memory) for memory in found.memory],
        "cells": [
            {**asdict(cell), "events_per_s": cell.events_per_s}
            for cells in found.cells.values()
            for cell in cells
        ],
    }


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    repetitions = 1 if options.quick else options.repeat
    with work_folder(options.dir) as folder:
        run = Run(QUICK if options.quick else FULL, folder)
        load = OthersLoad()
        for number in range(repetitions):
            seconds = run.repetition()
            print(f"repetition {number + 1} of {repetitions}: {seconds:.0f} s", flush=True)
        show_cells(run.findings)
        reached = bars(run.findings)
        print_bars(reached)
        others = load.processors()
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        results = results_folder(options, folder)
        write_json(
            results / "peers.json",
            {"processors_others_used": others, **findings_as_json(run.findings, reached)},
        )
        plot(run.findings, results / "peers.png")


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
