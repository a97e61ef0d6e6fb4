"""How fast is a durable ack in MariaDB, and do questions stay fast as it grows? Peers in one run.

    python -m benchmarks.sql [--quick] [--repeat 3] [--dir FOLDER]

Every peer records the same events into a database of its own; the slow ones are stopped by the
clock. The server is the machine's `mariadb-server`, started for the run with its own defaults.
"""

import asyncio
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL

from async_history.sql import SqlHistoryManager
from benchmarks._comparison import PAIRS, Comparison, Measurement, Note, Scale
from benchmarks._findings import (
    MANY_TASKS,
    OURS,
    Findings,
    crowd_bar,
    lone_ack_bar,
    rate_bar,
    tell,
    time_bar,
)
from benchmarks._measure import OthersLoad, percentile, quiet_collector, timed
from benchmarks._records import agents, as_made
from benchmarks._report import Bar, options_parser, results_folder, work_folder
from benchmarks._sql_peers import (
    HELD,
    PATCH,
    SESSIONS,
    execute,
    executemany_ceiling,
    fresh_database,
    ours_and_held,
    peers,
)
from tests.support.mariadb_server import MariaDBServer, is_installed

_DEFAULTS: Final = {
    "innodb-flush-log-at-trx-commit": "1",
    "innodb-doublewrite": "ON",
    "innodb-buffer-pool-size": "128M",
    "innodb-log-file-size": "96M",
    "innodb-stats-persistent": "ON",
    "max-connections": "151",
    "max-allowed-packet": "16M",
}
"""MariaDB's own, where the tests' servers have others."""
_BLOCK: Final = 10_000
_CALLS: Final = 200
_COPY: Final = (
    """
    INSERT INTO async_history_records
    SELECT seq + {n}, CONCAT(id, '-', {n}), CONCAT(memory_id, '-', {n}), old_memory, new_memory,
        event, created_at, updated_at, is_deleted, CONCAT(actor_id, '-', {n}), role,
        occurred_at + {n}, user_id, agent_id, run_id, app_id, context, cause, long_names
    FROM async_history_records WHERE seq <= {block}
    """,
    """
    INSERT INTO async_history_marks
    SELECT mark + {n}, seq + {n} FROM async_history_marks WHERE seq <= {block}
    """,
)
"""The first records again, of other memories and actors."""
_SPANS: Final = (
    "DELETE FROM async_history_spans",
    """
    INSERT INTO async_history_spans
    SELECT seq >> 12, MIN(occurred_at), MAX(occurred_at), 7, 0 FROM async_history_records GROUP BY 1
    """,
    "UPDATE async_history_state SET last = (SELECT MAX(seq) FROM async_history_records)",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of a small history and of a large one, and how often each is asked."""

    small: int = _BLOCK
    large: int = 3_000_000
    calls: int = _CALLS


FULL: Final = Scale(tasks=(1, 100, MANY_TASKS), quiet_wait_s=15.0)
QUICK: Final = Scale(
    tasks=(MANY_TASKS,),
    events=1_000,
    stop_slow_s=0.4,
    stop_fast_s=5.0,
    lone_events=60,
    quiet_wait_s=0.0,
)
QUICK_SIZES: Final = Sizes(600, 1_200, 3)


@dataclass(slots=True)
class SqlFindings(Findings):
    """What only this script measures, too: the median seconds of each question, by rows."""

    asked_s: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def as_json(self) -> dict[str, Any]:
        return {
            **Findings.as_json(self),  # super() does not know a class that slots replaced
            "asked_p50_s": {" | ".join(map(str, key)): it for key, it in self.asked_s.items()},
        }


class Run(Comparison):
    """Compares on a server."""

    findings: SqlFindings

    def __init__(self, scale: Scale, folder: Path, url: URL) -> None:
        self._url = url
        super().__init__(scale, folder, peers(url), (SESSIONS, PATCH), SqlFindings())

    def measurements(self) -> list[Measurement]:
        compared: list[Measurement] = [
            partial(self.lone_ack, partial(ours_and_held, self._url), HELD),
            self._crowd_and_ceiling,
        ]
        return [*super().measurements(), *compared * PAIRS]

    def _crowd_and_ceiling(self) -> Note:
        records = as_made(self.agents(MANY_TASKS))

        def ceiling() -> Note:
            with quiet_collector():
                events_per_s = executemany_ceiling(self._url, records)
            return lambda: self.findings.ceiling.append(events_per_s)

        crowd = partial(self.crowd, self.peers[OURS], self.findings.crowd)
        return self.side_by_side(crowd, ceiling)


# Questions


async def ask(url: URL, sizes: Sizes, repeat: int, found: SqlFindings) -> None:
    """Ask a small history and a large one the same, by turns."""
    async with (
        filled(url, sizes.small, sizes.small) as (small, memories),
        filled(url, sizes.large, sizes.small) as (large, _),
    ):
        for _ in range(repeat):
            for rows, history in ((sizes.small, small), (sizes.large, large)):
                for name, call in questions(history).items():
                    waits = [
                        await timed(partial(call, memories[number % len(memories)]))
                        for number in range(sizes.calls)
                    ]
                    found.asked_s[name, rows].append(percentile(waits, 0.5))


def questions(history: SqlHistoryManager) -> Mapping[str, Callable[[str], Awaitable[object]]]:
    """Return what is asked, of a memory each."""

    async def page(**wanted: Any) -> object:
        return await anext(aiter(history.query_history(page_size=100, order="newest", **wanted)))

    return {
        "get_history": history.get_history,
        "the newest page": lambda memory: page(),
        "a page of a memory": lambda memory: page(memory_id=memory),
        "a page of an actor": lambda memory: page(actor_id="agent-0"),
        "a page of an event": lambda memory: page(event="DELETE"),
        "a count of a memory": lambda memory: history.count_history(memory_id=memory),
        "a count of an actor": lambda memory: history.count_history(actor_id="agent-0"),
    }


@asynccontextmanager
async def filled(
    url: URL, rows: int, block: int
) -> AsyncIterator[tuple[SqlHistoryManager, list[str]]]:
    """Yield a history of so many rows, and the memories of its first `block`."""
    (records,) = agents(1, block)
    async with fresh_database(url) as fresh, SqlHistoryManager(fresh) as history:
        await history.batch_add_history([one.as_mapping() for one in records])
        for start in range(block, rows, block):
            await execute(fresh, *(one.format(n=start, block=block) for one in _COPY))
        if rows > block:
            await execute(fresh, *_SPANS, "ANALYZE TABLE async_history_records")
        yield history, list(dict.fromkeys(record.memory_id for record in records))


# Telling


def bars(found: SqlFindings, sizes: Sizes) -> list[Bar]:
    """Return the rows of what must be reached."""
    asked = found.asked_s
    return [
        crowd_bar(found, SESSIONS, 8),
        rate_bar(
            "1,000 tasks: events/s against executemany of 512 rows",
            0.6,
            found.crowd,
            found.ceiling,
        ),
        crowd_bar(found, PATCH, 15),
        lone_ack_bar(found, HELD, 1.5),
        *(
            time_bar(
                f"{name}: {sizes.large:,} rows against {sizes.small:,}",
                2,
                asked[name, sizes.large],
                asked[name, sizes.small],
            )
            for name in dict.fromkeys(name for name, _ in asked)
        ),
    ]


@contextmanager
def server_url(folder: Path) -> Iterator[URL]:
    """Yield the URL of a server that is started for the run."""
    if not is_installed():
        raise SystemExit("install MariaDB: apt install mariadb-server")
    tempfile.tempdir = str(folder)  # where the server makes its folder
    server = MariaDBServer(**_DEFAULTS)
    try:
        yield server.create().start().url("mysql")
    finally:
        server.remove()


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    scale, sizes = (QUICK, QUICK_SIZES) if options.quick else (FULL, Sizes())
    repeat = 1 if options.quick else options.repeat
    with work_folder(options.dir) as folder, server_url(options.dir) as url:
        run = Run(scale, folder, url)
        load = OthersLoad()
        run.repeat(repeat)
        asyncio.run(ask(url, sizes, repeat, run.findings))
        tell(
            run.findings,
            bars(run.findings, sizes),
            run.peers,
            {"ceiling: executemany": run.findings.ceiling},
            processors_others_used=load.processors(),
            is_quick=options.quick,
            path=results_folder(options, folder) / "sql",
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
