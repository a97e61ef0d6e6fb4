"""The results of comparing peers, one value for each repetition, and their report."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

from matplotlib import pyplot as plt

from benchmarks._measure import Cell, median
from benchmarks._report import (
    Bar,
    as_json,
    each,
    milliseconds,
    print_bars,
    print_load,
    print_table,
    rate,
    save_plot,
    write_json,
)

OURS: Final = "async_history"
NULL: Final = "async_history, null"
MANY_TASKS: Final = 1_000
"""The number of tasks of most bars."""
NOT_WRITING: Final = (NULL, "writer, no database")
"""Peers that store nothing: the cost of asyncio and of our code without a database."""


@dataclass(slots=True)
class Findings:
    """The measurements, one value for each repetition."""

    cells: dict[tuple[str, int], list[Cell]] = field(default_factory=lambda: defaultdict(list))
    many_tasks: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)
    lone_ack_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    paced_lag_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def of(self, peer: str, tasks: int, figure: str) -> float:
        """Return the median of one figure of a cell; NaN if it was not measured."""
        return median([getattr(cell, figure) for cell in self.cells.get((peer, tasks), [])])

    @property
    def tasks(self) -> list[int]:
        """The numbers of tasks that were measured, the smallest first."""
        return sorted({tasks for _, tasks in self.cells})

    def as_json(self) -> dict[str, Any]:
        """Return all repetitions."""
        return {
            "many_tasks_events_per_s": self.many_tasks,
            "ceiling_events_per_s": self.ceiling,
            "lone_ack_p50_s": self.lone_ack_s,
            "paced_lag_p99_s": self.paced_lag_s,
            "cells": [
                {**asdict(cell), "events_per_s": cell.events_per_s}
                for cells in self.cells.values()
                for cell in cells
            ],
        }


_TIMES: Final = {
    "ack_p50_s": "ack p50 ms",
    "ack_p99_s": "ack p99 ms",
    "lag_p99_s": "loop lag p99 ms",
    "stall_s": "longest stall ms",
    "to_thread_p50_s": "to_thread p50 ms",
    "to_thread_p99_s": "to_thread p99 ms",
}


Levels = Mapping[str, Sequence[float]]
"""Events a second of measurements with 1,000 tasks only, or without tasks, by name."""


def show_cells(found: Findings, peers: Iterable[str], levels: Levels) -> None:
    """Print the medians of the repetitions, one row for each peer and number of tasks."""
    table: list[Sequence[str]] = []
    for tasks in found.tasks:
        for name in peers:
            of = partial(found.of, name, tasks)
            table.append(
                (
                    name,
                    f"{tasks:,}",
                    rate(of("events_per_s")),
                    *(milliseconds(of(figure)) for figure in _TIMES),
                )
            )
        if tasks == MANY_TASKS:
            table += [
                (name, "-", rate(median(measured)), *"-" * len(_TIMES))
                for name, measured in levels.items()
            ]
    print_table(("peer", "tasks", "events/s", *_TIMES.values()), table)


# Bars


def many_tasks_bar(found: Findings, peer: str, limit: float) -> Bar:
    """Return the bar of our events a second from 1,000 tasks against a peer's.

    A quick run may end before a slow peer has recorded anything.
    """
    ours = found.of(OURS, MANY_TASKS, "events_per_s")
    theirs = found.of(peer, MANY_TASKS, "events_per_s")
    figures = f"{rate(ours)} / {rate(theirs)} events/s"
    ratio = ours / theirs if theirs else inf
    return Bar(f"1,000 tasks: events/s against {peer}", limit, ratio, figures)


def calls_bar(found: Findings, peer: str, limit: float) -> Bar:
    """Return the bar of an unrelated `to_thread` call's time, under our load and a peer's."""
    calls = found.of(OURS, MANY_TASKS, "to_thread_p99_s")
    theirs = found.of(peer, MANY_TASKS, "to_thread_p99_s")
    figures = f"{milliseconds(calls)} / {milliseconds(theirs)} ms"
    name = f"1,000 tasks: to_thread p99 against {peer}"
    return Bar(name, limit, calls / theirs, figures, at_most=True)


def lone_ack_bar(found: Findings, other: str, limit: float) -> Bar:
    """Return the bar of a single task's ack."""
    sides = found.lone_ack_s
    return time_bar(f"1 task: p50 ack against {other}", limit, sides[OURS], sides[other])


def paced_lag_bar(found: Findings, limit: float) -> Bar:
    """Return the bar of the loop's lag at a fixed rate, against asyncio and our checks alone."""
    sides = found.paced_lag_s
    name = "10,000 events/s paced: loop lag p99 against null"
    return time_bar(name, limit, sides[OURS], sides["null"])


def rate_bar(name: str, limit: float, mine: Sequence[float], others: Sequence[float]) -> Bar:
    """Return the bar of rates that were measured one after the other."""
    ratios = _ratios(mine, others)
    figures = f"{rate(median(mine))} / {rate(median(others))} a second; {each(ratios)}"
    return Bar(name, limit, median(ratios), figures)


def time_bar(name: str, limit: float, mine: Sequence[float], others: Sequence[float]) -> Bar:
    """Return the bar of times that were measured one after the other."""
    ratios = _ratios(mine, others)
    figures = f"{milliseconds(median(mine))} / {milliseconds(median(others))} ms; {each(ratios)}"
    return Bar(name, limit, median(ratios), figures, at_most=True)


def _ratios(mine: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return a ratio for each repetition, in which both sides were measured."""
    return [one / other for one, other in zip(mine, others, strict=True)]


# Plot and files


def plot(found: Findings, peers: Iterable[str], levels: Levels, path: Path) -> None:
    """Draw events a second, and the wait of an unrelated `to_thread` call, by number of tasks."""
    figure, (rates, calls) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for number, name in enumerate(peers):
        width = 2.5 if name == OURS else 1.2
        style = "--" if name in NOT_WRITING else "-"
        for axes, measure in ((rates, "events_per_s"), (calls, "to_thread_p99_s")):
            if axes is calls and name == NULL:
                continue  # it blocks the loop, so nothing else is called
            scale = 1.0 if axes is rates else 1e3
            values = [scale * found.of(name, many, measure) for many in found.tasks]
            axes.plot(
                found.tasks, values, f"C{number}o{style}", markersize=4, linewidth=width, label=name
            )
    for (name, measured), style in zip(levels.items(), _LEVEL_STYLES, strict=False):
        rates.axhline(median(measured), color="black", linestyle=style, linewidth=1, label=name)
    rates.set_title("events recorded a second")
    calls.set_title("an unrelated to_thread call meanwhile, p99 in ms")
    for axes in (rates, calls):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tasks")
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_plot(figure, path)


_LEVEL_STYLES: Final = ("-", "--", ":", "-.")


def tell(
    found: Findings,
    reached: Sequence[Bar],
    peers: Iterable[str],
    levels: Levels,
    *,
    processors_others_used: float,
    is_quick: bool,
    path: Path,
    **more: Any,
) -> None:
    """Print tables and bars; write them to `path` with the endings .json and .png.

    `more` is added to the JSON before the findings.
    """
    peers = list(peers)
    show_cells(found, peers, levels)
    print_bars(reached)
    print_load(processors_others_used)
    if is_quick:
        print("A quick run shows that everything runs: its figures and bars mean little.")
    write_json(
        path.with_suffix(".json"),
        {
            "processors_others_used": processors_others_used,
            **more,
            "bars": [as_json(bar) for bar in reached],
            **found.as_json(),
        },
    )
    plot(found, peers, levels, path.with_suffix(".png"))
