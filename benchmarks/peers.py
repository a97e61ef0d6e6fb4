"""How fast is a durable ack, and what does it cost the rest of the program, compared with peers?

    python -m benchmarks.peers [--quick] [--repeat 3] [--dir FOLDER]

Every peer records the same events from 1, 100, 1,000 and 10,000 tasks into a new file; slow peers
are stopped after a time. The order is random in each repetition, what is compared is measured one
after the other, and medians are taken. Ratios are similar on other machines; seconds are not.
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from async_history import open_history
from benchmarks._comparison import PAIRS, Comparison, Measurement, Note, Scale
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
from benchmarks._measure import Add, OthersLoad, median, quiet_collector, timed
from benchmarks._memory import Memory, measure_in_child
from benchmarks._peers import PEERS, ceiling, raw_in_thread
from benchmarks._records import NewRecord, agents, as_made
from benchmarks._report import Bar, options_parser, results_folder, work_folder

_STOPPED_BY_CLOCK: Final = ("mem0", "mem0, WAL", "one aiosqlite connection", "SQLAlchemy sessions")
_RAW: Final = "raw in a thread"


@dataclass(frozen=True, slots=True)
class SQLiteScale(Scale):
    """The sizes of a run: the full one, and `--quick`."""

    batch_records: int = 100_000
    hold_lock_s: float = 3.0


FULL: Final = SQLiteScale()
QUICK: Final = SQLiteScale(
    tasks=(1, MANY_TASKS),
    events=2_000,
    stop_slow_s=0.4,
    stop_fast_s=5.0,
    lone_events=60,
    paced_s=0.2,
    batch_records=1_000,
    hold_lock_s=0.5,
    quiet_wait_s=0.0,
)


@dataclass(slots=True)
class SQLiteFindings(Findings):
    """The results, also of what only this script measures."""

    batch: list[float] = field(default_factory=list)
    batch_ceiling: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            **Findings.as_json(self),  # super() does not know a class that slots replaced
            "batch_records_per_s": self.batch,
            "batch_ceiling_records_per_s": self.batch_ceiling,
            "memory": [asdict(memory) for memory in self.memory],
        }


class Run(Comparison):
    """The comparison on SQLite."""

    findings: SQLiteFindings
    _scale: SQLiteScale

    def __init__(self, scale: SQLiteScale, folder: Path) -> None:
        super().__init__(scale, folder, PEERS, _STOPPED_BY_CLOCK, SQLiteFindings())

    def measurements(self) -> list[Measurement]:
        compared = [self._lone_ack, self.paced_lag, self._batch, self._many_tasks_and_ceiling]
        return [*super().measurements(), self._memory, *compared * PAIRS]

    def _ceiling(self, records: Sequence[NewRecord], noted: list[float]) -> Note:
        with quiet_collector():
            events_per_s = ceiling(self.fresh(), records)
        return lambda: noted.append(events_per_s)

    def _many_tasks_and_ceiling(self) -> Note:
        records = as_made(self.agents(MANY_TASKS))
        return self.side_by_side(
            partial(self.many_tasks, PEERS[OURS], self.findings.many_tasks),
            partial(self._ceiling, records, self.findings.ceiling),
        )

    def _lone_ack(self) -> Note:
        @asynccontextmanager
        async def pair() -> AsyncIterator[tuple[Add, Add]]:
            async with (
                PEERS[OURS](self.fresh()) as add,
                raw_in_thread(self.fresh()) as add_raw,
            ):
                yield add, add_raw

        return self.lone_ack(pair, _RAW)

    def _batch(self) -> Note:
        records = as_made(agents(MANY_TASKS, self._scale.batch_records))[
            : self._scale.batch_records
        ]

        async def batch() -> float:
            mappings = [record.as_mapping() for record in records]
            async with open_history(self.fresh() / "history.db") as history:
                return await timed(lambda: history.batch_add_history(mappings))

        def measure() -> Note:
            with quiet_collector():
                records_per_s = len(records) / asyncio.run(batch())
            return lambda: self.findings.batch.append(records_per_s)

        return self.side_by_side(
            measure, partial(self._ceiling, records, self.findings.batch_ceiling)
        )

    def _memory(self) -> Note:
        memory = measure_in_child(self.fresh(), self._scale.hold_lock_s)
        return lambda: self.findings.memory.append(memory)


# Report


def bars(found: SQLiteFindings) -> list[Bar]:
    """Return the bars of this script."""
    return [
        rate_bar(
            "1,000 tasks: events/s against the ceiling", 0.75, found.many_tasks, found.ceiling
        ),
        many_tasks_bar(found, "mem0", 40),
        many_tasks_bar(found, "mem0, WAL", 10),
        many_tasks_bar(found, "one aiosqlite connection", 3),
        lone_ack_bar(found, _RAW, 1.3),
        paced_lag_bar(found, 2),
        calls_bar(found, "mem0", 1 / 20),
        rate_bar(
            "batch_add_history of many records against the ceiling",
            0.8,
            found.batch,
            found.batch_ceiling,
        ),
        _memory_bar(found.memory),
    ]


def _memory_bar(runs: Sequence[Memory]) -> Bar:
    name = "locked, 10,000 tasks of 10 KB: memory against the queue's limits"
    measured = [run for run in runs if run.peak_growth_bytes is not None]
    held = [(run.peak_growth_bytes or 0) - run.waiting_bytes for run in measured]
    if not runs or not held:
        return Bar(name, 1, float("nan"), "VmHWM is Linux only", at_most=True)
    grown, waiting = median(held), median([float(run.waiting_bytes) for run in measured])
    limit = runs[0].limit_bytes
    figures = (
        f"{grown / 1e6:.0f} / {limit / 1e6:.0f} MB, and waiting callers' own "
        f"{waiting / 1e6:.0f} MB, of {runs[0].offered_bytes / 1e6:.0f} MB offered"
    )
    return Bar(name, 1, grown / limit, figures, at_most=True)


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder:
        run = Run(QUICK if options.quick else FULL, folder)
        load = OthersLoad()
        run.repeat(1 if options.quick else options.repeat)
        found = run.findings
        tell(
            found,
            bars(found),
            PEERS,
            {"ceiling: raw executemany": found.ceiling},
            processors_others_used=load.processors(),
            is_quick=options.quick,
            path=results_folder(options, folder) / "peers",
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
