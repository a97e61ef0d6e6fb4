"""Tasks that write and read through one manager while its server fails, and their account.

    python -m tests.subprocesses.postgres_load URL RUN ROUNDS

As a program it opens its own manager when its standard input ends, lets every task write so many
times, and prints the acked submissions. Tests use `Load` on their own loop.
"""

import asyncio
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Self

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryError,
    HistoryManager,
    HistoryRecord,
    StorageUnreachable,
    open_history,
)
from tests.subprocesses.checks import Wrote, check_submissions

TASKS = 20
_MEMORIES = 30
_PHASE = 200
_FOREVER = 1 << 30


class Load:
    """Tasks that write until they are stopped. A task with an unknown outcome repeats the call.

    At times all of them only write new records, at other times they make every call.

    Args:
        run: distinguishes this load's submissions from another's.
        rounds: how often each task writes, at most.
    """

    def __init__(self, history: HistoryManager, *, run: int = 0, rounds: int = _FOREVER) -> None:
        self.acked: set[Wrote] = set()
        self.refused: dict[Wrote, HistoryError] = {}
        self.unknown = 0
        self._history = history
        self._run = run
        self._rounds = rounds
        self._chance = random.Random(f"load {run}")  # noqa: S311 - a test's random choices
        self._called = 0
        self._more_acks = asyncio.Event()
        self._stopping = False
        self._saved: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work(task)) for task in range(TASKS)]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._more_acks.set())  # a task may have failed
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def finished(self) -> None:
        """Return when every task has done its rounds."""
        await asyncio.gather(*self._tasks)

    async def more_acks(self, wanted: int) -> None:
        """Return when so many more submissions were acked."""
        wanted += len(self.acked)
        while len(self.acked) < wanted:
            for task in self._tasks:
                if task.done():
                    await task
            self._more_acks.clear()
            await self._more_acks.wait()

    async def _work(self, task: int) -> None:
        latest: HistoryRecord | None = None
        for number in range(self._rounds):
            if self._stopping:
                return
            if number % 4 == 0:
                latest = await self._write_own(task, latest)
            else:
                await self._write(task)
            if self._chance.random() < 0.2 and not self._is_plain():
                await self._save(task, number)

    async def _write(self, task: int) -> None:
        """Write to memories that others write too, with given ids or the library's."""
        wrote = Wrote(self._run, task, self._call(), self._chance.choice((1, 1, 1, 3, 40)))
        await self._submit(wrote, self._records(wrote))

    async def _write_own(self, task: int, latest: HistoryRecord | None) -> HistoryRecord | None:
        """Write to the task's own memory, where no other task does, and read that."""
        own = self._own_memory(task)
        wrote = Wrote(self._run, task, self._call(), 1)
        records = [record | {"memory_id": own} for record in self._records(wrote)]
        expected = None if self._is_plain() else latest
        written = await self._submit(wrote, records, if_latest=expected)
        if self._chance.random() < 0.5:
            history = await self._read(own)
            if written and history is not None:
                assert history[-1].new_memory == wrote.text(0), "the acked record is the latest"
        return written[0] if written else latest

    async def _submit(
        self, wrote: Wrote, records: list[dict[str, Any]], if_latest: HistoryRecord | None = None
    ) -> list[HistoryRecord]:
        try:
            written = await self._history.batch_add_history(records, if_latest=if_latest)
        except CommitUnknown as error:
            self.unknown += 1
            named = [record | {"id": id} for record, id in zip(records, error.ids, strict=True)]
            written = await self._until_known(named, if_latest)
        except HistoryError as error:
            self._stop_if_closed(error)
            self.refused[wrote] = error
            return []
        self.acked.add(wrote)
        self._more_acks.set()
        return written

    async def _until_known(
        self, records: list[dict[str, Any]], if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]:
        """Submit again under the same ids, until an ack."""
        while True:
            try:
                return await self._history.batch_add_history(records, if_latest=if_latest)
            except (CommitUnknown, StorageUnreachable):
                pass

    def _is_plain(self) -> bool:
        """Whether all tasks now write only new records, which a backend writes in one statement."""
        return self._called // _PHASE % 2 == 0

    def _call(self) -> int:
        """Count one more submission, and return its number."""
        self._called += 1
        return self._called

    def _records(self, wrote: Wrote) -> list[dict[str, Any]]:
        named = not self._is_plain() and self._chance.random() < 0.4
        return [
            {
                "id": f"id {wrote.text(index)}" if named else None,
                "memory_id": f"m{self._chance.randrange(_MEMORIES)}",
                "new_memory": wrote.text(index),
                "event": "UPDATE",
            }
            for index in range(wrote.size)
        ]

    async def _read(self, memory_id: str) -> list[HistoryRecord] | None:
        try:
            return await self._history.get_history(memory_id)
        except (StorageUnreachable, HistoryClosed) as error:
            self._stop_if_closed(error)
            return None

    async def _save(self, task: int, number: int) -> None:
        messages = [{"content": f"{number} {index}"} for index in range(3)]
        try:
            await self._history.save_messages(messages, self._own_memory(task))
        except (CommitUnknown, StorageUnreachable, HistoryClosed) as error:
            self._stop_if_closed(error)
        else:
            self._saved[task] = number

    def _stop_if_closed(self, error: HistoryError) -> None:
        if isinstance(error, HistoryClosed):
            self._stopping = True

    def _own_memory(self, task: int) -> str:
        return f"{self._run}.{task}"

    async def check(self, history: HistoryManager, connection: Any, schema: str) -> None:
        """Compare the store with the account: nothing is lost, doubled, split or unwanted.

        Args:
            history: an open manager of the store.
            connection: to its database.
        """
        found = check_submissions(await texts(connection, schema))
        mine = {wrote for wrote in found if wrote.run == self._run}
        assert self.acked <= mine, f"acked and lost: {self.acked - mine}"
        assert mine <= self.acked, f"refused, and there: {mine - self.acked}"
        assert self.acked
        for task, number in self._saved.items():
            messages = await history.get_last_messages(self._own_memory(task))
            _check_messages([str(message.content) for message in messages], number)


async def texts(connection: Any, schema: str) -> list[str]:
    """Return the text of every record, in the order of recording."""
    rows = await connection.fetch(f'SELECT new_memory FROM "{schema}".history ORDER BY seq')
    return [text for (text,) in rows]


def check_calls_in_order(rows: Sequence[Sequence[str]]) -> None:
    """Check that each memory has every process's records in the order of its calls.

    `rows` are memory ids and texts, in the order of recording.
    """
    latest: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (-1, -1))
    for memory_id, text in rows:
        run, _, number, _, index = text.split()
        assert (int(number), int(index)) > latest[memory_id, run], text
        latest[memory_id, run] = (int(number), int(index))


def _check_messages(contents: list[str], acked: int) -> None:
    """Check a scope's buffer: calls of three messages, in order, none split but the oldest."""
    calls = [tuple(map(int, content.split())) for content in contents]
    assert calls == sorted(set(calls))
    newest_first = [index for _, index in reversed(calls)]
    assert newest_first == [2, 1, 0, 2, 1, 0, 2, 1, 0, 2][: len(calls)]
    assert calls[-1][0] >= acked


async def main(url: str, run: int, rounds: int) -> None:
    """Open, write and close; print what was acked."""
    async with (
        open_history(url, pool_size=2) as history,
        Load(history, run=run, rounds=rounds) as load,
    ):
        await load.finished()
    assert not load.refused
    assert not load.unknown
    print(json.dumps(sorted(load.acked)))  # noqa: T201 - its output


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201 - the starter waits for this
    sys.stdin.read()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
