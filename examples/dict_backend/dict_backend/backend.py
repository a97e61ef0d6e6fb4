"""The backend and its open store: one queue for all writes, and the parts."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from async_history import backend as api
from async_history.errors import HistoryError
from dict_backend.batch import DictBatch
from dict_backend.data import Kept
from dict_backend.erase import DictErasure
from dict_backend.follow import DictFollowReader
from dict_backend.prune import DictPruning
from dict_backend.read import DictReader


class DictBackend:
    """A history in `kept`, with a name for messages."""

    def __init__(self, name: str, kept: Kept) -> None:
        self.where = f"dict://{name}"
        self.system = "other_sql"
        self.store_name = ("dict", name)
        self.kept = kept

    def new_locks(self) -> None:
        """Return None: other processes can't use the data."""

    async def open(self, committed: api.CommitSignal, ended: Callable[[], None]) -> "DictStore":
        return DictStore(self.kept, committed, ended)


class DictStore:
    """The open store, with its parts."""

    def __init__(self, kept: Kept, committed: api.CommitSignal, ended: Callable[[], None]) -> None:
        self._kept = kept
        self._committed = committed
        self._ended = ended
        self.writer = api.GroupCommitWriter[api.Submission](self._commit, finish=self._finish)
        self.reader = DictReader(kept)
        self.follower = DictFollowReader(kept)
        self.eraser = DictErasure(kept, self.writer)
        self.operations = self.eraser.log

    @property
    def primary_reader(self) -> DictReader:
        return self.reader

    @property
    def name_reader(self) -> DictReader:
        return self.reader

    async def _commit(
        self, batch: Sequence[api.Submission], this: api.CommitTry
    ) -> Mapping[int, HistoryError]:
        refused = await api.commit_in_steps(batch, DictBatch(self._kept))
        self._committed.notify()
        return refused

    async def _finish(self) -> None:
        self._ended()

    def reset(self, operation: api.StoreOperation) -> "asyncio.Future[None]":
        async def clear() -> None:
            records, messages = len(self._kept.records), sum(map(len, self._kept.messages.values()))
            await self.operations.begin(api.at_its_end(operation, records, messages))
            for data in (
                self._kept.records,
                self._kept.positions,
                self._kept.messages,
                self._kept.owners,
            ):
                data.clear()  # the operations stay

        return self.writer.run_alone(clear)

    async def prune_step(
        self, asked: api.PruneRequest, reached: api.PruneCursor | None
    ) -> api.PruneStep:
        work = DictPruning(self._kept)
        return await self.writer.run_alone(lambda: api.prune_step(asked, reached, work))

    async def measure(self) -> api.Measured:
        return api.Measured()

    async def faults(self) -> Sequence[str]:
        kept = self._kept
        lost = [n for n, one in kept.records.items() if kept.positions.get(one.id) != n]
        return [f"{len(lost)} records are not found by their id"] if lost else []

    async def aclose(self, timeout_s: float) -> None:
        await self.writer.aclose(timeout_s)

    def abandon(self) -> None:
        """Do nothing: there is nothing to release."""
