"""How do insert rate and reads change as the file grows, ours and others'?

    python -m benchmarks.growth [--quick] [--repeat 3] [--rows 0 100000 1000000 3000000]

A large ordinary index on random memory ids changes about one page for each row. It is compared with
alternatives: a larger cache and log, a shorter index, our three levels (raw, and with 1,000 tasks),
no index, and mem0 (which has none). The files of a size are made before its measurement, and
removed after it; 3 million rows take 7 GB in all.
"""

import asyncio
import os
import random
import shutil
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from matplotlib import pyplot as plt
from mem0.memory.storage import SQLiteManager

from async_history import HistoryManager, open_history
from benchmarks._files import (
    BYTES_A_ROW,
    FILE,
    MESSAGES_A_SCOPE,
    ORDINARY_INDEX,
    RECENT_ROWS,
    SHORT_INDEX,
    copy_as_ours,
    copy_file,
    copy_with_index,
    fill_messages,
    grow_history,
    read_through,
    scope,
    some_memories,
)
from benchmarks._measure import (
    OthersLoad,
    QuietTimes,
    median,
    on_one_processor,
    percentile,
    timed,
)
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
from benchmarks._ways import BASELINE, MEM0, OURS, Insert, ways

_FEW_ROWS: Final = 10_000
_FEW_MESSAGES: Final = 100
_MANY_MESSAGES: Final = 1_000_000
_IN_PLACE_ROWS: Final = 500_000
"""From this size on, a run hardly changes the file's size, so insertions need no new copy."""
_TURN: Final = 25
"""Calls on one file before the other's turn."""
_MEM0_READ_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of a run: the full one, and `--quick`.

    `quiet_wait_s` is the time that each size may lose to disturbances by other programs.
    """

    sizes: tuple[int, ...] = (0, 100_000, 1_000_000, 3_000_000)
    inserted: int = 60_000
    reads: int = 1_000
    quiet_wait_s: float = 45.0


FULL: Final = Scale()
QUICK: Final = Scale(sizes=(0, 20_000), inserted=6_000, reads=50, quiet_wait_s=0.0)

Figures = dict[tuple[str, int], list[float]]
"""Values by peer and number of rows, one for each repetition."""


def _figures() -> Figures:
    return defaultdict(list)


@dataclass(slots=True)
class Findings:
    """The measurements. `few` has the small file's figures, measured at the same time."""

    inserts: Figures = field(default_factory=_figures)
    get_history: Figures = field(default_factory=_figures)
    save_messages: Figures = field(default_factory=_figures)
    get_last_messages: Figures = field(default_factory=_figures)
    few: dict[str, Figures] = field(default_factory=lambda: defaultdict(_figures))


Call = Callable[[], Awaitable[object]]


# Measuring


class Growth:
    """Measurements of one size after the other, into `findings`."""

    def __init__(self, scale: Scale, repeat: int, folder: Path) -> None:
        self.findings = Findings()
        self._scale = scale
        self._repeat = repeat
        self._folder = folder
        self._base = folder / "base.db"
        self._seeds = count(1_000_000_000)
        self._random = random.Random()
        self._quiet_times = QuietTimes(0)

    def measure(self) -> None:
        """Measure all sizes, the smallest first: one file grows from size to size."""
        self._prepare_few()
        for size in sorted(self._scale.sizes):
            begun = time.perf_counter()
            self._quiet_times = QuietTimes(self._scale.quiet_wait_s)
            folder = self._folder / str(size)
            folder.mkdir()
            self._prepare(folder, size)
            ready = time.perf_counter()
            with on_one_processor():
                asyncio.run(self._read_histories(folder, size))
            self._insert(folder, size)
            shutil.rmtree(folder)
            folder.mkdir()
            self._messages(folder, size)
            shutil.rmtree(folder)
            seconds, total = ready - begun, time.perf_counter() - begun
            print(f"{size:,} rows: {total:.0f} s, {seconds:.0f} of them to fill", flush=True)

    def _prepare_few(self) -> None:
        few = self._folder / "few.db"
        grow_history(few, 0)
        copy_as_ours(few, self._folder / "few", _FEW_ROWS)
        (self._folder / "few messages").mkdir()
        fill_messages(self._folder / "few messages" / FILE, _FEW_MESSAGES)

    def _prepare(self, folder: Path, size: int) -> None:
        recent = min(size, RECENT_ROWS)
        grow_history(self._base, size - recent)
        copy_as_ours(self._base, folder / "ours", recent)
        grow_history(self._base, size)
        copy_with_index(self._base, folder / "ordinary", ORDINARY_INDEX)
        copy_with_index(self._base, folder / "short", SHORT_INDEX)
        copy_with_index(self._base, folder / "plain", None)
        os.sync()  # pending writes would slow down the first commit

    def _insert(self, folder: Path, size: int) -> None:
        every = list(ways(self._scale.inserted).items())
        is_small = size < _IN_PLACE_ROWS
        for _ in range(self._repeat):
            for name, (file, insert) in self._random.sample(every, len(every)):
                once = partial(self._insert_once, folder / file, insert, is_copied=is_small)
                self.findings.inserts[name, size].append(self._quiet_times.measure(once))

    def _insert_once(self, place: Path, insert: Insert, *, is_copied: bool) -> float:
        if is_copied:
            copy = place.with_name("copy")
            shutil.rmtree(copy, ignore_errors=True)
            place = copy_file(place / FILE, copy)
        return insert(place, next(self._seeds))

    async def _read_histories(self, folder: Path, size: int) -> None:
        def reads(history: HistoryManager, path: Path) -> list[Call]:
            ids = some_memories(path, self._scale.reads)
            return [partial(history.get_history, memory_id) for memory_id in ids]

        few_path, path = self._folder / "few" / FILE, folder / "ours" / FILE
        read_through(path)
        async with open_history(few_path) as few, open_history(path) as history:
            for _ in range(self._repeat):
                mine, few_s = await _by_turns(reads(history, path), reads(few, few_path))
                self.findings.get_history[OURS, size].append(mine)
                self.findings.few["get_history"][OURS, size].append(few_s)
        mem0 = SQLiteManager(str(folder / "plain" / FILE))
        calls = [
            partial(asyncio.to_thread, mem0.get_history, memory_id)
            for memory_id in some_memories(folder / "plain" / FILE, self._scale.reads)
        ]
        self.findings.get_history[MEM0, size].append(await _while_time(calls))
        mem0.close()

    def _messages(self, folder: Path, size: int) -> None:
        (folder / "mem0").mkdir()
        fill_messages(folder / "mem0" / FILE, size)
        copy_file(folder / "mem0" / FILE, folder / "ours")
        os.sync()
        with on_one_processor():
            asyncio.run(self._our_messages(folder / "ours" / FILE, size))
            asyncio.run(self._mem0_messages(folder / "mem0" / FILE, size))

    async def _our_messages(self, path: Path, size: int) -> None:
        few_path = self._folder / "few messages" / FILE
        async with open_history(few_path) as few, open_history(path) as history:
            read_through(path)
            for _ in range(self._repeat):
                for figures, name, calls in (
                    (self.findings.save_messages, "save_messages", self._saves),
                    (self.findings.get_last_messages, "get_last_messages", self._lasts),
                ):
                    mine, few_s = await _by_turns(calls(history, size), calls(few, _FEW_MESSAGES))
                    figures[OURS, size].append(mine)
                    self.findings.few[name][OURS, size].append(few_s)

    async def _mem0_messages(self, path: Path, size: int) -> None:
        mem0 = SQLiteManager(str(path))
        saves = [
            partial(asyncio.to_thread, mem0.save_messages, _EXCHANGE, scope)
            for scope in self._scopes(size)
        ]
        lasts = [
            partial(asyncio.to_thread, mem0.get_last_messages, scope)
            for scope in self._scopes(size)
        ]
        self.findings.save_messages[MEM0, size].append(await _while_time(saves))
        self.findings.get_last_messages[MEM0, size].append(await _while_time(lasts))
        mem0.close()

    def _saves(self, history: HistoryManager, size: int) -> list[Call]:
        return [partial(history.save_messages, _EXCHANGE, s) for s in self._scopes(size)]

    def _lasts(self, history: HistoryManager, size: int) -> list[Call]:
        return [partial(history.get_last_messages, s) for s in self._scopes(size)]

    def _scopes(self, size: int) -> list[str]:
        scopes = max(1, size // MESSAGES_A_SCOPE)
        return [scope(self._random.randrange(scopes)) for _ in range(self._scale.reads)]


_EXCHANGE: Final = (
    {"role": "user", "content": "Which tea shall I have this morning?"},
    {"role": "assistant", "content": "Oolong, as you like it: without sugar."},
)


async def _by_turns(calls: Sequence[Call], others: Sequence[Call]) -> tuple[float, float]:
    """Return the median seconds of both sides' calls, made in turns, without the first turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for start in range(0, len(calls), _TURN):
        for side, waits in zip((calls, others), seconds, strict=True):
            for call in side[start : start + _TURN]:
                waits.append(await timed(call))
    return percentile(seconds[0][_TURN:], 0.5), percentile(seconds[1][_TURN:], 0.5)


async def _while_time(calls: Sequence[Call]) -> float:
    """Return the median seconds of as many calls as there is time for, without the first one."""
    await calls[0]()
    end = time.perf_counter() + _MEM0_READ_S
    waits: list[float] = []
    for call in calls:
        waits.append(await timed(call))
        if time.perf_counter() > end:
            break
    return percentile(waits, 0.5)


# Report


def show(found: Findings) -> None:
    """Print rows inserted a second, and times of reads, with a column for each size."""
    sizes = sorted({size for _, size in found.inserts})
    header = [f"{size:,} rows" for size in sizes]
    names = list(dict.fromkeys(name for name, _ in found.inserts))
    table = [
        [name, *(rate(median(found.inserts[name, size])) for size in sizes)]
        for name in sorted(names, key=list(ways(0)).index)
    ]
    print_table(["rows inserted a second", *header], table)
    table = [
        [f"{call}, {who}", *(milliseconds(median(figures[who, size])) for size in sizes)]
        for call, figures in _calls(found).items()
        for who in (OURS, MEM0)
    ]
    print_table(["p50, ms", *header], [[row[0].removesuffix(_BY_TASKS), *row[1:]] for row in table])


_BY_TASKS: Final = ", 1,000 tasks"


def _calls(found: Findings) -> Mapping[str, Figures]:
    return {
        "get_history": found.get_history,
        "save_messages": found.save_messages,
        "get_last_messages": found.get_last_messages,
    }


def bars(found: Findings) -> list[Bar]:
    """Return the bars of this script."""
    sizes = {size for _, size in found.inserts}
    largest = max(sizes)
    many = _MANY_MESSAGES if _MANY_MESSAGES in sizes else largest
    mine, baseline = found.inserts[OURS, largest], found.inserts[BASELINE, largest]
    ratios = [one / other for one, other in zip(mine, baseline, strict=True)]
    return [
        Bar(
            f"insert rate at {largest:,} rows against raw executemany",
            2,
            median(ratios),
            f"{rate(median(mine))} / {rate(median(baseline))} rows/s; {each(ratios)}",
        ),
        _read_bar(found, "get_history", largest, _FEW_ROWS),
        _read_bar(found, "save_messages", many, _FEW_MESSAGES),
        _read_bar(found, "get_last_messages", many, _FEW_MESSAGES),
    ]


def _read_bar(found: Findings, call: str, size: int, few: int) -> Bar:
    mine, few_s = _calls(found)[call][OURS, size], found.few[call][OURS, size]
    ratios = [one / other for one, other in zip(mine, few_s, strict=True)]
    figures = f"{milliseconds(median(mine))} / {milliseconds(median(few_s))} ms; {each(ratios)}"
    name = f"{call} p50 at {size:,} rows against {few:,}"
    return Bar(name, 1.5, median(ratios), figures, at_most=True)


def plot(found: Findings, path: Path) -> None:
    """Draw insert rates, get_history and messages by number of rows."""
    figure, (inserts, history, messages) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    sizes = sorted({size for _, size in found.inserts})
    for name in ways(0):
        width = 2.5 if name == OURS else 1.2
        values = [median(found.inserts[name, size]) for size in sizes]
        inserts.plot(sizes, values, marker="o", markersize=4, linewidth=width, label=name)
    inserts.set_title("rows inserted a second")
    for call, figures in _calls(found).items():
        axes = history if call == "get_history" else messages
        for who in (OURS, MEM0):
            values = [1e3 * median(figures[who, size]) for size in sizes]
            label = f"{call}, {who.removesuffix(_BY_TASKS)}"
            axes.plot(sizes, values, marker="o", markersize=4, label=label)
    history.set_title("get_history p50, ms")
    messages.set_title("messages p50, ms")
    for axes in (inserts, history, messages):
        axes.set_xscale("symlog", linthresh=10_000)
        axes.set_yscale("log")
        axes.set_xlabel("rows there")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=7)
    save_plot(figure, path)


def findings_as_json(found: Findings, reached: Sequence[Bar]) -> dict[str, Any]:
    """Return all repetitions and the bars, for the JSON file."""

    def table(figures: Figures) -> list[dict[str, Any]]:
        return [{"who": who, "rows": rows, "values": v} for (who, rows), v in figures.items()]

    return {
        "bars": [as_json(bar) for bar in reached],
        "rows_inserted_per_s": table(found.inserts),
        **{f"{call}_p50_s": table(figures) for call, figures in _calls(found).items()},
        **{
            f"{call}_p50_s_of_a_small_file_meanwhile": table(figures)
            for call, figures in found.few.items()
        },
    }


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    scale = QUICK if options.quick else FULL
    if options.rows:
        scale = replace(scale, sizes=tuple(options.rows))
    with work_folder(options.dir, max(scale.sizes) * BYTES_A_ROW) as folder:
        load = OthersLoad()
        growth = Growth(scale, 1 if options.quick else options.repeat, folder)
        growth.measure()
        show(growth.findings)
        reached = bars(growth.findings)
        print_bars(reached)
        others = load.processors()
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        results = results_folder(options, folder)
        write_json(
            results / "growth.json",
            {"processors_others_used": others, **findings_as_json(growth.findings, reached)},
        )
        plot(growth.findings, results / "growth.png")


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", help="sizes, in rows there before")
    main(parser.parse_args())
