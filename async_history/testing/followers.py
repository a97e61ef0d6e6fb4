"""Reading from a follower in a task, and up to the present."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from async_history import Follower, HistoryManager, HistoryRecord
from async_history.testing.fixtures import LONG_S

NEVER_S: Final = 1e6
"""An interval so long that only wake-ups deliver records."""
SOON_S: Final = 0.005


class Reading:
    """A task that reads from a follower: use `async with`, then wait for records."""

    def __init__(self, following: Follower) -> None:
        self.records: list[HistoryRecord] = []
        self.following = following
        self._more = asyncio.Event()
        self.task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _read(self) -> None:
        async for record in self.following:
            self.records.append(record)
            self._more.set()

    @property
    def texts(self) -> list[str | None]:
        return [record.new_memory for record in self.records]

    async def until(self, count: int) -> list[str | None]:
        """Return the texts when there are `count`; raise the error that ended the follower."""
        async with asyncio.timeout(LONG_S):
            while len(self.records) < count:
                self._more.clear()
                more = asyncio.create_task(self._more.wait())
                await asyncio.wait([more, self.task], return_when=asyncio.FIRST_COMPLETED)
                more.cancel()
                if self.task.done():
                    self.task.result()
        return self.texts


async def first(following: Follower, count: int) -> list[str | None]:
    """Return the texts of the next `count` records; the follower can continue after them."""
    found: list[str | None] = []
    if count:
        async with asyncio.timeout(LONG_S):
            async for record in following:
                found.append(record.new_memory)
                if len(found) == count:
                    break
    return found


async def up_to_now(history: HistoryManager, following: Follower) -> list[HistoryRecord]:
    """Return the records that a follower yields before one added now; it continues after that."""
    last = await history.add_history("sentinel", None, "sentinel", "ADD")
    found: list[HistoryRecord] = []
    async with asyncio.timeout(LONG_S):
        async for record in following:
            if record == last:
                break
            found.append(record)
    return [record for record in found if record.memory_id != "sentinel"]


def add_many(texts: Sequence[str], memory_id: str = "m") -> list[dict[str, Any]]:
    """Return records to add, identified by their texts."""
    return [{"memory_id": memory_id, "new_memory": text, "event": "UPDATE"} for text in texts]
