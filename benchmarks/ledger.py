"""What does a ledger cost those who record into a SQLite file, and how fast does it prove?

    python -m benchmarks.ledger [--quick] [--rows 3000000] [--repeat 3] [--dir FOLDER]

1,000 tasks record into a file with a ledger and into one without, in turns: mem0's columns alone,
and with an owner, a context and a cause each. Then a large file is verified, which is compared with
reading its rows through the driver, and single records of it are proven.
"""

import asyncio
import sqlite3
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

from async_history import HistoryManager, open_history
from async_history.ledger import Checkpoint, LedgerKey
from benchmarks._measure import OthersLoad, median, percentile, timed
from benchmarks._owners import fill, owners_parser, record, tell
from benchmarks._report import Bar, each, work_folder

_WRITING = 0.75
_VERIFYING = 0.2
_PROOF_MS = 50.0
_PROOFS = 200
_ROWS = """
SELECT history.rowid, history.*, detail.context, detail.cause
FROM history LEFT JOIN async_history_details AS detail ON detail.id = history.id
ORDER BY history.rowid
"""


async def measure(folder: Path, options: Namespace) -> list[Bar]:
    """Measure in turns; return the bars."""
    records, repeat = (6_000, 1) if options.quick else (30_000, options.repeat)
    files = count()
    written: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(1, repeat + 1):
        for with_details in (False, True):
            rates: list[float] = []
            for ledger in (False, True):
                async with open_history(folder / f"{next(files)}.db", ledger=ledger) as history:
                    rates.append(await record(history, records, turn, with_details=with_details))
            written[with_details].append(rates[1] / rates[0])
            print(f"{rates[0]:,.0f} events/s off, {rates[1]:,.0f} on", flush=True)
    bars = [
        _bar("events/s, mem0's columns", written[False]),
        _bar("events/s, with owner, context and cause", written[True]),
    ]
    return [*bars, *await _large(folder / "large.db", 20_000 if options.quick else options.rows)]


async def _large(path: Path, rows: int) -> list[Bar]:
    key = LedgerKey.generate("example.org/benchmark")
    async with open_history(path, ledger=True) as history:
        await fill(history, rows)
        checkpoint = await history.ledger.checkpoint(key)
        scan = await timed(partial(asyncio.to_thread, _scan, path))
        verifying = await timed(partial(history.ledger.verify, checkpoint))
        scan = min(scan, await timed(partial(asyncio.to_thread, _scan, path)))
        proofs = await _proofs(history, checkpoint, path)
    rates = f"{rows / scan:,.0f} records/s scanned, {rows / verifying:,.0f} verified"
    print(rates, flush=True)
    worst = percentile(proofs, 0.99) * 1e3
    typical = f"half within {percentile(proofs, 0.5) * 1e3:.2f} ms, 99% within {worst:.2f} ms"
    return [
        Bar(f"verify of {rows:,} records against a scan", _VERIFYING, scan / verifying, rates),
        Bar(f"a proof among {rows:,}", _PROOF_MS, worst, typical, at_most=True, unit="ms"),
    ]


def _scan(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for _ in connection.execute(_ROWS):
            pass


async def _proofs(history: HistoryManager, checkpoint: Checkpoint, path: Path) -> list[float]:
    return [
        await timed(partial(history.ledger.prove, record_id, checkpoint))
        for record_id in await asyncio.to_thread(_some_ids, path)
    ]


def _some_ids(path: Path) -> list[str]:
    """Return ids from everywhere in the file, in no order."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT id FROM history WHERE rowid % ((SELECT count(*) FROM history) / ? + 1) = 0 "
            "ORDER BY random()",
            (_PROOFS,),
        )
        return [record_id for (record_id,) in rows]


def _bar(name: str, ratios: Sequence[float]) -> Bar:
    return Bar(name, _WRITING, median(ratios), each(ratios))


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        bars = asyncio.run(measure(folder, options))
        tell(options, folder, "ledger", bars, load)


if __name__ == "__main__":
    main(owners_parser(__doc__).parse_args())
