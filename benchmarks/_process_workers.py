"""One of the processes that `benchmarks.processes` starts: 250 tasks, or a raw writer.

    python -m benchmarks._process_workers '{"way": "tasks", "url": "h.db", "seconds": 1, …}'

It prints "ready", begins when it reads a line, and prints its results as JSON. It does not import
the peers, because importing mem0 takes seconds.
"""

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import chain, cycle
from time import perf_counter
from typing import Any, Final

import asyncpg
from uuid_utils import uuid7

from async_history import open_history
from async_history._core.records.records import DETAILS, EVENTS
from async_history._postgres.schema import in_schema
from async_history._postgres.writing.add import plain
from benchmarks._measure import percentile
from benchmarks._records import CREATE_HISTORY, INSERT, NewRecord, one_memory, rows

TASKS: Final = 250
"""The tasks of a process, and so the rows of a raw writer's transaction."""
TASKS_WAY: Final = "async_history"
NAMED: Final = "async_history, named ids"
MANY: Final = "raw executemany"
COPY: Final = "raw COPY"
STATEMENT: Final = "raw, the same statement"
FUTURES: Final = "tasks and futures, the same statement"
_WAIT_FOR_LOCK_S: Final = 60.0
_MEMORIES: Final = 40
"""The memories of a task, or of a row of a raw writer; then they begin again."""
_NOTHING_ELSE: Final = (None,) * (len(DETAILS) + 1)
"""The fields of a record after mem0's columns."""
_COPIED: Final = ("id", *NewRecord._fields, "occurred_at")

Write = Callable[[Sequence[NewRecord]], Awaitable[float]]
"""A function that commits records in one transaction, and returns its wait for a lock (s)."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a process.

    Attributes:
        url: the file, or the server.
        schema: the schema on the server.
        number: the number of the process, so that each has its own memories.
    """

    way: str
    url: str
    schema: str
    seconds: float
    number: int


@dataclass(frozen=True, slots=True)
class Done:
    """The results of a process.

    Attributes:
        waited_s: seconds that a raw writer waited for the file's lock.
        commit_p50_s: the median commit time of our batches, waits included; None for raw writers.
    """

    events: int
    seconds: float
    ack_p99_s: float
    waited_s: float
    commit_p50_s: float | None


def _records(number: int, task: int) -> list[NewRecord]:
    return list(
        chain.from_iterable(
            one_memory(f"{number}-{task}-{memory:033}"[-36:], number * TASKS + task)
            for memory in range(_MEMORIES)
        )
    )


async def _tasks(work: Work, begin: Callable[[], Awaitable[None]]) -> Done:
    """Let 250 tasks record one event after the other."""
    options: dict[str, Any] = {"schema": work.schema} if work.schema else {}
    async with open_history(work.url, **options) as history:

        def add(record: NewRecord) -> Awaitable[object]:
            return history.add_history(
                *record[:4],
                created_at=record.created_at,
                updated_at=record.updated_at,
                is_deleted=record.is_deleted,
                actor_id=record.actor_id,
                role=record.role,
                id=str(uuid7()) if work.way == NAMED else None,
            )

        done = await _add_in_tasks(work, begin, add)
        writer = (await history.stats()).writer
    assert writer is not None
    return replace(done, commit_p50_s=writer.commit_p50_s)


async def _futures(work: Work, begin: Callable[[], Awaitable[None]]) -> Done:
    """Let 250 tasks wait for futures, and one task write for them: the least that tasks cost."""
    loop = asyncio.get_running_loop()
    waiting: list[tuple[NewRecord, asyncio.Future[None]]] = []
    some_wait = asyncio.Event()

    def add(record: NewRecord) -> Awaitable[object]:
        waiting.append((record, added := loop.create_future()))
        some_wait.set()
        return added

    async def write_on(write: Write) -> None:
        while await some_wait.wait():
            some_wait.clear()
            batch = waiting.copy()
            waiting.clear()
            await write([record for record, _ in batch])
            for _, added in batch:
                added.set_result(None)

    async with _statement(work) as write, asyncio.TaskGroup() as group:
        writer = group.create_task(write_on(write))
        done = await _add_in_tasks(work, begin, add)
        writer.cancel()
    return done


async def _add_in_tasks(
    work: Work,
    begin: Callable[[], Awaitable[None]],
    add: Callable[[NewRecord], Awaitable[object]],
) -> Done:
    waits: list[float] = []
    per_task = [_records(work.number, task) for task in range(TASKS)]

    async def record_on(records: Sequence[NewRecord], until: float) -> None:
        for record in cycle(records):
            begun = perf_counter()
            if begun > until:
                return
            await add(record)
            waits.append(perf_counter() - begun)

    await begin()
    begun = perf_counter()
    await asyncio.gather(*(record_on(one, begun + work.seconds) for one in per_task))
    seconds = perf_counter() - begun
    return Done(len(waits), seconds, percentile(waits, 0.99), 0.0, None)


async def _raw(work: Work, begin: Callable[[], Awaitable[None]]) -> Done:
    """Commit transactions of 250 rows, one after the other."""
    waits: list[float] = []
    waited_s = 0.0
    per_row = [_records(work.number, task) for task in range(TASKS)]
    batches: Iterator[tuple[NewRecord, ...]] = cycle(list(zip(*per_row, strict=True)))
    async with _WRITERS[work.way](work) as write:
        await begin()
        begun = now = perf_counter()
        while now < begun + work.seconds:
            waited_s += await write(next(batches))
            waits.append(perf_counter() - now)
            now = perf_counter()
        seconds = now - begun
    return Done(len(waits) * TASKS, seconds, percentile(waits, 0.99), waited_s, None)


@asynccontextmanager
async def _execute_many(work: Work) -> AsyncIterator[Write]:
    """Write to mem0's table with an index, in WAL mode, each commit on disk."""
    connection = sqlite3.connect(work.url, timeout=_WAIT_FOR_LOCK_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(CREATE_HISTORY)
        connection.execute("CREATE INDEX IF NOT EXISTS by_memory ON history (memory_id)")

        async def write(records: Sequence[NewRecord]) -> float:
            made = list(rows(records))
            begun = perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            waited_s = perf_counter() - begun
            connection.executemany(INSERT, made)
            connection.execute("COMMIT")
            return waited_s

        yield write
    finally:
        connection.close()


@asynccontextmanager
async def _copy(work: Work) -> AsyncIterator[Write]:
    connection = await asyncpg.connect(work.url)
    try:

        async def write(records: Sequence[NewRecord]) -> float:
            await connection.copy_records_to_table(
                "history",
                schema_name=work.schema,
                columns=_COPIED,
                records=[
                    (
                        str(uuid7()),
                        *record._replace(is_deleted=bool(record.is_deleted)),
                        datetime.fromisoformat(record.updated_at or str(record.created_at)),
                    )
                    for record in records
                ],
            )
            return 0.0

        yield write
    finally:
        await connection.close()


@asynccontextmanager
async def _statement(work: Work) -> AsyncIterator[Write]:
    """Write with the statement that async_history uses for a batch."""
    connection = await asyncpg.connect(work.url)
    try:

        async def write(records: Sequence[NewRecord]) -> float:
            made = [
                (
                    str(uuid7()),
                    *record[:3],
                    EVENTS[record.event],
                    *record[4:6],
                    bool(record.is_deleted),
                    *record[7:],
                    *_NOTHING_ELSE,
                )
                for record in records
            ]
            sql, arguments = plain(made, ())
            await connection.execute(in_schema(sql, work.schema), *arguments)
            return 0.0

        yield write
    finally:
        await connection.close()


_WRITERS: Final = {MANY: _execute_many, COPY: _copy, STATEMENT: _statement}
_WAYS: Final = {
    TASKS_WAY: _tasks,
    NAMED: _tasks,
    FUTURES: _futures,
    **dict.fromkeys(_WRITERS, _raw),
}


async def _begin() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def main(work: Work) -> None:
    """Do the work and print the results."""
    print(json.dumps(asdict(await _WAYS[work.way](work, _begin))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Work(**json.loads(sys.argv[1]))))
