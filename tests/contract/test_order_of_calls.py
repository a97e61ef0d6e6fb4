"""A manager's calls take effect in the order in which they were made, whatever their size."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from async_history import HistoryManager, HistoryRecord, InvalidInput, open_history
from async_history.mem0._operation import Operation, current
from async_history.mem0._recorder import Recorder
from async_history.mem0._threads.loop_inbox import LoopInbox
from async_history.mem0._turns.erased_here import ErasedHere
from async_history.mem0._turns.turn_queues import TurnQueues
from async_history.mem0._turns.turns import Turns
from tests.conftest import OpenStore

pytestmark = [pytest.mark.once, pytest.mark.statements]

MANY = 1_200
"""Return records whose check takes several turns of the loop."""


def changes(text: str, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"memory_id": "m", "new_memory": f"{text} {number}", "event": "UPDATE"}


def broken(text: str, count: int) -> Iterator[dict[str, Any]]:
    yield from changes(text, count)
    yield {"memory_id": "m", "new_memory": 1, "event": "UPDATE"}


async def texts(history: HistoryManager) -> list[str | None]:
    return [record.new_memory for record in await history.get_history("m")]


class Calls:
    """Makes calls of every kind and size. Notes the expected history if each takes its turn."""

    def __init__(self, history: HistoryManager, seed: int) -> None:
        self._history = history
        self._random = random.Random(seed)  # noqa: S311
        self.expected: list[str | None] = []
        self.cancelled: list[asyncio.Task[Any]] = []
        self.invalid: list[asyncio.Task[Any]] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def make(self, number: int) -> None:
        text = f"call {number}"
        count = self._random.choice((2, 499, 500, 501, MANY))
        given: Any = changes(text, count)
        if self._random.random() < 0.5:
            given = list(given)
        elif self._random.random() < 0.3:
            given = [
                HistoryRecord(f"{text} {n}", "m", None, one["new_memory"], "UPDATE")
                for n, one in enumerate(given)
            ]
        history = self._history
        kind = self._random.choice(("one", "batch", "batch", "reset", "erase", "invalid", "cancel"))
        if kind == "one":
            self.expected.append(text)
            self._call(history.add_history("m", None, text, "UPDATE"))
        elif kind == "batch":
            self.expected += [f"{text} {n}" for n in range(count)]
            self._call(history.batch_add_history(given))
        elif kind == "reset":
            self.expected.clear()
            self._call(history.reset())
        elif kind == "erase":
            self.expected = [None] * len(self.expected)
            self._call(history.erase(memory_ids=["m"], reason="asked", vacuum=False))
        elif kind == "invalid":
            self.invalid.append(self._call(history.batch_add_history(broken(text, count))))
        else:
            self.cancelled.append(self._call(history.batch_add_history(changes(text, MANY))))

    def _call(self, call: Any) -> "asyncio.Task[Any]":
        self.tasks.append(asyncio.create_task(call))
        return self.tasks[-1]

    async def ended(self) -> None:
        await asyncio.sleep(0)  # all calls are made, and no large one is checked yet
        for task in self.cancelled:
            task.cancel()
        for task in self.tasks:
            if task in self.cancelled:
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif task in self.invalid:
                with pytest.raises(InvalidInput):
                    await task
            else:
                await task


@pytest.mark.parametrize("seed", range(2))
async def test_calls_of_every_kind_and_size(open_keeping_store: OpenStore, seed: int) -> None:
    async with open_keeping_store() as history:
        calls = Calls(history, seed)
        for number in range(12):
            calls.make(number)
        await calls.ended()
        assert await texts(history) == calls.expected


async def test_in_a_queue_that_is_full(open_keeping_store: OpenStore) -> None:
    async with open_keeping_store(queue_records=100) as history:
        await asyncio.gather(
            *(
                history.batch_add_history(changes(f"call {n}", MANY if n % 3 else 1))
                for n in range(12)
            )
        )
        assert await texts(history) == [
            f"call {n} {k}" for n in range(12) for k in range(MANY if n % 3 else 1)
        ]


async def test_messages_keep_their_turn_too(open_store: OpenStore) -> None:
    async with open_store() as history:
        await asyncio.gather(
            *(
                history.save_messages(({"content": f"{n} {k}"} for k in range(MANY)), "scope")
                for n in range(3)
            ),
            history.batch_add_history(changes("x", MANY)),
            history.save_messages([{"content": "last"}], "scope"),
        )
        kept = [message.content for message in await history.get_last_messages("scope")]
        assert kept == [*(f"2 {k}" for k in range(MANY - 9, MANY)), "last"]


async def test_a_reset_of_mem0s_keeps_its_turn() -> None:
    async with open_history("memory://") as history:
        recorder = Recorder("memory://", None, lambda recorder, call: None)
        operation = Operation(
            "reset",
            None,
            recorder,
            history,
            LoopInbox(),
            history.require_writable,
            Turns(TurnQueues(), between_processes=False),
            ErasedHere(),
        )
        token = current.set(operation)
        try:
            recorder.add_history("m", None, "before", "ADD")
            recorder.reset()
            recorder.batch_add_history(list(changes("after", MANY)))
            recorder.add_history("m", None, "last", "UPDATE")
        finally:
            current.reset(token)
        assert await operation.wait_for_acks() == []
        assert await texts(history) == [*(f"after {n}" for n in range(MANY)), "last"]
