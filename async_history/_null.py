"""The null backend: it checks records and discards them; it keeps message buffers.

It is like the Dummy of mem0-ts. The buffers are kept in memory, because mem0 2.x gives them to its
LLM.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.concurrency.yielding import CooperativeCalls
from async_history._core.manager import HistoryManager
from async_history._core.operations.operation_log import OperationLog
from async_history._core.operations.operations import OperationEnd, StoreOperation
from async_history._core.reading.cursors import Cursor, not_a_cursor
from async_history._core.reading.filters import Filter, Order
from async_history._core.reading.follow_reads import FollowRead
from async_history._core.reading.query import PageRead, RowsRead
from async_history._core.reading.timeline import Moment, last_change_at
from async_history._core.records.messages import MESSAGES_KEPT, Message
from async_history._core.records.records import HistoryRecord
from async_history._core.removing.erase import EraseBackend, Residue
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.erase_transaction import (
    Columns,
    EraseTransaction,
    RecordRef,
    Texts,
)
from async_history._core.removing.prune import PruneCursor, PruneStep
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.stats import Measured
from async_history._core.validation import check_flag
from async_history._core.writing.erased_names import Name
from async_history._core.writing.observer import WriterObserver
from async_history._core.writing.submissions import SaveMessages, Submission

T = TypeVar("T")

Buffers = dict[str, deque[Message]]
"""The last messages of each session scope."""


class NullHistoryManager(HistoryManager):
    """A history that stores no records: it switches the history off without changing the program.

    `create` and `migrate` are accepted, as by every manager, and have no effect.
    """

    def __init__(
        self,
        *,
        create: bool = True,
        migrate: bool = True,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        check_flag("create", create)
        check_flag("migrate", migrate)
        super().__init__(NullBackend(), close_timeout_s=close_timeout_s)


class NullBackend:
    """The backend of `null://`."""

    where = "null://"
    system = "other_sql"
    store_name = None

    def new_locks(self) -> None:
        """Return None: no other process can use this store."""

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> "NullStore":
        """Return an empty store."""
        return NullStore()


class NullStore:
    """The message buffers, and parts that store no records."""

    def __init__(self) -> None:
        self._buffers: Buffers = defaultdict(lambda: deque(maxlen=MESSAGES_KEPT))
        self._calls = CooperativeCalls()
        self.writer = _NullWriter(self._buffers, self._calls)
        self.reader = _NullReader(self._buffers, self._calls)
        self.follower = _NullFollowReader(self._calls)
        self.eraser: EraseBackend = _BufferErasure(self._buffers, self._calls)
        self.operations: OperationLog = _NoLog(self._calls)

    @property
    def primary_reader(self) -> "_NullReader":
        return self.reader

    @property
    def name_reader(self) -> "_NullReader":
        return self.reader

    async def prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        await self._calls.done()
        return PruneStep(0, 0, None)

    def reset(self, operation: StoreOperation) -> "asyncio.Future[None]":
        self._buffers.clear()
        return self._calls.done()

    async def measure(self) -> Measured:
        return Measured()

    async def faults(self) -> Sequence[str]:
        return []

    async def aclose(self, timeout_s: float) -> None:
        self.abandon()

    def abandon(self) -> None:
        self._buffers.clear()


class _NullWriter:
    """Keeps messages, and discards records. It never fails."""

    def __init__(self, buffers: Buffers, calls: CooperativeCalls) -> None:
        self._buffers = buffers
        self._calls = calls

    def require_writable(self) -> None: ...

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        if isinstance(submission, SaveMessages):
            self._buffers[submission.session_scope].extend(submission.messages)
        return self._calls.done()

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        await self.submit(await prepare())

    def observe(self, observer: WriterObserver) -> None: ...

    def stats(self) -> None:
        return None


class _NullReader:
    """Finds messages, but no records."""

    def __init__(self, buffers: Buffers, calls: CooperativeCalls) -> None:
        self._buffers = buffers
        self._calls = calls

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        await self._calls.done()
        return []

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        return last_change_at(await self.history(memory_id), when)

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        await self._calls.done()
        return PageRead([], None, is_last=True)

    async def next_cursor(self, position: int, order: Order) -> Cursor | None:
        await self._calls.done()
        return None

    async def count(self, wanted: Filter) -> int:
        await self._calls.done()
        return 0

    async def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        await self._calls.done()
        yield []

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        await self._calls.done()
        return RowsRead([], after, is_last=True)

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        await self._calls.done()
        return {}

    async def newest(self) -> int | None:
        await self._calls.done()
        return None

    async def last_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        await self._calls.done()
        buffer = self._buffers.get(session_scope, ())
        return list(buffer)[max(0, len(buffer) - limit) :]

    async def scopes(self, after: str, limit: int) -> Sequence[str]:
        await self._calls.done()
        return sorted(scope for scope in self._buffers if scope > after)[:limit]


class _NullFollowReader:
    """A follower's reads, which find no records."""

    def __init__(self, calls: CooperativeCalls) -> None:
        self._calls = calls

    def position(self, cursor: str | None) -> None:
        if cursor is not None:
            raise not_a_cursor(cursor, "the null history, which has none")

    async def page(self, after: None, memory_id: str | None, limit: int) -> FollowRead[None]:
        await self._calls.done()
        return FollowRead([], lambda _: None, None, is_last=True)

    async def end(self) -> None:
        await self._calls.done()

    async def mark(self) -> None:
        await self._calls.done()


class _NoLog:
    """A log of operations that stays empty."""

    def __init__(self, calls: CooperativeCalls) -> None:
        self._calls = calls

    async def begin(self, *operations: StoreOperation) -> None: ...

    async def add(self, operation_id: str, records: int, messages: int) -> None: ...

    async def end(self, end: OperationEnd) -> None: ...

    async def forget_actor(self, actor_id: str) -> None: ...

    async def read(
        self, *, up_to: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> Sequence[StoreOperation]:
        await self._calls.done()
        return []


class _BufferErasure:
    """Erases messages. There are no records, and the erasure is not logged."""

    def __init__(self, buffers: Buffers, calls: CooperativeCalls) -> None:
        self._buffers = buffers
        self._calls = calls

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        await self._calls.done()
        return await work(_BufferTransaction(self._buffers, self._calls))

    async def clean(self, *, key_ids: Sequence[str], vacuum: Vacuuming) -> Residue:
        return Residue()

    async def residue(self) -> Residue:
        return Residue()


class _BufferTransaction:
    """The buffers, and no records."""

    def __init__(self, buffers: Buffers, calls: CooperativeCalls) -> None:
        self._buffers = buffers
        self.log: OperationLog = _NoLog(calls)

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> Sequence[RecordRef]:
        return []

    async def of_actor(
        self, actor_id: str, after: RecordRef | None, limit: int
    ) -> Sequence[RecordRef]:
        return []

    async def sizes(self, memory_ids: Sequence[str]) -> Mapping[str, int]:
        return {}

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> Sequence[Texts]:
        return []

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> Sequence[Texts]:
        return []

    async def with_ids(self, record_ids: Sequence[str]) -> Sequence[RecordRef]:
        return []

    async def redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        return len(refs)

    async def note(self, names: Sequence[Name], at: datetime) -> Sequence[str]:
        return ()

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None: ...

    async def messages(self, session_scopes: Sequence[str]) -> int:
        return sum(len(self._buffers.get(scope, ())) for scope in session_scopes)

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        return sum(len(self._buffers.pop(scope, ())) for scope in session_scopes)
