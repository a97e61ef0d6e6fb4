"""What does encryption cost those who record and read, without a ledger and with one?

    python -m benchmarks.encryption [--quick] [--repeat 3] [--dir FOLDER] [--postgres]

1,000 tasks record into an encrypted history and into a clear one, in turns: with mem0's columns
only, and with an owner, a context and a cause. Then all records are read. The event loop's lag is
measured with encryption and a ledger, and with neither: while 1,000 tasks record without a pause,
and at a fixed rate. The histories are SQLite files; with `--postgres`, or `--url`, they are in
PostgreSQL.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

from async_history import HistoryManager
from async_history.encryption import KeyRing
from benchmarks._measure import Watch, median, paced, percentile, timed
from benchmarks._owners import record
from benchmarks._peers import add_to
from benchmarks._records import agents
from benchmarks._report import Bar, each
from benchmarks._stores import Store, run, stores_parser

_AT_LEAST = 0.7
_LAG = 1.3
_TASKS = 1_000
_PACE_PER_S = 4_000
_PACED_S = 3.0


async def measure(store: Store, options: Namespace) -> list[Bar]:
    """Measure in turns; return the bars."""
    records, repeat = (6_000, 1) if options.quick else (30_000, options.repeat)
    keys = KeyRing({"one": os.urandom(32)})
    written: dict[bool, list[float]] = {False: [], True: []}
    read: list[float] = []
    lags: dict[str, list[float]] = {"flat out": [], f"at {_PACE_PER_S:,} events/s": []}
    for turn in range(1, repeat + 1):
        for with_details in (False, True):
            rates: list[float] = []
            seconds: list[float] = []
            for ring in (None, keys):
                async with store.opened(keys=ring) as history:
                    rates.append(await record(history, records, turn, with_details=with_details))
                    seconds.append(await timed(partial(_read, history)))
            written[with_details].append(rates[1] / rates[0])
            read.append(seconds[0] / seconds[1])
            print(f"{rates[0]:,.0f} events/s off, {rates[1]:,.0f} on", flush=True)
        off = await _lags(store, records, turn)
        both = await _lags(store, records, turn, keys=keys, ledger=True)
        for how, one, other in zip(lags, off, both, strict=True):
            lags[how].append(other / one)
            print(f"lag p99 {how}: {one * 1e3:.2f} ms off, {other * 1e3:.2f} ms on", flush=True)
    return [
        _bar("events/s, mem0's columns", written[False]),
        _bar("events/s, with owner, context and cause", written[True]),
        Bar("records/s read by query_history", 0, median(read), each(read)),
        *(
            Bar(f"lag p99 with both, {how}", _LAG, median(ratios), each(ratios), at_most=True)
            for how, ratios in lags.items()
        ),
    ]


def _bar(name: str, ratios: Sequence[float]) -> Bar:
    return Bar(name, _AT_LEAST, median(ratios), each(ratios))


async def _read(history: HistoryManager) -> None:
    async for _ in history.query_history():
        pass


async def _lags(store: Store, records: int, turn: int, **options: Any) -> tuple[float, float]:
    """Return the 99th percentile of the loop's lag: flat out with details, and at a pace."""
    async with store.opened(**options) as history:
        async with Watch(probe=False) as watch:
            await record(history, records, turn, with_details=True)
        per_agent = agents(_TASKS, round(_PACE_PER_S * _PACED_S), 10_000 + turn)
        at_a_pace = await paced(add_to(history), per_agent, _PACE_PER_S)
    return percentile(watch.lags, 0.99), percentile(at_a_pace, 0.99)


if __name__ == "__main__":
    run("encryption", measure, stores_parser(__doc__).parse_args())
