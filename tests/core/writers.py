"""A writer over a store in memory."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from async_history import HistoryError
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.pending_calls import PendingCall
from async_history._core.writing.writer import GroupCommitWriter


@dataclass(eq=False)
class Item:
    """A submission of a given weight."""

    name: str
    record_count: int = 1
    size_bytes: int = 1

    @property
    def ids(self) -> Sequence[str]:
        return [self.name]


@dataclass
class Store:
    """Commits into a list. `gate` holds commits back, `script` says what the next commits do."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[str]] = field(default_factory=list)
    script: list[BaseException | Mapping[int, HistoryError]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    calls: int = 0
    finished: int = 0
    has_begun: Callable[[], None] | None = None

    async def commit(self, batch: Sequence[Item], this: CommitTry) -> Mapping[int, HistoryError]:
        self.calls += 1
        self.has_begun = this.has_begun
        self.begun.set()
        await self.gate.wait()
        step: BaseException | Mapping[int, HistoryError] = self.script.pop(0) if self.script else {}
        if isinstance(step, BaseException):
            raise step
        names = [item.name for n, item in enumerate(batch) if n not in step]
        self.batches.append(names)
        self.log += names
        return step

    async def finish(self) -> None:
        self.finished += 1


MakeWriter = Callable[..., GroupCommitWriter[Item]]


async def turn() -> None:
    """Run everything that is ready, a few times."""
    for _ in range(5):
        await asyncio.sleep(0)


def submit(writer: GroupCommitWriter[Item], *items: Item) -> list[asyncio.Task[None]]:
    return [asyncio.ensure_future(writer.submit(item)) for item in items]


def pending_calls(count: int) -> list[PendingCall[Item]]:
    """Return calls that have left the queue."""
    calls = [PendingCall[Item]() for _ in range(count)]
    for n, call in enumerate(calls):
        call.submission, call.timer, call.resume = Item(str(n)), None, None
        call.has_callbacks = False
    return calls
