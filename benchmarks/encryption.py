"""What does encryption cost those who record and read a SQLite file?

    python -m benchmarks.encryption [--quick] [--repeat 3] [--dir FOLDER]

1,000 tasks record into an encrypted file and into a clear one, in turns: with mem0's columns only,
and with an owner, a context and a cause. Then all records are read.
"""

import asyncio
import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from async_history import HistoryManager, open_history
from async_history.encryption import KeyRing
from benchmarks._measure import OthersLoad, median, timed
from benchmarks._owners import owners_parser, record, tell
from benchmarks._report import Bar, each, work_folder

_AT_LEAST = 0.7


async def measure(folder: Path, options: Namespace) -> list[Bar]:
    """Measure in turns; return the bars."""
    records, repeat = (6_000, 1) if options.quick else (30_000, options.repeat)
    files = count()
    keys = KeyRing({"one": os.urandom(32)})
    written: dict[bool, list[float]] = {False: [], True: []}
    read: list[float] = []
    for turn in range(1, repeat + 1):
        for with_details in (False, True):
            rates: list[float] = []
            seconds: list[float] = []
            for ring in (None, keys):
                async with open_history(folder / f"{next(files)}.db", keys=ring) as history:
                    rates.append(await record(history, records, turn, with_details=with_details))
                    seconds.append(await timed(partial(_read, history)))
            written[with_details].append(rates[1] / rates[0])
            read.append(seconds[0] / seconds[1])
            print(f"{rates[0]:,.0f} events/s off, {rates[1]:,.0f} on", flush=True)
    return [
        _bar("events/s, mem0's columns", written[False]),
        _bar("events/s, with owner, context and cause", written[True]),
        Bar("records/s read by query_history", 0, median(read), each(read)),
    ]


def _bar(name: str, ratios: Sequence[float]) -> Bar:
    return Bar(name, _AT_LEAST, median(ratios), each(ratios))


async def _read(history: HistoryManager) -> None:
    async for _ in history.query_history():
        pass


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        bars = asyncio.run(measure(folder, options))
        tell(options, folder, "encryption", bars, load)


if __name__ == "__main__":
    main(owners_parser(__doc__).parse_args())
