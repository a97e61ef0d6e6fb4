"""What does mem0's AsyncMemory gain: the real package with its own history, with ours, with none?

    python -m benchmarks.mem0 [--quick] [--repeat 3] [--dir FOLDER]

Agents repeatedly add, update twice, delete and read the history of a memory. Embeddings, model and
vector store answer at once, so only mem0's own work and its history are measured. Plain mem0 waits
for the disk four times for each record, so its speed depends on the disk. Then processes update the
same few memories at the same time, and records that do not continue the previous one are counted.
"""

import asyncio
import json
import os
import random
import sqlite3
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

os.environ["MEM0_TELEMETRY"] = "False"

from mem0 import AsyncMemory as PlainAsyncMemory

from async_history.mem0 import AsyncMemory
from benchmarks._files import fill_messages
from benchmarks._measure import OthersLoad, Watch, median, percentile, quiet_collector
from benchmarks._processes import PLAIN, Updated, update_together
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
    work_folder,
    write_json,
)

OURS: Final = "async_history"
NULL: Final = "async_history, null"
_DIMENSIONS: Final = 8
_PROCESSES: Final = 3
_SHARED_MEMORIES: Final = 4
_ROUND: Final = 5
"""Operations of a round: add, update, update, delete, history."""


class InstantStore:
    """A vector store that takes no time: a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}

    def insert(self, vectors: list[Any], payloads: list[Any], ids: list[str]) -> None:
        self.rows.update(zip(ids, payloads, strict=True))

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        self.rows[vector_id] = payload

    def delete(self, vector_id: str) -> None:
        del self.rows[vector_id]

    def get(self, vector_id: str) -> Any:
        return _Row(vector_id, self.rows[vector_id]) if vector_id in self.rows else None

    def search(self, **_: Any) -> list[Any]:
        return []

    def list(self, **_: Any) -> list[Any]:
        return [[]]

    def search_batch(self, queries: Sequence[str], **_: Any) -> Any:
        return [[] for _ in queries]


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    payload: dict[str, Any]


class InstantModels:
    """Embeddings and an LLM that take no time; the LLM infers one fact from any text."""

    def embed(self, *_: Any, **__: Any) -> list[float]:
        return [0.0] * _DIMENSIONS

    def embed_batch(self, texts: Sequence[str], *_: Any, **__: Any) -> list[list[float]]:
        return [self.embed() for _ in texts]

    def generate_response(self, **_: Any) -> str:
        return json.dumps({"memory": [{"text": f"fact {uuid4()}"}]})


def memory_of(peer: str, folder: Path) -> Any:
    """Return an AsyncMemory of a peer, in a folder."""
    config: dict[str, Any] = {
        "vector_store": {"provider": "qdrant", "config": {"path": str(folder / "vectors")}},
        "llm": {"provider": "openai", "config": {"api_key": "none"}},
        "embedder": {"provider": "openai", "config": {"api_key": "none"}},
        "history_db_path": str(folder / "history.db"),
    }
    if peer == PLAIN:
        memory = PlainAsyncMemory.from_config(config)
    else:
        memory = AsyncMemory.from_config(config, history="null://" if peer == NULL else None)
    memory.vector_store.client.close()
    memory.vector_store = memory._entity_store = InstantStore()
    memory.embedding_model = memory.llm = InstantModels()
    return memory


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer with a number of agents. Times are in seconds; `cpu_us` is that of all threads, per
    operation.
    """

    peer: str
    agents: int
    operations_per_s: float
    update_p50_s: float
    lag_p99_s: float
    to_thread_p99_s: float
    cpu_us: float


async def agent(memory: Any, rounds: int, kept: list[str], updates_s: list[float]) -> None:
    """Do some rounds; note the memories, and the time of each update."""
    for _ in range(rounds):
        added = await memory.add("likes tea", user_id="u", infer=False)
        memory_id = added["results"][0]["id"]
        for text in ("likes mate", "likes cocoa"):
            begun = time.perf_counter()
            await memory.update(memory_id, text)
            updates_s.append(time.perf_counter() - begun)
        await memory.delete(memory_id)
        await memory.history(memory_id)
        kept.append(memory_id)


def measure(peer: str, agents: int, operations: int, folder: Path) -> Cell:
    """Let agents work; check that their history is complete; return their speed."""
    folder.mkdir()
    rounds = max(1, operations // (agents * _ROUND))
    kept: list[str] = []
    updates_s: list[float] = []

    async def work() -> tuple[float, float, Watch]:
        memory = memory_of(peer, folder)
        async with memory:
            await memory.history("nothing")  # opens the file
            with quiet_collector():
                async with Watch() as watch:
                    begun, cpu_begun = time.perf_counter(), time.process_time()
                    await asyncio.gather(
                        *(agent(memory, rounds, kept, updates_s) for _ in range(agents))
                    )
                    seconds = time.perf_counter() - begun
                    cpu_s = time.process_time() - cpu_begun
        return seconds, cpu_s, watch

    seconds, cpu_s, watch = asyncio.run(work())
    if peer != NULL:
        _require_chains(folder / "history.db", kept)
    return Cell(
        peer,
        agents,
        agents * rounds * _ROUND / seconds,
        percentile(updates_s, 0.5),
        percentile(watch.lags, 0.99),
        percentile(watch.calls, 0.99),
        cpu_s * 1e6 / (agents * rounds * _ROUND),
    )


_CHAIN: Final = [
    ("ADD", None, "likes tea"),
    ("UPDATE", "likes tea", "likes mate"),
    ("UPDATE", "likes mate", "likes cocoa"),
    ("DELETE", "likes cocoa", None),
]


def _require_chains(file: Path, memories: Sequence[str]) -> None:
    """Check that every record exists once and in order."""
    with closing(sqlite3.connect(file)) as connection:
        found: dict[str, list[tuple[Any, ...]]] = {}
        rows = connection.execute(
            "SELECT memory_id, event, old_memory, new_memory FROM history ORDER BY rowid"
        )
        for memory_id, *change in rows:
            found.setdefault(memory_id, []).append(tuple(change))
    assert found == dict.fromkeys(memories, _CHAIN), "records are missing or out of order"


def measure_inference(old_messages: int, operations: int, folder: Path) -> float:
    """Return operations a second of add(infer=True), with `old_messages` in the file."""
    folder.mkdir()
    if old_messages:
        fill_messages(folder / "history.db", old_messages)
    asyncio.run(_opened_once(folder))

    async def work() -> float:
        async with memory_of(OURS, folder) as memory:
            await memory.history("nothing")
            agents = 50
            calls: Callable[[int], Coroutine[Any, Any, Any]] = lambda n: memory.add(  # noqa: E731
                "I like tea", user_id=f"u{n}"
            )
            with quiet_collector():
                begun = time.perf_counter()
                for _ in range(operations // agents):
                    await asyncio.gather(*(calls(n) for n in range(agents)))
                return operations / (time.perf_counter() - begun)

    return asyncio.run(work())


async def _opened_once(folder: Path) -> None:
    async with memory_of(OURS, folder) as memory:
        await memory.history("nothing")


def measure_processes(peer: str, rounds: int, folder: Path) -> Updated:
    """Let processes update the same memories."""
    folder.mkdir()
    return update_together(
        peer,
        str(folder / "history.db"),
        folder,
        processes=_PROCESSES,
        memories=_SHARED_MEMORIES,
        rounds=rounds,
    )


def _process_bars(updated: dict[str, list[Updated]]) -> list[Bar]:
    mine, theirs = updated[OURS], updated[PLAIN]
    ratios = [a.updates_per_s / b.updates_per_s for a, b in zip(mine, theirs, strict=True)]
    rates = [rate(median([one.updates_per_s for one in each_])) for each_ in (mine, theirs)]
    breaks = [sum(one.breaks for one in each_) for each_ in (mine, theirs)]
    records = sum(one.records for one in mine)
    name = f"{_PROCESSES} processes, {_SHARED_MEMORIES} memories:"
    return [
        Bar(
            f"{name} updates/s against plain mem0",
            1,
            median(ratios),
            f"{rates[0]} / {rates[1]}; {each(ratios)}",
        ),
        Bar(
            f"{name} breaks of a chain",
            0,
            breaks[0],
            f"{breaks[0]} / {breaks[1]} of {records:,}",
            at_most=True,
            unit="",
        ),
    ]


def _cpu_bar(label: str, ours: Sequence[float], null: Sequence[float]) -> Bar:
    above = [one - other for one, other in zip(ours, null, strict=True)]
    figures = f"{median(ours):.0f} / {median(null):.0f}; " + " ".join(
        f"{one:.0f}" for one in sorted(above)
    )
    name = f"{label} CPU µs an operation above null"
    return Bar(name, 60, median(above), figures, at_most=True, unit="µs")


def bars(
    cells: Sequence[Cell],
    inference: dict[int, list[float]],
    updated: dict[str, list[Updated]],
) -> list[Bar]:
    """Return the bars of this script."""

    def of(peer: str, agents: int, figure: str) -> list[float]:
        return [getattr(c, figure) for c in cells if (c.peer, c.agents) == (peer, agents)]

    def bar(name: str, limit: float, other: str, agents: int, figure: str) -> Bar:
        mine, theirs = of(OURS, agents, figure), of(other, agents, figure)
        ratios = [one / two for one, two in zip(mine, theirs, strict=True)]
        is_rate = figure == "operations_per_s"
        shown = rate if is_rate else milliseconds
        figures = f"{shown(median(mine))} / {shown(median(theirs))}; {each(ratios)}"
        return Bar(name, limit, median(ratios), figures, at_most=not is_rate)

    def against_plain(label: str, agents: int) -> Bar:
        figure = "operations_per_s"
        reached = bar(f"{label} operations/s against plain mem0", 8, PLAIN, agents, figure)
        null, plain = of(NULL, agents, figure), of(PLAIN, agents, figure)
        most = median([one / two for one, two in zip(null, plain, strict=True)])
        return replace(reached, figures=f"{reached.figures}; null {most:.2f}")

    made: list[Bar] = []
    for agents in sorted({cell.agents for cell in cells} - {1}):
        label = f"{agents:,} agents:"
        made += [
            against_plain(label, agents),
            bar(f"{label} operations/s against null", 0.9, NULL, agents, "operations_per_s"),
            bar(f"{label} to_thread p99 against null", 1.3, NULL, agents, "to_thread_p99_s"),
            bar(f"{label} loop lag p99 against null", 1.3, NULL, agents, "lag_p99_s"),
            _cpu_bar(label, of(OURS, agents, "cpu_us"), of(NULL, agents, "cpu_us")),
        ]
    made.append(bar("1 agent: p50 of update against plain mem0", 1, PLAIN, 1, "update_p50_s"))
    empty, full = (inference[key] for key in sorted(inference))
    ratios = [one / two for one, two in zip(full, empty, strict=True)]
    figures = f"{rate(median(full))} / {rate(median(empty))} a second; {each(ratios)}"
    name = f"add(infer=True) with {max(inference):,} old messages against none"
    return [*made, Bar(name, 0.8, median(ratios), figures), *_process_bars(updated)]


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    operations, old_messages = (500, 2_000) if options.quick else (10_000, 1_000_000)
    levels = (5, 10) if options.quick else (100, 1_000)
    cells: list[Cell] = []
    inference: dict[int, list[float]] = {0: [], old_messages: []}
    updated: dict[str, list[Updated]] = {PLAIN: [], OURS: []}
    load = OthersLoad()
    with work_folder(options.dir) as folder:
        for repetition in range(1 if options.quick else options.repeat):
            for agents in (1, *levels):
                for peer in random.sample((PLAIN, OURS, NULL), 3):
                    many = operations // 10 if agents == 1 else operations
                    place = folder / f"{repetition}.{agents}.{peer.replace(' ', '_')}"
                    cells.append(measure(peer, agents, many, place))
            for old in random.sample(sorted(inference), 2):
                place = folder / f"{repetition}.inference.{old}"
                inference[old].append(measure_inference(old, operations // 5, place))
            for peer in random.sample((PLAIN, OURS), 2):
                place = folder / f"{repetition}.processes.{peer.replace(' ', '_')}"
                updated[peer].append(measure_processes(peer, 3 if options.quick else 100, place))
        results = results_folder(options, folder)
        reached = bars(cells, inference, updated)
        _show(cells)
        print_bars(reached)
        others = load.processors()
        print_load(others)
        write_json(
            results / "mem0.json",
            {
                "processors_others_used": others,
                "bars": [as_json(bar) for bar in reached],
                "cells": [asdict(cell) for cell in cells],
                "inference_per_s": {str(old): found for old, found in inference.items()},
                "processes": {
                    peer: [asdict(one) for one in found] for peer, found in updated.items()
                },
            },
        )


def _show(cells: Sequence[Cell]) -> None:
    rows: list[Sequence[str]] = []
    for agents in sorted({cell.agents for cell in cells}):
        for peer in (PLAIN, OURS, NULL):
            own = [cell for cell in cells if (cell.peer, cell.agents) == (peer, agents)]
            rows.append(
                (
                    peer,
                    f"{agents:,}",
                    rate(median([cell.operations_per_s for cell in own])),
                    f"{median([cell.cpu_us for cell in own]):.0f}",
                    *(
                        milliseconds(median([getattr(cell, figure) for cell in own]))
                        for figure in ("update_p50_s", "lag_p99_s", "to_thread_p99_s")
                    ),
                )
            )
    print_table(
        (
            "history",
            "agents",
            "operations/s",
            "CPU µs",
            "update p50 ms",
            "loop lag p99 ms",
            "to_thread p99 ms",
        ),
        rows,
    )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
