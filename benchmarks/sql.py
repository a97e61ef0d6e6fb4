"""How fast is a durable ack in MariaDB, compared with peers?

    python -m benchmarks.sql [--quick] [--lone] [--repeat 3] [--dir FOLDER]

Every peer records the same events into a separate database; slow peers are stopped after a time.
With `--lone`, only the ack of a single task is measured, and no results are kept.
The server is the machine's `mariadb-server`, started for the run with its own defaults.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from benchmarks._comparison import PAIRS, Comparison, Measurement, Note, Scale
from benchmarks._findings import (
    MANY_TASKS,
    OURS,
    Findings,
    lone_ack_bar,
    many_tasks_bar,
    rate_bar,
    tell,
)
from benchmarks._measure import OthersLoad, quiet_collector
from benchmarks._records import as_made
from benchmarks._report import (
    Bar,
    options_parser,
    print_bars,
    print_load,
    results_folder,
    work_folder,
)
from benchmarks._sql_peers import (
    HELD,
    PATCH,
    SESSIONS,
    executemany_ceiling,
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
    "sql-mode": "STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
    "innodb-force-primary-key": "OFF",
}
"""MariaDB's defaults, instead of the settings of the tests' servers."""

FULL: Final = Scale(tasks=(1, 100, MANY_TASKS), quiet_wait_s=15.0)
QUICK: Final = Scale(
    tasks=(MANY_TASKS,),
    events=1_000,
    stop_slow_s=0.4,
    stop_fast_s=5.0,
    lone_events=60,
    quiet_wait_s=0.0,
)


class Run(Comparison):
    """The comparison on a server."""

    def __init__(self, scale: Scale, folder: Path, url: URL, *, is_lone: bool) -> None:
        self._url = url
        self._is_lone = is_lone
        super().__init__(scale, folder, peers(url), (SESSIONS, PATCH), Findings())

    def measurements(self) -> list[Measurement]:
        lone_ack = partial(self.lone_ack, partial(ours_and_held, self._url), HELD)
        if self._is_lone:
            return [lone_ack] * PAIRS
        compared: list[Measurement] = [lone_ack, self._many_tasks_and_ceiling]
        return [*super().measurements(), *compared * PAIRS]

    def _many_tasks_and_ceiling(self) -> Note:
        records = as_made(self.agents(MANY_TASKS))

        def ceiling() -> Note:
            with quiet_collector():
                events_per_s = executemany_ceiling(self._url, records)
            return lambda: self.findings.ceiling.append(events_per_s)

        many_tasks = partial(self.many_tasks, self.peers[OURS], self.findings.many_tasks)
        return self.side_by_side(many_tasks, ceiling)


# Report


def bars(found: Findings) -> list[Bar]:
    """Return the bars of this script."""
    return [
        many_tasks_bar(found, SESSIONS, 8),
        rate_bar(
            "1,000 tasks: events/s against executemany of 512 rows",
            0.6,
            found.many_tasks,
            found.ceiling,
        ),
        many_tasks_bar(found, PATCH, 15),
        _lone_ack(found),
    ]


def _lone_ack(found: Findings) -> Bar:
    return lone_ack_bar(found, HELD, 1.5)


@contextmanager
def server_url(folder: Path) -> Iterator[URL]:
    """Yield the URL of a server that is started for the run."""
    if not is_installed():
        raise SystemExit("install MariaDB: apt install mariadb-server")
    tempfile.tempdir = str(folder)  # the parent of the server's folder
    server = MariaDBServer(**_DEFAULTS)
    try:
        yield server.create().start().url("mysql")
    finally:
        server.remove()


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    scale = QUICK if options.quick else FULL
    with work_folder(options.dir) as folder, server_url(options.dir) as url:
        run = Run(scale, folder, url, is_lone=options.lone)
        load = OthersLoad()
        run.repeat(1 if options.quick else options.repeat)
        if options.lone:
            print_bars([_lone_ack(run.findings)])
            print_load(load.processors())
            return
        tell(
            run.findings,
            bars(run.findings),
            run.peers,
            {"ceiling: executemany": run.findings.ceiling},
            processors_others_used=load.processors(),
            is_quick=options.quick,
            path=results_folder(options, folder) / "sql",
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--lone", action="store_true", help="measure only the ack of a single task")
    main(parser.parse_args())
