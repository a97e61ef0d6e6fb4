"""The contract: what every history store can do, whatever keeps it. Start here.

    async with open_history("history.db") as history:
        await history.add_history("memory-1", None, "likes tea", "ADD")

Lives here: the public calls, their checks, who may call, opening and closing. Not here: how a
backend stores anything (backends/), how writes become batches (writer.py).
"""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from async_history.errors import HistoryClosed, InvalidInput, WrongLoop
from async_history.queries import (
    PAGE_SIZE,
    Cursor,
    Filter,
    HistoryQuery,
    Order,
    PageRead,
    new_query,
)
from async_history.records import Event, HistoryRecord, Message, check_text, new_record
from async_history.submissions import (
    MESSAGES_KEPT,
    Submission,
    many_records,
    messages_to_save,
    one_record,
)
from async_history.writer import WriterStats

_process = object()
"""This process, for telling it from a forked child: asking the system at each call costs more than
all other checks together."""


def _enter_child() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)

CLOSE_TIMEOUT_S = 10.0
"""How long closing waits for what was accepted, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """A manager's state for operators: counters since it was opened, sizes in bytes, and worries.

    `writer` is None where nothing is queued (the null manager).
    """

    store: str
    writer: WriterStats | None
    file_bytes: int
    wal_bytes: int
    worries: tuple[str, ...]


class HistoryManager(ABC):
    """An open history store, made by `open_history`. Belongs to the event loop that opened it.

    Use it as `async with manager:`, or `await manager` and later `await manager.aclose()`. Every
    call but `close` raises `WrongLoop` from another loop or a forked process, and `HistoryClosed`
    before opening and after closing.
    """

    def __init__(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self._close_timeout_s = close_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._process = _process
        self._is_open = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    # Recording

    async def add_history(
        self,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: Event | str,
        *,
        created_at: datetime | str | None = None,
        updated_at: datetime | str | None = None,
        is_deleted: bool | int | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        id: str | None = None,
    ) -> HistoryRecord:
        """Record one change of a memory and return the record when it is durable.

        A missing `id` becomes a UUIDv7; a missing time of the change becomes now, in UTC; a
        missing `is_deleted` follows from the event. Times are kept to the letter.

        Raises:
            InvalidInput: a value can't be stored as given; nothing was queued.
            IdConflict: the id is there with other content. With the same content it is the same
                record, and returning it is no error.
            Overloaded, CommitUnknown, StorageError: see errors.py.
        """
        self._require_open()
        record = new_record(
            memory_id,
            old_memory,
            new_memory,
            event,
            created_at,
            updated_at,
            is_deleted,
            actor_id,
            role,
            id,
        )
        given: Mapping[str, Any] | None = None
        if id is not None:
            given = {
                "created_at": created_at,
                "updated_at": updated_at,
                "is_deleted": is_deleted,
                "actor_id": actor_id,
                "role": role,
            }
        submission = one_record(record, given)
        await self._submit(submission)
        return submission.records[0]

    async def batch_add_history(
        self,
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | None = None,
    ) -> list[HistoryRecord]:
        """Record many changes, all or none and in order; return them when they are durable.

        Args:
            records: `HistoryRecord`s, or mappings with mem0's column names.
            if_latest: write only if this is still the latest record of its memory.

        Raises:
            HistoryConflict: `if_latest` is not its memory's latest record.
            InvalidInput, IdConflict, Overloaded, CommitUnknown, StorageError: as `add_history`.
        """
        self._require_open()
        submission = await many_records(records, if_latest)
        if submission.records:
            await self._submit(submission)
        return submission.records

    async def save_messages(
        self, messages: Iterable[Mapping[str, Any] | Message], session_scope: str
    ) -> None:
        """Append messages to a session scope's rolling buffer, which keeps the last ten.

        Raises:
            InvalidInput: a role, content or name is no text.
        """
        self._require_open()
        submission = messages_to_save(messages, session_scope)
        if submission.messages:
            await self._submit(submission)

    # Reading

    async def get_history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first: the order in which they were recorded."""
        self._require_open()
        return await self._read_history(check_text("memory_id", memory_id))

    def query_history(
        self,
        *,
        memory_id: str | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        event: Event | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        order: Order = "oldest",
        after: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> HistoryQuery:
        """Ask for records by memory, actor, role, event and time; iterate over the answer.

        Args:
            since, until: aware datetimes; `occurred_at` lies in [since, until).
            order: "oldest" or "newest" first. Order is the order of recording, not of times.
            after: the `cursor` of a page, to continue behind it.
            page_size: records fetched at once.

        Raises:
            InvalidInput: at once, naming the argument.
            CursorGone: while iterating, when the record a cursor stands behind is gone.
        """
        self._require_open()

        async def read_page(wanted: Filter, place: Cursor | None, limit: int) -> PageRead:
            self._require_open()
            return await self._read_page(wanted, place, limit)

        return new_query(
            read_page,
            memory_id=memory_id,
            actor_id=actor_id,
            role=role,
            event=event,
            since=since,
            until=until,
            order=order,
            after=after,
            page_size=page_size,
        )

    async def get_last_messages(
        self, session_scope: str, limit: int = MESSAGES_KEPT
    ) -> list[Message]:
        """Return the last `limit` messages of a session scope, in the order they were saved."""
        self._require_open()
        if type(limit) is not int or limit < 0:
            raise InvalidInput(f"limit must be a whole number of at least 0, not {limit!r}")
        return list(await self._read_messages(check_text("session_scope", session_scope), limit))

    async def stats(self) -> HistoryStats:
        """Return the queue, the batches, the sizes, and what to worry about."""
        self._require_open()
        return await self._read_stats()

    # Life

    async def reset(self) -> None:
        """Empty the store, after all writes called before and before all called after."""
        self._require_open()
        await self._empty()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Self:
        if self._loop is not None:
            raise HistoryClosed("a manager is opened once; make another with open_history")
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = _process
        try:
            await self._open()
        except BaseException:
            self._closed = True
            raise
        if self._closed:
            await self._close()
            raise HistoryClosed("the manager was closed while it was being opened")
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """Refuse new work, wait until what was accepted is durable, and let go of the store.

        Waits at most `close_timeout_s`. Closing twice, also at the same time, is closing once.
        """
        self._require_own_loop()
        self._closed = True
        if self._is_open:
            await asyncio.shield(self._close_task())

    def close(self) -> None:
        """Close from anywhere: from the manager's loop it begins closing and returns at once,
        from another thread it returns when closing is done."""
        self._require_own_process()
        self._closed = True
        loop = self._loop
        if loop is None or not self._is_open:
            return
        if self._is_in_own_loop():
            self._close_task()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(self.aclose(), loop).result(
                self._close_timeout_s + CLOSE_TIMEOUT_S
            )
        else:
            self._abandon()

    def _close_task(self) -> "asyncio.Task[None]":
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return self._closing

    def _require_open(self) -> None:
        if self._closed or not self._is_open:
            self._require_own_process()
            raise HistoryClosed(
                "the manager is closed; open another"
                if self._closed
                else "the manager is not open yet: `async with` it, or await it"
            )
        self._require_own_loop()

    def _require_own_loop(self) -> None:
        self._require_own_process()
        if self._loop is not None and not self._is_in_own_loop():
            raise WrongLoop(
                "this manager belongs to another event loop; open one in the loop that uses it"
            )

    def _is_in_own_loop(self) -> bool:
        # Not asyncio.get_running_loop(): before Python 3.12 each call of it asks the system for
        # the process id, which can cost more than all of the call it is made from.
        return (
            self._loop is not None
            and self._loop.is_running()
            and threading.get_ident() == self._thread
        )

    def _require_own_process(self) -> None:
        if self._process is not _process:
            raise WrongLoop(
                "this manager was opened before the process forked; open one in the process that "
                "uses it"
            )

    # What a backend provides

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None:
        """Drain and let go. Called once, in the manager's loop, not cancelled."""

    @abstractmethod
    def _abandon(self) -> None:
        """Let go without the loop, which has stopped: what was not acked is not waited for."""

    @abstractmethod
    def _submit(self, submission: Submission) -> Awaitable[None]:
        """Write a submission and return when it is durable."""

    @abstractmethod
    async def _read_history(self, memory_id: str) -> list[HistoryRecord]: ...

    @abstractmethod
    async def _read_page(self, wanted: Filter, after: Cursor | None, limit: int) -> PageRead: ...

    @abstractmethod
    async def _read_messages(self, session_scope: str, limit: int) -> Sequence[Message]: ...

    @abstractmethod
    async def _read_stats(self) -> HistoryStats: ...

    @abstractmethod
    async def _empty(self) -> None: ...
