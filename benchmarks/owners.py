"""What do owners, contexts and causes cost on SQLite, and does it stay so as the file grows?

    python -m benchmarks.owners [--quick] [--repeat 3] [--rows 3000000] [--dir FOLDER]

As many tasks as there are users record with and without them, in turns. Then a file with `--rows`
records, a hundred for each user, is filled in bulk and compared with one of 10,000: what a user's
questions take, and how fast tasks insert. 3 million rows take 4 GB.
"""

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, open_history
from benchmarks._measure import OthersLoad, median, percentile, quiet_collector, timed
from benchmarks._records import NewRecord, agents
from benchmarks._report import (
    Bar,
    as_json,
    each,
    options_parser,
    print_bars,
    print_load,
    results_folder,
    work_folder,
    write_json,
)

_TASKS: Final = 1_000
_RECORDS: Final = 30_000
_A_USER: Final = 100
_FEW_ROWS: Final = 10_000
_BULK: Final = 9_000
_USERS_ASKED: Final = 40
LIMITS: Final = {"cost": 0.8, "growth": 0.7, "question": 2.0}


def details(user: int, number: int) -> dict[str, Any]:
    """Return what a record has besides: 200 bytes of metadata, which one in three changes."""
    context = {"data": "x" * 60, "hash": "a" * 32, "note": "y" * 60, "part": number % 3 == 1}
    return {
        "owner": {"user_id": f"user {user}"},
        "context": context,
        "cause": {"request_id": f"{user}-{number}"},
    }


async def record(history: HistoryManager, seed: int, *, with_details: bool) -> float:
    """Let every task record as another user; return records a second."""

    async def agent(user: int, records: list[NewRecord]) -> None:
        for number, one in enumerate(records):
            more = details(user, seed * 1_000 + number) if with_details else {}
            await history.add_history(**one.as_mapping(), **more)

    per_agent = agents(_TASKS, _RECORDS, seed)
    with quiet_collector():
        seconds = await timed(
            lambda: asyncio.gather(*(agent(user, one) for user, one in enumerate(per_agent)))
        )
    return sum(map(len, per_agent)) / seconds


async def fill(history: HistoryManager, rows: int) -> None:
    """Write records of `rows` / 100 users in turns, several users' in each batch."""
    users = rows // _A_USER
    written = 0
    while written < rows:
        count = min(_BULK, rows - written)
        per_agent = agents(count // 3 or 1, count, 10**6 + written)
        batch = [
            one.as_mapping() | details((written // 3 + memory) % users, written + memory)
            for memory, records in enumerate(per_agent)
            for one in records
        ]
        await history.batch_add_history(batch)
        written += len(batch)


async def _walk(history: HistoryManager, user_id: str) -> None:
    async for _ in history.query_history(user_id=user_id):
        pass


async def _walk_memories(history: HistoryManager, user_id: str) -> None:
    async for _ in history.memories(user_id=user_id):
        pass


QUESTIONS: Final[Mapping[str, Callable[[HistoryManager, str], Awaitable[object]]]] = {
    "query_history(user_id=)": _walk,
    "count_history(user_id=)": lambda history, user_id: history.count_history(user_id=user_id),
    "memories(user_id=)": _walk_memories,
}


async def ask(history: HistoryManager, rows: int) -> dict[str, float]:
    """Return what each question takes, of users from everywhere."""
    users = rows // _A_USER
    asked = [f"user {n * users // _USERS_ASKED}" for n in range(_USERS_ASKED)]
    taken = {}
    for name, question in QUESTIONS.items():
        times = [await timed(partial(question, history, user_id)) for user_id in asked * 2]
        taken[name] = percentile(times[_USERS_ASKED:], 0.5)
    return taken


async def measure(folder: Path, rows: int, repeat: int) -> list[Bar]:
    """Measure everything; return the bars."""
    cost: list[float] = []
    empty: list[float] = []
    for turn in range(repeat):
        async with (
            open_history(folder / f"plain {turn}.db") as plain,
            open_history(folder / f"detailed {turn}.db") as detailed,
        ):
            without = await record(plain, turn + 1, with_details=False)
            empty.append(await record(detailed, turn + 1, with_details=True))
            cost.append(empty[-1] / without)
    print(f"with owner and cause against without: {each(cost)}", flush=True)
    bars = [Bar("with owner and cause", LIMITS["cost"], median(cost), each(cost))]
    async with (
        open_history(folder / "few.db") as few,
        open_history(folder / "many.db") as many,
    ):
        await fill(few, _FEW_ROWS)
        await fill(many, rows)
        at_few, at_many = await ask(few, _FEW_ROWS), await ask(many, rows)
        for name in QUESTIONS:
            figures = f"{at_few[name] * 1e3:.2f} ms, {at_many[name] * 1e3:.2f} ms"
            ratio = at_many[name] / at_few[name]
            bars.append(Bar(name, LIMITS["question"], ratio, figures, at_most=True))
        large = [await record(many, 100 + turn, with_details=True) for turn in range(repeat)]
    growth = [one / other for one, other in zip(large, empty, strict=True)]
    bars.append(Bar(f"insert at {rows:,} rows", LIMITS["growth"], median(growth), each(growth)))
    return bars


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rows, repeat = (20_000, 1) if options.quick else (options.rows, options.repeat)
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        bars = asyncio.run(measure(folder, rows, repeat))
        others = load.processors()
        print_bars(bars)
        print_load(others)
        write_json(
            results_folder(options, folder) / "owners.json",
            {"processors_others_used": others, "rows": rows, "bars": [*map(as_json, bars)]},
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000, help="records in the large file")
    main(parser.parse_args())
