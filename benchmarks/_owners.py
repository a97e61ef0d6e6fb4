"""The cost of owners, contexts and causes on any backend, in small and large histories."""

from argparse import ArgumentParser, Namespace
from asyncio import gather, to_thread
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager
from benchmarks._measure import OthersLoad, median, percentile, quiet_collector, timed
from benchmarks._records import NewRecord, agents, details
from benchmarks._report import (
    Bar,
    as_json,
    each,
    options_parser,
    print_bars,
    print_load,
    results_folder,
    write_json,
)

OpenEmpty = Callable[[], AbstractAsyncContextManager[HistoryManager]]
"""Opens another empty history."""

_TASKS: Final = 1_000
_A_USER: Final = 100
_FEW_ROWS: Final = 10_000
_BULK: Final = 9_000
_USERS_ASKED: Final = 40
_LIMITS: Final = {"cost": 0.8, "growth": 0.7, "question": 2.0}


async def nothing_to_settle() -> None:
    """Do nothing: the backend defers no work of a write."""


async def measure(
    open_empty: OpenEmpty,
    options: Namespace,
    *,
    settle: Callable[[], Awaitable[None]] = nothing_to_settle,
) -> list[Bar]:
    """Measure everything; return the bars.

    Args:
        open_empty: opens another empty history.
        options: the options of `owners_parser`.
        settle: does the deferred work of earlier writes, before a measurement.
    """
    records, rows, repeat = _sizes(options)
    cost: list[float] = []
    empty: list[float] = []
    for turn in range(1, repeat + 1):
        async with open_empty() as plain:
            without = await record(plain, records, turn, with_details=False)
        async with open_empty() as detailed:
            empty.append(await record(detailed, records, turn, with_details=True))
        cost.append(empty[-1] / without)
    print(f"with owner and cause against without: {each(cost)}", flush=True)
    bars = [Bar("with owner and cause", _LIMITS["cost"], median(cost), each(cost))]
    async with AsyncExitStack() as stack:
        few = await stack.enter_async_context(open_empty())
        many = await stack.enter_async_context(open_empty())
        await fill(few, _FEW_ROWS)
        await fill(many, rows)
        await settle()
        for name, (at_few, at_many) in (await ask({_FEW_ROWS: few, rows: many})).items():
            figures = f"{at_few * 1e3:.2f} ms, {at_many * 1e3:.2f} ms"
            ratio = at_many / at_few
            bars.append(Bar(name, _LIMITS["question"], ratio, figures, at_most=True))
        large: list[float] = []
        for turn in range(1, repeat + 1):
            await settle()
            large.append(await record(many, records, 100 + turn, with_details=True))
    growth = [one / other for one, other in zip(large, empty, strict=True)]
    return [*bars, Bar(f"insert at {rows:,} rows", _LIMITS["growth"], median(growth), each(growth))]


def _sizes(options: Namespace) -> tuple[int, int, int]:
    """Return the records that tasks write, the rows of the large history, and the repetitions."""
    return (6_000, 20_000, 1) if options.quick else (30_000, options.rows, options.repeat)


async def record(history: HistoryManager, records: int, seed: int, *, with_details: bool) -> float:
    """Let every task record for a different user; return records a second."""

    async def agent(user: int, records: list[NewRecord]) -> None:
        for number, one in enumerate(records):
            more = details(user, seed * 1_000 + number) if with_details else {}
            await history.add_history(**one.as_mapping(), **more)

    per_agent = agents(_TASKS, records, seed)
    with quiet_collector():
        seconds = await timed(
            lambda: gather(*(agent(user, one) for user, one in enumerate(per_agent)))
        )
    return sum(map(len, per_agent)) / seconds


async def fill(history: HistoryManager, rows: int) -> None:
    """Write records of `rows` / 100 users in turns, several users' in each batch.

    Another thread makes the next batch while one is written.
    """
    written = 0
    batch = _batch(written, rows)
    while batch:
        written += len(batch)
        batch, _ = await gather(to_thread(_batch, written, rows), history.batch_add_history(batch))


def _batch(written: int, rows: int) -> list[dict[str, Any]]:
    count = min(_BULK, rows - written)
    if count <= 0:
        return []
    users = rows // _A_USER
    per_agent = agents(count // 3 or 1, count, 10**6 + written)
    return [
        one.as_mapping() | details((written // 3 + memory) % users, written + memory)
        for memory, records in enumerate(per_agent)
        for one in records
    ]


async def _walk(history: HistoryManager, user_id: str) -> None:
    async for _ in history.query_history(user_id=user_id):
        pass


async def _walk_memories(history: HistoryManager, user_id: str) -> None:
    async for _ in history.memories(user_id=user_id):
        pass


_QUESTIONS: Final[Mapping[str, Callable[[HistoryManager, str], Awaitable[object]]]] = {
    "query_history(user_id=)": _walk,
    "count_history(user_id=)": lambda history, user_id: history.count_history(user_id=user_id),
    "memories(user_id=)": _walk_memories,
}


async def ask(histories: Mapping[int, HistoryManager]) -> dict[str, list[float]]:
    """Return the times of each query in histories, by their rows, for users from everywhere.

    The histories take turns, so that other load on the machine slows down all alike.
    """
    taken = {}
    for name, question in _QUESTIONS.items():
        times: dict[int, list[float]] = {rows: [] for rows in histories}
        for number in [*range(_USERS_ASKED)] * 2:
            for rows, history in histories.items():
                user_id = f"user {number * (rows // _A_USER) // _USERS_ASKED}"
                times[rows].append(await timed(partial(question, history, user_id)))
        taken[name] = [percentile(each[_USERS_ASKED:], 0.5) for each in times.values()]
    return taken


def tell(options: Namespace, folder: Path, name: str, bars: list[Bar], load: OthersLoad) -> None:
    """Print the bars, and write the results."""
    others = load.processors()
    print_bars(bars)
    print_load(others)
    _, rows, _ = _sizes(options)
    write_json(
        results_folder(options, folder) / f"{name}.json",
        {"processors_others_used": others, "rows": rows, "bars": [*map(as_json, bars)]},
    )


def owners_parser(described: str | None) -> ArgumentParser:
    """Return a parser of the options of both scripts."""
    parser = options_parser(described)
    parser.add_argument("--rows", type=int, default=3_000_000, help="records of the large history")
    return parser
