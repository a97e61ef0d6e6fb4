"""How fast is a durable ack in MariaDB? Peers in one run.

    python -m benchmarks.sql [--quick] [--repeat 3] [--dir FOLDER]

Every peer records the same events into a database of its own; the slow ones are stopped by the
clock. The server is the machine's `mariadb-server`, started for the run with its own defaults.
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
    crowd_bar,
    lone_ack_bar,
    rate_bar,
    tell,
)
from benchmarks._measure import OthersLoad, quiet_collector
from benchmarks._records import as_made
from benchmarks._report import Bar, options_parser, results_folder, work_folder
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
}
"""MariaDB's own, where the tests' servers have others."""

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
    """Compares on a server."""

    def __init__(self, scale: Scale, folder: Path, url: URL) -> None:
        self._url = url
        super().__init__(scale, folder, peers(url), (SESSIONS, PATCH), Findings())

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


# Telling


def bars(found: Findings) -> list[Bar]:
    """Return the rows of what must be reached."""
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
    scale = QUICK if options.quick else FULL
    with work_folder(options.dir) as folder, server_url(options.dir) as url:
        run = Run(scale, folder, url)
        load = OthersLoad()
        run.repeat(1 if options.quick else options.repeat)
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
    main(options_parser(__doc__).parse_args())
