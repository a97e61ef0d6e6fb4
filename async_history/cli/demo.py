"""`async-history demo`: a thousand agents record at once, and the speed is measured.

It writes only to a file that it creates itself, or to an empty history.
"""

import asyncio
import os
import shlex
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Final
from uuid import uuid4

from async_history import Event, HistoryManager, HistoryRecord, WriterStats
from async_history._core.wording import counted
from async_history._opening import sqlite_file, without_secrets
from async_history.cli import stores
from async_history.cli.log import print_timeline
from async_history.cli.record import SETTLE_S
from async_history.cli.screen import Screen
from async_history.cli.terminal import escape_controls, print_error, show_progress
from async_history.cli.termination import early_end
from async_history.cli.termination import run as run_until_signal

_TICK_S: Final = 0.005
_DRINKS: Final = ("green tea", "espresso", "oat milk", "cold brew", "mate", "cocoa", "tap water")
_TIMES: Final = ("in the morning", "after lunch", "while reading", "on long train rides")
_LINE: Final = '{"memory_id": "m-1", "event": "ADD", "new_memory": "likes tea"}'


def demo(url: str, *, agents: int, memories: int) -> int:
    """Run the demo on the history at `url`; return the exit status."""
    file = sqlite_file(url)
    if file is not None and not _create(file):
        return 1
    shown = without_secrets(url)
    screen = Screen()
    total = agents * memories * len(Event)
    events = f"{counted(total, 'event')} of {counted(agents, 'agent')}"
    screen.line((escape_controls(f"Recording {events} into {shown}"), "bold"))
    run = Run()
    timeline = run_until_signal(_run(url, run, agents, memories))
    if run.is_stopping:
        word, status = early_end() if run.is_interrupted else (str(run.failure), 1)
        print_error(f"{word}; {counted(len(run.acks_s), 'event was', 'events were')} recorded")
        return status
    if timeline is None:
        print_error(f"{url} has a history already; the demo writes only to an empty one. Try --db")
        return 1
    _print_figures(screen, run, where="on disk" if file else "recorded")
    if timeline:
        screen.line()
        screen.line(("One memory, as async-history log shows it:", "bold"))
        print_timeline(screen, timeline)
    _print_next(screen, url, timeline)
    return 0


def _create(file: Path) -> bool:
    """Create the file, unless it or a file of its log exists. An existing file is not opened."""
    others = [Path(f"{file}{end}") for end in ("", "-wal", "-shm", "-journal")]
    found = next((other for other in others if os.path.lexists(other)), None)
    if found is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            found = file
        else:
            return True
    free = next(
        name
        for number in count(2)
        if not os.path.lexists(name := file.with_stem(f"{file.stem}-{number}"))
    )
    command = shlex.join(["async-history", "demo", "--db", str(free)])
    print_error(
        f"{found} exists, and the demo writes only to a file it creates itself. Try: {command}"
    )
    return False


class Run:
    """The measurements: acks and the longest stall of the loop, in seconds."""

    def __init__(self) -> None:
        self.acks_s: list[float] = []
        self.took_s = 0.0
        self.longest_stall_s = 0.0
        self.writer: WriterStats | None = None
        self.memory_id = ""
        self.failure: BaseException | None = None
        self.is_interrupted = False
        self.is_stopping = False


async def _run(url: str, run: Run, agents: int, memories: int) -> list[HistoryRecord] | None:
    """Let the agents record; return one memory's records, None if the history is not empty."""
    async with stores.opened(url, close_timeout_s=SETTLE_S) as history:
        if [record async for record in history.query_history(limit=1)]:
            return None
        begin = perf_counter()
        tasks = [asyncio.create_task(_agent(history, run, n, memories)) for n in range(agents)]
        async with show_progress(agents * memories * len(Event), lambda: len(run.acks_s), "events"):
            await _end_or_failure(run, tasks)
        run.took_s = perf_counter() - begin
        run.writer = (await history.stats()).writer
        if not run.is_stopping:
            return await history.get_history(run.memory_id)
    # Closing has acked or failed the records that were pending when the agents were stopped.
    await asyncio.gather(*tasks, return_exceptions=True)
    return []


async def _end_or_failure(run: Run, tasks: Sequence["asyncio.Task[None]"]) -> None:
    measuring = asyncio.create_task(_measure_stalls(run))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        run.failure = next((error for task in done if (error := task.exception())), None)
    except asyncio.CancelledError:
        run.is_interrupted = True
    finally:
        measuring.cancel()
        run.is_stopping = run.is_interrupted or run.failure is not None


async def _measure_stalls(run: Run) -> None:
    while True:
        begin = perf_counter()
        await asyncio.sleep(_TICK_S)
        run.longest_stall_s = max(run.longest_stall_s, perf_counter() - begin - _TICK_S)


async def _agent(history: HistoryManager, run: Run, number: int, memories: int) -> None:
    for turn in range(memories):
        memory_id = str(uuid4())
        run.memory_id = run.memory_id or memory_id
        time = _TIMES[turn % len(_TIMES)]
        old, new = (
            f"Likes {_DRINKS[(number + turn + step) % len(_DRINKS)]} {time}" for step in (0, 1)
        )
        for event, before, after in (
            (Event.ADD, None, old),
            (Event.UPDATE, old, new),
            (Event.DELETE, new, None),
        ):
            if run.is_stopping:
                return
            begin = perf_counter()
            await history.add_history(
                memory_id, before, after, event, actor_id=f"agent-{number}", role="assistant"
            )
            run.acks_s.append(perf_counter() - begin)


def _print_figures(screen: Screen, run: Run, where: str) -> None:
    acks = sorted(run.acks_s)
    p50, p99 = acks[len(acks) // 2], acks[len(acks) * 99 // 100]
    screen.line((f"Took {run.took_s:.1f} s, each event awaited until it was {where}", ""))
    screen.line()
    figures = {
        "events a second": f"{len(acks) / run.took_s:,.0f}",
        "ack latency": _latency(p50, p99),
        "loop's longest stall": f"{run.longest_stall_s * 1e3:.1f} ms",
    }
    writer = run.writer
    if writer is not None and writer.commit_p50_s is not None and writer.commit_p99_s is not None:
        figures["commit latency"] = _latency(writer.commit_p50_s, writer.commit_p99_s)
        figures["events a commit"] = f"{writer.batch_records_mean:,.0f}"
    for name, figure in figures.items():
        screen.line((f"  {name:22}", ""), (figure, "bold green"))


def _latency(p50_s: float, p99_s: float) -> str:
    return f"{p50_s * 1e3:.1f} ms p50, {p99_s * 1e3:.1f} ms p99"


def _print_next(screen: Screen, url: str, timeline: Sequence[HistoryRecord]) -> None:
    screen.line()
    screen.line(("Next", "bold"))
    if not sqlite_file(url):
        screen.line(("async-history demo", ""), indent="  ")
        return
    option = "" if stores.is_default(url) else " " + shlex.join(["--db", url])
    for command in (
        f"async-history log {timeline[0].memory_id}{option}",
        f"async-history log {timeline[0].memory_id}{option} --json",
        f"echo '{_LINE}' | async-history record{option}",
        f"async-history log m-1{option}",
    ):
        screen.line((escape_controls(without_secrets(command)), ""), indent="  ", may_break=False)
