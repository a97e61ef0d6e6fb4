"""The interface that a backend provides to the manager."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.locking.locks import ProcessLocks
from async_history._core.operations.operation_log import OperationLog
from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter, Order
from async_history._core.reading.follow_reads import FollowReader
from async_history._core.reading.query import PageRead, RowsRead
from async_history._core.reading.timeline import Moment
from async_history._core.records.messages import Message
from async_history._core.records.records import HistoryRecord
from async_history._core.removing.erase import EraseBackend
from async_history._core.removing.prune import PruneCursor, PruneStep
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.stats import Measured
from async_history._core.writing.observer import WriterObserver
from async_history._core.writing.submissions import Submission
from async_history._core.writing.writer_stats import WriterStats


class Writer(Protocol):
    """The writer of submissions, in the order of the calls. `GroupCommitWriter` implements it."""

    def require_writable(self) -> None:
        """Raise the error that every submission would raise, if it is known without writing."""

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        """Queue a submission at once. The future is done when it is durable.

        Cancelling the future withdraws the submission, unless a batch already has it.
        """

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        """Reserve a position in the queue at once, then submit; return when it is durable."""

    def observe(self, observer: WriterObserver) -> None:
        """Notify an observer of each later batch, and of each call if it wants.

        A writer without batches does nothing.
        """

    def stats(self) -> WriterStats | None:
        """Return the current counters and queue sizes; None if the writer has no queue."""


class CallReader(Protocol):
    """The reads of a manager's calls."""

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, in the order of recording."""

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's record in force at a moment: see `last_change_at`."""

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return a page of up to `limit` records; read up to `ahead` for the next pages.

        Raises:
            CursorGone: the record of `after` is no longer there.
        """

    async def next_cursor(self, position: int, order: Order) -> Cursor | None:
        """Return the first record at a position or beyond it, in an order; None if there is none.

        It takes constant work.
        """

    async def count(self, wanted: Filter) -> int:
        """Return the number of records that match."""

    def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, of memories that existed then."""

    async def last_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        """Return a scope's last messages, in the order in which they were saved."""


class Reader(CallReader, Protocol):
    """The reads of calls, copies and checks."""

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return the rows after a cursor in the order of recording, with minimal work.

        Raises:
            CursorGone: the cursor's record is no longer there, if that is noticed.
        """

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return `HistoryRecord.time_before` of records by id, where it is known."""

    async def newest(self) -> int | None:
        """Return the position of the newest record, as in cursors."""

    async def scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes after `after`, in the order of their UTF-8 bytes."""


class Store(Protocol):
    """The parts of an open store. It belongs to the event loop that opened it."""

    @property
    def writer(self) -> Writer: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def primary_reader(self) -> Reader:
        """The reader of all that is committed, for changes that depend on what they read.

        `reader` may read a replica, which lags behind.
        """

    @property
    def name_reader(self) -> Reader:
        """As `primary_reader`, for names only: its texts may be sealed, so it needs no keys."""

    @property
    def follower(self) -> FollowReader[Any]: ...

    @property
    def eraser(self) -> EraseBackend: ...

    @property
    def operations(self) -> OperationLog:
        """The log of operations. A reset keeps it."""

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next few records in one transaction; in a dry run, only count them."""

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        """Queue a reset at once. The future is done when the store is empty.

        The same transaction adds the operation to the log, as ended, with the numbers of removed
        records and messages.
        """

    async def measure(self) -> Measured:
        """Measure the store. It may take long."""

    async def faults(self) -> Sequence[str]:
        """Check ids and indexes; return a sentence for each fault.

        It may take long. Records that others write during the check are not faults.
        """

    async def aclose(self, timeout_s: float) -> None:
        """Write accepted submissions, for at most `timeout_s`, and release everything.

        It is called once, in the store's loop, and never cancelled.
        """

    def abandon(self) -> None:
        """Release everything without the loop, which has stopped, and do not wait."""


class Backend(Protocol):
    """The location of a history before it is opened, with checked options.

    Another backend implements this and `Store`. `HistoryManager(backend)` is its manager, and the
    test cases of `async_history.testing` check that it keeps the contract.
    """

    @property
    def where(self) -> str:
        """Its name in messages: a path, or a URL without the password."""

    @property
    def system(self) -> str:
        """The database, as `db.system.name` of OpenTelemetry's semantic conventions."""

    @property
    def store_name(self) -> tuple[str, ...] | None:
        """The kind and the names of its store, the same for each backend that opens that store.

        None if no other backend can open it.
        """

    def new_locks(self) -> ProcessLocks | None:
        """Return the locks on memories between the store's processes; None if there are none.

        They can be used from any loop and thread, also while the store is closed.
        """

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> Store:
        """Open the store.

        Args:
            committed: to be notified after each commit of this store.
            ended: to be called when the store has ended by itself, for example with its loop.

        Raises:
            StorageError, MigrationError: nothing is left open.
        """
