"""Kills a loaded process at random moments, again and again, and checks the file each time.

    python -m tests.subprocesses.kills FOLDER CYCLES SEED

Prints, as JSON, how many children were killed while opening, writing and closing, how many ended
before that, and how many submissions were acked. This process has no loop and no threads, so that
it can fork. A failed assertion ends it.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tests.subprocesses.checks import (
    Wrote,
    check_index,
    check_levels,
    check_manager,
    check_messages,
    check_sound,
    check_submissions,
    looking,
    texts,
)
from tests.subprocesses.load import run_load
from tests.subprocesses.opened import journal, opened
from tests.subprocesses.processes import forked, read_some, read_to_the_end
from tests.support.patience import LONG_S

_RUNS_PER_FILE = 20
"""A new file every so many cycles: first openings are killed too, and checks stay quick."""
_ROUNDS = {"opening": 1, "writing": 400, "closing": 1}


class Moment:
    """When a child is killed: so many lines after a mark, and then so many seconds."""

    def __init__(self, chance: random.Random) -> None:
        self.phase = chance.choices(("opening", "writing", "closing"), (1, 3, 1))[0]
        self.lines = 0
        self.seconds = 0.0
        if self.phase == "opening":
            self.mark = b""
            self.seconds = chance.uniform(0, 0.03)
        elif self.phase == "writing":
            self.mark = b"opened\n"
            if chance.random() < 0.7:
                self.lines = chance.randint(1, 300)
            else:
                self.seconds = chance.uniform(0, 0.03)
        else:
            self.mark = b"closing\n"
            self.seconds = chance.uniform(0, 0.004)

    def has_come(self, report: bytes) -> bool:
        """Return whether a child with this report is killed after the seconds."""
        _, mark, rest = report.partition(self.mark) if self.mark else (b"", b"-", report)
        return bool(mark) and rest.count(b"\n") >= self.lines


class File:
    """One file, and its known content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acked: set[Wrote] = set()
        self.saved: dict[str, int] = {}

    def take(self, report: bytes, *, resetting: bool) -> None:
        """Read a child's report, and check the file as the kill left it."""
        lines = report.decode().split("\n")[:-1]  # an incomplete line was not reported
        # The first to open a file with a hot journal must roll it back.
        with looking(self.path, "ro" if journal() == "wal" else "rw") as connection:
            found = check_submissions(texts(connection))
            if resetting:
                self.take_reset(found, is_done="reset" in lines)
            for kind, *values in map(str.split, lines):
                if kind == "wrote":
                    self.acked.add(Wrote(*map(int, values)))
                elif kind == "saved":
                    self.saved[values[0]] = int(values[1])
            assert self.acked <= found, f"acked and lost: {self.acked - found}"
            check_messages(connection, self.saved)
            check_index(connection)
            check_levels(connection)
            check_sound(connection)

    def take_reset(self, found: set[Wrote], *, is_done: bool) -> None:
        """Check that all earlier records are gone, or none."""
        if is_done:
            assert not self.acked & found
        if not self.acked & found:
            self.acked.clear()
            self.saved.clear()

    def is_made(self) -> bool:
        """Return whether the first opening made the tables."""
        if not self.path.exists():
            return False
        with looking(self.path, "rw") as connection:
            check_sound(connection)
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = {name for (name,) in tables}
            assert not names or names >= {"history", "messages", "async_history_state"}
            return bool(names)


def killed_at(moment: Moment, pid: int, pipe: int) -> tuple[bytes, int]:
    """Kill a child at its moment; return its whole report and how it ended."""
    report = b""
    deadline = time.monotonic() + LONG_S
    while not moment.has_come(report) and time.monotonic() < deadline:
        chunk = read_some(pipe, LONG_S)
        if not chunk:
            break
        report += chunk
    until = time.monotonic() + moment.seconds
    while (left := until - time.monotonic()) > 0:
        chunk = read_some(pipe, left)
        if not chunk:
            break
        report += chunk
    os.kill(pid, signal.SIGKILL)
    rest, status = read_to_the_end(pid, pipe)
    assert moment.has_come(report + rest), "the child was too slow, or ended too soon"
    return report + rest, status


def phase_of(report: bytes, status: int) -> str:
    """Return what a child was doing when it was killed."""
    if status == 0:
        return "ended"
    assert status == -signal.SIGKILL, f"the child failed: {status}"
    if not report:
        return "opening"
    return "closing" if b"closing\n" in report else "writing"


def reopen(path: Path) -> None:
    """Check, in a child, that the library can use the file."""

    async def look() -> None:
        async with opened(path, create=False) as history:
            await check_manager(history, path)
            await history.add_history("last", None, "0 0 0 1 0", "ADD")

    def child(_: int) -> None:
        asyncio.run(look())

    _, status = read_to_the_end(*forked(child))
    assert status == 0
    assert not path.with_name(f"{path.name}-wal").exists(), "the last connection copied the log"
    with looking(path, "rw") as connection:
        check_sound(connection)
    path.unlink()


def main(folder: Path, cycles: int, seed: int) -> None:
    """Run the cycles and print the counts."""
    chance = random.Random(seed)  # noqa: S311 - a test's random choices
    phases: Counter[str] = Counter()
    acked = 0
    file: File | None = None
    for run in range(1, cycles + 1):
        file = file or File(folder / f"history.{run}.db")
        moment = Moment(chance)
        reset = chance.random() < 0.1
        options = {
            "run": run,
            "seed": chance.randrange(1 << 32),
            "rounds": _ROUNDS[moment.phase],
            "reset": reset,
        }
        pid, pipe = forked(partial(run_load, file.path, **options))
        report, status = killed_at(moment, pid, pipe)
        phases[phase_of(report, status)] += 1
        acked += report.count(b"wrote ")
        if report or file.is_made():
            file.take(report, resetting=reset)
        if run % _RUNS_PER_FILE == 0 or run == cycles:
            reopen(file.path)
            file = None
    print(json.dumps({**phases, "acked": acked}))  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
