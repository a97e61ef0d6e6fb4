"""Helpers for the tests of turns."""

import contextlib
from collections.abc import Iterator

from async_history.mem0._turns.turns import Turns


class Together:
    """The number of processes or tasks that are in a turn at the same time."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= 1


async def taken(turns: Turns, memory_id: str = "m") -> None:
    async with turns.of(memory_id, "store"):
        pass
