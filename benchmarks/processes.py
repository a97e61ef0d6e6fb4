"""How much do several processes write together, to one file and to one server?

    python -m benchmarks.processes [--quick] [--repeat 3] [--dir FOLDER] [--url postgresql://…]

1, 2, 4 and 8 processes of 250 tasks each record for some seconds. They are compared with as many
raw processes that commit 250 rows at a time: by `executemany` in SQLite, and in PostgreSQL by COPY
and by the statement that async_history uses. PostgreSQL also gets that statement from processes of
250 tasks that only wait for a future each: the least that tasks cost. The order is random in each
repetition.

The report has: events/s of all processes, the slowest process's share of the fastest one's, the
highest p99 of a process (of an ack, or of a raw transaction), and waits. For SQLite, waits are the
share of time that a raw writer waits for the file's lock. For PostgreSQL, they are the share of
samples, 50 a second, in which a writing connection waited, by what it waited for.
"""

import asyncio
import json
import random
import sys
from argparse import Namespace
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from async_history import open_history
from benchmarks._measure import OthersLoad, median, quiet_collector
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._process_workers import (
    COPY,
    FUTURES,
    MANY,
    NAMED,
    STATEMENT,
    TASKS_WAY,
    Done,
    Work,
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
    work_folder,
    write_json,
)
from benchmarks.postgres import server_url, settings

SQLITE: Final = "SQLite"
POSTGRES: Final = "PostgreSQL"
WAYS: Final[Mapping[str, Sequence[str]]] = {
    SQLITE: (TASKS_WAY, MANY),
    POSTGRES: (TASKS_WAY, NAMED, FUTURES, STATEMENT, COPY),
}
_LOOK_EVERY_S: Final = 0.02
_WAITS: Final = """
SELECT wait_event_type || ' ' || wait_event FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND state = 'active'
    AND pid <> pg_catalog.pg_backend_pid()
"""
_BUSY: Final = "nothing"

Key = tuple[str, str, int]
"""Database, way, number of processes."""


@dataclass(frozen=True, slots=True)
class Together:
    """The results of concurrent processes.

    Attributes:
        each: events a second, by process.
        fairness: the lowest of them, as a share of the highest.
        commit_p50_s: the median commit time of ours, waits included; None for raw writers.
        waits: shares of the time, by what was waited for.
    """

    each: Sequence[float]
    fairness: float
    ack_p99_s: float
    commit_p50_s: float | None
    waits: Mapping[str, float]

    @property
    def events_per_s(self) -> float:
        return sum(self.each)


def _together(done: Sequence[Done], waits: Mapping[str, float]) -> Together:
    rates = [one.events / one.seconds for one in done]
    commits = [one.commit_p50_s for one in done if one.commit_p50_s is not None]
    locked = sum(one.waited_s / one.seconds for one in done) / len(done)
    return Together(
        each=rates,
        fairness=min(rates) / max(rates),
        ack_p99_s=max(one.ack_p99_s for one in done),
        commit_p50_s=median(commits) if commits else None,
        waits={"the file's lock": locked} if locked else waits,
    )


async def _run(works: Sequence[Work], looks_at: str | None) -> Together:
    """Let processes work at the same time; meanwhile, sample a server's waits."""
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks._process_workers", json.dumps(asdict(work))),
            stdin=PIPE,
            stdout=PIPE,
        )
        for work in works
    ]
    try:
        for process in processes:
            assert await _line(process) == "ready"
        seen: Counter[str] = Counter()
        looking = asyncio.create_task(_look(looks_at, seen)) if looks_at else None
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        done = [Done(**json.loads(await _line(process))) for process in processes]
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])
        total = sum(seen.values())
        waits = {name: number / total for name, number in seen.most_common() if name != _BUSY}
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return _together(done, waits)


async def _line(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def _look(url: str, seen: Counter[str]) -> None:
    async with connected(url) as connection:
        while True:
            seen.update(event or _BUSY for (event,) in await connection.fetch(_WAITS))
            await asyncio.sleep(_LOOK_EVERY_S)


async def _measure(key: Key, url: str, folder: Path, seconds: float) -> Together:
    database, way, processes = key
    numbers = range(processes)
    if database == SQLITE:
        file = str(folder / "history.db")
        if way != MANY:
            async with open_history(file):
                """Opening creates the tables."""
        return await _run([Work(way, file, "", seconds, n) for n in numbers], None)
    async with fresh_schema(url) as schema:
        return await _run([Work(way, url, schema, seconds, n) for n in numbers], url)


# Report

Found = Mapping[Key, Sequence[Together]]


def bars(found: Found) -> list[Bar]:
    """Return the bars for four processes, or for the most that there were."""
    most = min(4, max(processes for *_, processes in found))

    def bar(text: str, limit: float, one: Key, other: Key) -> Bar:
        rates = [[run.events_per_s for run in found[key]] for key in (one, other)]
        ratios = [first / second for first, second in zip(*rates, strict=True)]
        figures = f"{rate(median(rates[0]))} / {rate(median(rates[1]))} events/s; {each(ratios)}"
        return Bar(f"{one[0]}, {most} processes: events/s {text}", limit, median(ratios), figures)

    ours = (POSTGRES, TASKS_WAY, most)
    return [
        bar("against one", 0.8, (SQLITE, TASKS_WAY, most), (SQLITE, TASKS_WAY, 1)),
        bar("against raw clients of the same statement", 0.8, ours, (POSTGRES, STATEMENT, most)),
        bar("with named ids against without", 0.9, (POSTGRES, NAMED, most), ours),
    ]


def _show(found: Found) -> None:
    header = ("", "processes", "events/s", "smallest / largest", "p99 ms", "commit p50 ms", "waits")
    shown = []
    for (database, way, processes), runs in sorted(found.items()):
        names = {name for run in runs for name in run.waits}
        waits = {name: median([run.waits.get(name, 0.0) for run in runs]) for name in names}
        commits = [run.commit_p50_s for run in runs if run.commit_p50_s is not None]
        shown.append(
            [
                f"{database}, {way}",
                str(processes),
                rate(median([run.events_per_s for run in runs])),
                f"{median([run.fairness for run in runs]):.2f}",
                milliseconds(median([run.ack_p99_s for run in runs])),
                milliseconds(median(commits)),
                ", ".join(
                    f"{name} {share:.0%}"
                    for name, share in sorted(waits.items(), key=lambda one: -one[1])[:3]
                ),
            ]
        )
    print_table(header, shown)


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "processes_events_per_s": [
            {
                "who": f"{database}, {way}",
                "processes": processes,
                "values": [run.events_per_s for run in runs],
            }
            for (database, way, processes), runs in sorted(found.items())
        ],
        "runs": [
            {"database": database, "way": way, "processes": processes, **asdict(run)}
            for (database, way, processes), runs in sorted(found.items())
            for run in runs
        ],
    }


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    numbers: Sequence[int] = (1, 2) if options.quick else (1, 2, 4, 8)
    seconds, repeat = (0.2, 1) if options.quick else (4.0, options.repeat)
    keys: list[Key] = [
        (database, way, processes)
        for database, ways in WAYS.items()
        for way in ways
        for processes in numbers
    ]
    found: dict[Key, list[Together]] = {key: [] for key in keys}
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(options.dir))
        url = stack.enter_context(server_url(options))
        told = settings(url)
        load = OthersLoad()
        places = count()
        for _ in range(repeat):
            for key in random.sample(keys, len(keys)):
                place = folder / str(next(places))
                place.mkdir()
                with quiet_collector():
                    found[key].append(asyncio.run(_measure(key, url, place, seconds)))
        others = load.processors()
        _show(found)
        reached = bars(found)
        print_bars(reached)
        print_load(others)
        write_json(
            results_folder(options, folder) / "processes.json",
            {
                "processors_others_used": others,
                "server": told,
                "bars": [as_json(bar) for bar in reached],
                **_as_json(found),
            },
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--url", help="a server to measure instead, of one host and without TLS")
    main(parser.parse_args())
