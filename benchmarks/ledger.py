"""What does a ledger cost when recording, and how fast are its proofs?

    python -m benchmarks.ledger [--quick] [--rows 3000000] [--repeat 3] [--dir FOLDER] [--postgres]

1,000 tasks record into a SQLite file with a ledger and into one without, in turns: with mem0's
columns only, and with an owner, a context and a cause. Then a large history is verified, which is
compared with reading its rows through the driver, and single records are proven. With `--postgres`,
or `--url`, the histories are in PostgreSQL.
"""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from async_history import HistoryManager
from async_history.ledger import Checkpoint, LedgerKey
from benchmarks._measure import median, percentile, timed
from benchmarks._owners import fill, record
from benchmarks._report import Bar, each
from benchmarks._stores import Store, run, stores_parser

_WRITING = 0.75
_VERIFYING = 0.2
_PROOF_MS = 50.0
_PROOFS = 200


async def measure(store: Store, options: Namespace) -> list[Bar]:
    """Measure in turns; return the bars."""
    records, repeat = (6_000, 1) if options.quick else (30_000, options.repeat)
    written: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(1, repeat + 1):
        for with_details in (False, True):
            rates: list[float] = []
            for ledger in (False, True):
                async with store.opened(ledger=ledger) as history:
                    rates.append(await record(history, records, turn, with_details=with_details))
            written[with_details].append(rates[1] / rates[0])
            print(f"{rates[0]:,.0f} events/s off, {rates[1]:,.0f} on", flush=True)
    bars = [
        _bar("events/s, mem0's columns", written[False]),
        _bar("events/s, with owner, context and cause", written[True]),
    ]
    return [*bars, *await _large(store, 20_000 if options.quick else options.rows)]


async def _large(store: Store, rows: int) -> list[Bar]:
    key = LedgerKey.generate("example.org/benchmark")
    async with store.opened(ledger=True) as history:
        await fill(history, rows)
        checkpoint = await history.ledger.checkpoint(key)
        scan = await timed(store.scan)
        verifying = await timed(partial(history.ledger.verify, checkpoint))
        scan = min(scan, await timed(store.scan))
        proofs = [
            await timed(partial(_prove, history, record_id, checkpoint))
            for record_id in await store.some_ids(_PROOFS)
        ]
    rates = f"{rows / scan:,.0f} records/s scanned, {rows / verifying:,.0f} verified"
    print(rates, flush=True)
    worst = percentile(proofs, 0.99) * 1e3
    typical = f"half within {percentile(proofs, 0.5) * 1e3:.2f} ms, 99% within {worst:.2f} ms"
    return [
        Bar(f"verify of {rows:,} records against a scan", _VERIFYING, scan / verifying, rates),
        Bar(f"a proof among {rows:,}", _PROOF_MS, worst, typical, at_most=True, unit="ms"),
    ]


async def _prove(history: HistoryManager, record_id: str, checkpoint: Checkpoint) -> None:
    await history.ledger.prove(record_id, checkpoint)


def _bar(name: str, ratios: Sequence[float]) -> Bar:
    return Bar(name, _WRITING, median(ratios), each(ratios))


if __name__ == "__main__":
    run("ledger", measure, stores_parser(__doc__).parse_args())
