"""A process with many tasks that write until it is killed. It reports each ack."""

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from async_history import HistoryManager
from tests.subprocesses.checks import Wrote
from tests.subprocesses.opened import opened

TASKS = 50
_MEMORIES = 300
_SCOPES_EVERY = 5
"""One task in this many saves messages too."""

Report = Callable[[str], None]


async def load(
    path: Path, report: Report, *, run: int, seed: int, rounds: int, reset: bool
) -> None:
    """Open the file, write from many tasks at once, and close; report every step.

    Reports `opened`, `reset`, `wrote RUN TASK NUMBER SIZE`, `saved SCOPE NUMBER`, `closing` and
    `closed`, each after the fact but `closing`.
    """
    async with opened(path) as history:
        report("opened")
        if reset:
            await history.reset()
            report("reset")
        await asyncio.gather(
            *(
                _Task(history, report, run, task, random.Random(f"{seed}.{task}")).work(rounds)  # noqa: S311 - a test's random choices
                for task in range(TASKS)
            )
        )
        report("closing")
    report("closed")


class _Task:
    """One task of the load. Each of its submissions has a name."""

    def __init__(
        self, history: HistoryManager, report: Report, run: int, task: int, chance: random.Random
    ) -> None:
        self.history = history
        self.report = report
        self.run = run
        self.task = task
        self.chance = chance
        self.messages = 0

    async def work(self, rounds: int) -> None:
        for number in range(rounds):
            await self.write(number)
            if self.task % _SCOPES_EVERY == 0:
                await self.save()
            if self.chance.random() < 0.1:
                await self.history.get_history(self.memory())
                await self.history.get_last_messages(f"{self.run}.{self.task}")

    async def write(self, number: int) -> None:
        """Write one submission: some with ids, and some of those twice at the same time."""
        wrote = Wrote(self.run, self.task, number, self.size())
        named = self.chance.random() < 0.5
        records = [self.record(wrote, index, named=named) for index in range(wrote.size)]
        if wrote.size == 1:
            await self.add(records[0])
        elif named and self.chance.random() < 0.2:
            await asyncio.gather(*(self.history.batch_add_history(records) for _ in "12"))
        else:
            await self.history.batch_add_history(records)
        if named and self.chance.random() < 0.1:
            await self.history.batch_add_history(records)
        self.report(f"wrote {' '.join(map(str, wrote))}")

    async def add(self, record: dict[str, Any]) -> None:
        await self.history.add_history(
            record["memory_id"], None, record["new_memory"], "UPDATE", id=record["id"]
        )

    def size(self) -> int:
        kind = self.chance.random()
        if kind < 0.7:
            return 1
        return self.chance.randint(2, 20) if kind < 0.98 else self.chance.randint(100, 700)

    def memory(self) -> str:
        return f"m{self.chance.randrange(_MEMORIES)}"

    def record(self, wrote: Wrote, index: int, *, named: bool) -> dict[str, Any]:
        text = wrote.text(index)
        return {
            "id": f"id {text}" if named else None,
            "memory_id": self.memory(),
            "new_memory": text,
            "event": "UPDATE",
        }

    async def save(self) -> None:
        """Save a few messages in the task's own scope."""
        scope = f"{self.run}.{self.task}"
        last = self.messages + self.chance.randrange(4)
        await self.history.save_messages(
            [
                {"role": "user", "content": f"{number} {last}"}
                for number in range(self.messages, last + 1)
            ],
            scope,
        )
        self.messages = last + 1
        self.report(f"saved {scope} {last}")


def run_load(path: Path, pipe: int, **options: Any) -> None:
    """Run the load and report lines into a pipe. Each is short enough to arrive whole."""

    def report(line: str) -> None:
        os.write(pipe, f"{line}\n".encode())

    asyncio.run(load(path, report, **options))
