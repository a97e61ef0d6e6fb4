"""What a backend provides: the bare interface below the contract."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from async_history._core.erase import EraseBackend
from async_history._core.erasure_log import Erasure
from async_history._core.follow import FollowRead
from async_history._core.lifecycle import LoopBound
from async_history._core.prune import PruneCursor, PruneRequest, PruneStep
from async_history._core.query import Cursor, Filter, PageRead, RowsRead
from async_history._core.records import HistoryRecord, Message
from async_history._core.submissions import Submission
from async_history._core.writer import WriterStats

Severity = Literal["warning", "critical"]
"""critical: what is acknowledged may be lost, or can't be found. warning: anything less."""


class StoreWarning(str):
    """What an operator should know about a store: a sentence, with a code for programs.

    Attributes:
        code: what it is about, in words joined by hyphens; stable from release to release.
        severity: see `Severity`.
    """

    __slots__ = ("code", "severity")

    code: str
    severity: Severity

    def __new__(cls, code: str, severity: Severity, text: str) -> Self:
        warning = super().__new__(cls, text)
        warning.code = code
        warning.severity = severity
        return warning

    def __reduce__(self) -> tuple[type[Self], tuple[str, Severity, str]]:
        return type(self), (self.code, self.severity, str(self))


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """A manager's state for operators: counters since it was opened, sizes in bytes, and warnings.

    `writer` is None where nothing is queued (the null manager).
    """

    store: str
    writer: WriterStats | None
    file_bytes: int
    wal_bytes: int
    warnings: tuple[StoreWarning, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a store was asked for to tell its state: bytes, and what an operator should know."""

    file_bytes: int = 0
    wal_bytes: int = 0
    warnings: tuple[StoreWarning, ...] = ()


class Store(LoopBound):
    """A store of history records and messages. Arguments are checked already."""

    @abstractmethod
    def _submit(self, submission: Submission) -> "asyncio.Future[None]":
        """Take a submission in, at once; what is returned is done when it is durable.

        Cancelling that takes it back, as long as no batch has it.
        """

    @abstractmethod
    async def _submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        """Take in the place of a submission, at once, and then that; return when it is durable."""

    @abstractmethod
    def _require_writable(self) -> None:
        """Raise now what `_submit` would raise for any submission."""

    @abstractmethod
    async def _read_history(self, memory_id: str) -> list[HistoryRecord]: ...

    @abstractmethod
    async def _read_page(
        self, wanted: Filter, after: Cursor | None, limit: int, ahead: int
    ) -> PageRead:
        """Read a page of up to `limit` records, and for the pages after it up to `ahead` in all."""

    @abstractmethod
    async def _count(self, wanted: Filter) -> int: ...

    @abstractmethod
    def _follow_place(self, cursor: str | None) -> Any:
        """Return a follower's place from its text, None for the beginning.

        Raises:
            InvalidInput: it is none of this backend's, or this history can't be followed.
        """

    @abstractmethod
    async def _read_behind(
        self, place: Any, memory_id: str | None, limit: int
    ) -> FollowRead[Any]: ...

    @abstractmethod
    async def _read_end(self) -> Any: ...

    @abstractmethod
    async def _read_mark(self) -> object:
        """Return something that differs from what it was once a record is committed.

        Followers are woken when it does: it may also differ without need. It takes constant work.
        """

    @abstractmethod
    def _read_states(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Read pages of the records in force at an instant, of the memories that were there."""

    @abstractmethod
    async def _read_rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return what follows a place in the order of recording, with as little work as can be.

        Raises:
            CursorGone: the record of that place is no longer there, as far as that shows.
        """

    @abstractmethod
    async def _read_times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return `HistoryRecord.time_before` of records by id, as far as it is known."""

    @abstractmethod
    async def _read_newest(self) -> int | None:
        """Return the position of the newest record, as cursors have it."""

    @abstractmethod
    async def _read_messages(self, session_scope: str, limit: int) -> Sequence[Message]: ...

    @abstractmethod
    async def _read_scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes behind `after`, in the order of their UTF-8 bytes."""

    @abstractmethod
    async def _measure(self) -> Measured:
        """Measure the store. It may take long."""

    @abstractmethod
    def _new_stats(self, measured: Measured) -> HistoryStats:
        """Return the statistics with these figures, from memory."""

    @abstractmethod
    def _empty(self) -> "asyncio.Future[None]":
        """Queue a reset, at once; what is returned is done when the store is empty."""

    @abstractmethod
    async def _prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        """Prune the next few records in one transaction, or in a dry run count them."""

    @abstractmethod
    def _erase_backend(self) -> EraseBackend: ...

    @abstractmethod
    async def _read_erasures(self) -> Sequence[Erasure]: ...
