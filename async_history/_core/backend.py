"""What a backend provides: the interface below the contract, for authors of another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from async_history._core.commit_signal import CommitSignal
from async_history._core.cursors import Cursor
from async_history._core.erase import EraseBackend
from async_history._core.filters import Filter
from async_history._core.follow_reads import FollowReader
from async_history._core.locks import ProcessLocks
from async_history._core.messages import Message
from async_history._core.observer import WriterObserver
from async_history._core.operations import OperationLog, StoreOperation
from async_history._core.prune import PruneCursor, PruneStep
from async_history._core.prune_request import PruneRequest
from async_history._core.query import PageRead, RowsRead
from async_history._core.records import HistoryRecord
from async_history._core.stats import Measured
from async_history._core.submissions import Submission
from async_history._core.timeline import Moment
from async_history._core.writer_stats import WriterStats


class Writer(Protocol):
    """Takes what is to be written, in the order of the calls. `GroupCommitWriter` is one."""

    def require_writable(self) -> None:
        """Raise now the error of every submission, as far as that shows without writing."""

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        """Queue a submission, at once; the future is done when it is durable.

        To cancel the future withdraws the submission, as long as no batch has it.
        """

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        """Queue the place of a submission, at once, and then it; return when it is durable."""

    def observe(self, observer: WriterObserver) -> None:
        """Tell an observer about each batch from now on, and about each call if it wants.

        A writer without batches does nothing.
        """

    def stats(self) -> WriterStats | None:
        """Return the counters and the queue as they are now; None where nothing is queued."""


class CallReader(Protocol):
    """Answers what a manager's calls ask."""

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, in the order of recording."""

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's last record at a moment: see `last_change_at`."""

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return a page of up to `limit` records; read up to `ahead`, for the pages after it.

        Raises:
            CursorGone: the record of `after` is no longer there.
        """

    async def count(self, wanted: Filter) -> int:
        """Return how many records match."""

    def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, of the memories that were there."""

    async def last_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        """Return a scope's last messages, in the order in which they were saved."""


class Reader(CallReader, Protocol):
    """Answers questions about what is there: those of calls, and those of copies and checks."""

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return what follows a place in the order of recording, with as little work as can be.

        Raises:
            CursorGone: the record of that place is no longer there, as far as that shows.
        """

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return `HistoryRecord.time_before` of records by id, as far as it is known."""

    async def newest(self) -> int | None:
        """Return the position of the newest record, as cursors have it."""

    async def scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes after `after`, in the order of their UTF-8 bytes."""


class Store(Protocol):
    """An open store, as its parts. Belongs to the event loop that opened it."""

    @property
    def writer(self) -> Writer: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def follower(self) -> FollowReader[Any]: ...

    @property
    def eraser(self) -> EraseBackend: ...

    @property
    def operations(self) -> OperationLog:
        """The log of operations. A reset leaves it."""

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next few records in one transaction, or in a dry run count them."""

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset, at once; the future is done when the store is empty.

        The operation is entered in the log in the same transaction, as one that ends then, with
        the records and messages that it removed.
        """

    async def measure(self) -> Measured:
        """Measure the store. It may take long."""

    async def faults(self) -> Sequence[str]:
        """Look for what is wrong with ids, and with each way to find records; a sentence each.

        It may take long. What others write meanwhile is not a fault.
        """

    async def aclose(self, timeout_s: float) -> None:
        """Write what was accepted, for at most `timeout_s`, and release everything.

        Called once, in the store's loop, and not cancelled.
        """

    def abandon(self) -> None:
        """Release everything without the loop, which has stopped. It waits for nothing."""


class Backend(Protocol):
    """Where a history is kept, before it is opened. Its options are checked.

    To write another backend is to write this and a `Store`. `HistoryManager(backend)` is then its
    manager, and the test cases of `async_history.testing` try whether it keeps the contract.
    """

    @property
    def where(self) -> str:
        """What messages call it: a path, a URL without its password."""

    @property
    def system(self) -> str:
        """The database, by its `db.system.name` of OpenTelemetry's semantic conventions."""

    @property
    def store_name(self) -> tuple[str, ...] | None:
        """The kind and the names of its store, the same in each backend that opens that store.

        None where no other can open it.
        """

    def new_locks(self) -> ProcessLocks | None:
        """Return what the processes that use its store lock memories with; None for nothing.

        It may be used from any loop and thread, also while the store is closed.
        """

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> Store:
        """Open the store.

        Args:
            committed: to be notified after each commit of this store.
            ended: to be called when the store has ended by itself, as when its loop is closed.

        Raises:
            StorageError, MigrationError: nothing is left open.
        """
