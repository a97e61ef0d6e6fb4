"""How long after its ack does a follower in the same process get a record, compared with the ack?

    python -m benchmarks.follow [--quick] [--repeat 3] [--dir FOLDER] [--url postgresql://…]

1, 100 and 1,000 tasks record as fast as their acks come, while one follower reads: in a file, and
in PostgreSQL (from the dev extra, as in benchmarks.postgres). A record that the follower gets
before its caller is woken counts as delivered at once. Then followers resume that missed few
records or many: how long does the first record take?
"""

import asyncio
import secrets
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from async_history import open_history
from benchmarks._measure import OthersLoad, median, percentile, quiet_collector
from benchmarks._records import NewRecord, agents
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
from tests.support.postgres_server import with_query

TASKS: Final = (1, 100, 1_000)
_LIMIT: Final = 10
_EVENTS: Final = {1: 3_000, 100: 60_000, 1_000: 120_000}
_MISSED: Final = (20_000, 400_000)
_BATCH: Final = 1_000
_RESUMES: Final = 5
_RESUME_LIMIT: Final = 2
_QUICK: Final = 20
"""The factor by which a smoke run is smaller."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One store at one number of tasks. Times are in seconds."""

    events_per_s: float
    ack_p50_s: float
    delivery_p50_s: float
    delivery_p99_s: float

    @property
    def ratio(self) -> float:
        return self.delivery_p99_s / self.ack_p50_s


async def follow(url: str, per_agent: Sequence[Sequence[NewRecord]]) -> Delivery:
    """Let every task record one event after the other, while a follower reads."""
    now = time.perf_counter
    waits: list[float] = []
    acked: dict[str, float] = {}
    delivered: dict[str, float] = {}
    events = sum(map(len, per_agent))

    async with open_history(url) as history:

        async def agent(records: Sequence[NewRecord]) -> None:
            for record in records:
                begun = now()
                added = await history.add_history(**record.as_mapping())
                acked[added.id] = now()
                waits.append(acked[added.id] - begun)

        async def read() -> None:
            async for record in history.follow():
                delivered[record.id] = now()
                if len(delivered) == events:
                    return

        reading = asyncio.create_task(read())
        begun = now()
        await asyncio.gather(*map(agent, per_agent))
        took = now() - begun
        await reading
    lags = [max(0.0, delivered[record_id] - at) for record_id, at in acked.items()]
    return Delivery(
        events / took, percentile(waits, 0.5), percentile(lags, 0.5), percentile(lags, 0.99)
    )


async def resume(url: str, missed: Sequence[int]) -> list[float]:
    """Return how long a follower takes to get its first record, for each number of missed ones."""
    now = time.perf_counter
    took: list[float] = []
    async with open_history(url) as history:
        await history.add_history("seen", None, "seen", "ADD")
        cursor = await history.end_cursor()
        there = 0
        for count in missed:
            for _ in range(there, count, _BATCH):
                (records,) = agents(1, _BATCH)
                await history.batch_add_history([record.as_mapping() for record in records])
            there = count
            waits = []
            for _ in range(_RESUMES):
                begun = now()
                await anext(history.follow(after=cursor))
                waits.append(now() - begun)
            took.append(median(waits))
    return took


def measure_resuming(
    urls: Mapping[str, str], repeat: int, smaller: int, folder: Path
) -> dict[str, list[list[float]]]:
    """Measure the first record after few and many missed ones, in a new store each time."""
    missed = [count // smaller for count in _MISSED]
    found: dict[str, list[list[float]]] = defaultdict(list)
    for _ in range(repeat):
        for name, url in urls.items():
            fresh = secrets.token_hex(8)
            where = with_query(url, schema=fresh) if url else str(folder / f"{fresh}.db")
            with quiet_collector():
                found[name].append(asyncio.run(resume(where, missed)))
    return found


def measure(
    urls: Mapping[str, str], repeat: int, smaller: int, folder: Path
) -> dict[tuple[str, int], list[Delivery]]:
    """Measure each store at each number of tasks, in a new file or schema each time."""
    found: dict[tuple[str, int], list[Delivery]] = defaultdict(list)
    for _ in range(repeat):
        for tasks in TASKS:
            for name, url in urls.items():
                fresh = secrets.token_hex(8)
                where = with_query(url, schema=fresh) if url else str(folder / f"{fresh}.db")
                records = agents(tasks, max(tasks * 3, _EVENTS[tasks] // smaller))
                with quiet_collector():
                    found[name, tasks].append(asyncio.run(follow(where, records)))
    return found


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(options.dir))
        url = stack.enter_context(server_url(options))
        told = settings(url)
        load = OthersLoad()
        how = (
            {"SQLite": "", "PostgreSQL": url},
            1 if options.quick else options.repeat,
            _QUICK if options.quick else 1,
            folder,
        )
        found = measure(*how)
        resumed = measure_resuming(*how)
        print_table(
            ("", "tasks", "events/s", "ack p50, ms", "delivery p50", "delivery p99"),
            [
                [
                    name,
                    f"{tasks:,}",
                    rate(median([run.events_per_s for run in runs])),
                    milliseconds(median([run.ack_p50_s for run in runs])),
                    milliseconds(median([run.delivery_p50_s for run in runs])),
                    milliseconds(median([run.delivery_p99_s for run in runs])),
                ]
                for (name, tasks), runs in found.items()
            ],
        )
        print_table(
            ("first record after", *(f"{count // how[2]:,} missed, ms" for count in _MISSED)),
            [
                [name, *(milliseconds(median(times)) for times in zip(*runs, strict=True))]
                for name, runs in resumed.items()
            ],
        )
        bars = [
            Bar(
                f"{name}, {tasks:,} tasks: p99 from ack to delivery against the p50 ack",
                _LIMIT,
                median([run.ratio for run in runs]),
                each([run.ratio for run in runs]),
                at_most=True,
            )
            for (name, tasks), runs in found.items()
        ]
        bars += [
            Bar(
                f"{name}: first record after many missed ones against after a twentieth of them",
                _RESUME_LIMIT,
                median([many / few for few, many in runs]),
                each([many / few for few, many in runs]),
                at_most=True,
            )
            for name, runs in resumed.items()
        ]
        print_bars(bars)
        print_load(load.processors())
        write_json(
            results_folder(options, folder) / "follow.json",
            {
                "server": told,
                "others_processors": load.processors(),
                "bars": [as_json(bar) for bar in bars],
                "runs": [
                    {"store": name, "tasks": tasks, **asdict(run)}
                    for (name, tasks), runs in found.items()
                    for run in runs
                ],
                "first_record_after_missing": resumed,
            },
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--url", help="a server to measure instead, of one host and without TLS")
    main(parser.parse_args())
