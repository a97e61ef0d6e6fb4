"""The manager: the calls of every history store, on any database. Start here.

async with open_history("history.db") as history:
    await history.add_history("memory-1", None, "likes tea", "ADD")
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from async_history._core.backend import Backend, CallReader, Store
from async_history._core.checking.check import check_store
from async_history._core.checking.check_report import CheckReport
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.lifecycle import CLOSE_TIMEOUT_S, LoopBound
from async_history._core.concurrency.yielding import CooperativeCalls
from async_history._core.encryption.encryption import Encryption
from async_history._core.encryption.store_encryption import EncryptedStore, StoreEncryption
from async_history._core.ledger.ledger import Ledger
from async_history._core.ledger.ledger_store import LedgeredStore, LedgerStore
from async_history._core.limits import DEFAULT_LIMITS, Limits
from async_history._core.operations.erasures import ERASE, Erasure, erasures_of
from async_history._core.operations.operation_log import OperationLog, last_operations, logged
from async_history._core.operations.operations import StoreOperation, new_operation
from async_history._core.operations.progress import Progress
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import (
    Filter,
    Order,
    Pairs,
    check_cause_filter,
    check_scopes,
    new_filter,
)
from async_history._core.reading.follow import POLL_INTERVAL_S, Follower
from async_history._core.reading.follow_reads import FollowReader
from async_history._core.reading.follower_group import FollowerGroup
from async_history._core.reading.query import PAGE_SIZE, HistoryQuery, PageRead, new_query
from async_history._core.reading.timeline import (
    MemoryDiff,
    Moment,
    check_instant,
    check_moment,
    diff_of,
    records_of,
    state_at,
    states_of_owner,
    with_cause,
)
from async_history._core.records.messages import MESSAGES_KEPT, Message
from async_history._core.records.new_records import new_fields
from async_history._core.records.owners import Owner
from async_history._core.records.recording import begun_at, operation
from async_history._core.records.records import CONTEXT, Event, HistoryRecord, is_alive
from async_history._core.records.values import check_text
from async_history._core.removing.erase import ErasureReport, erase_in_steps
from async_history._core.removing.erase_request import Vacuuming, check_vacuuming, new_erase_request
from async_history._core.removing.prune import PruneCursor, PruneReport, PruneStep, prune_in_steps
from async_history._core.removing.prune_request import PruneRequest, new_prune_request
from async_history._core.requests import takes
from async_history._core.stats import HistoryStats, Measured, Measurements, history_stats
from async_history._core.telemetry import ReportedStore, telemetry
from async_history._core.undoing.restore import restore_after_reading
from async_history._core.undoing.rollback import (
    RollbackReport,
    records_written,
    take_back,
)
from async_history._core.undoing.rollback_request import (
    RollbackRequest,
    rollback_request,
    undo_request,
)
from async_history._core.validation import check_count, check_function, check_seconds
from async_history._core.writing.new_submissions import (
    UncheckedRecords,
    earlier_text,
    messages_to_save,
    new_text,
    one_record,
)
from async_history.errors import InvalidInput


class HistoryManager(LoopBound[Store]):
    """A history store, as `open_history` returns it. It belongs to the event loop that opened it.

    Use it as `async with manager:`, or `await manager` and later `await manager.aclose()`. Every
    call except `close` raises `WrongLoop` from another loop or a forked process, and
    `HistoryClosed` before opening and after closing. If it is garbage-collected while it is open, a
    `ResourceWarning` names it, and it closes in its loop.

    Args:
        backend: the database of the history.
        close_timeout_s: seconds that closing waits for accepted calls to be written.
        limits: sizes of the steps of pruning and erasing. Not an option: only tests set them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(close_timeout_s=close_timeout_s)
        self._backend = backend
        self._limits = limits
        self._calls = CooperativeCalls()
        self._committed = CommitSignal()
        self._measurements = Measurements(self._measure)
        self._followers: FollowerGroup[Any] = FollowerGroup(self._committed, self._follower)
        self._reported: ReportedStore | None = None
        self._traced_reader: CallReader | None = None
        self._traced_primary_reader: CallReader | None = None

    def __repr__(self) -> str:
        state = self._state()
        if state == "open" and self._is_in_own_loop() and self._open is not None:
            writer = self._open.writer.stats()
            if writer is not None and writer.queued_records:
                state += f", {writer.queued_records:,} queued"
        return f"<{type(self).__name__} {self._backend.where!r} {state}>"

    def _follower(self) -> FollowReader[Any]:
        return self._require_open().follower

    def _reader(self) -> CallReader:
        store = self._require_open()
        if begun_at() is None:
            return self._traced_reader or store.reader
        return self._traced_primary_reader or store.primary_reader

    async def _opening(self) -> Store:
        store = await self._backend.open(self._committed, self._weak_end())
        self._reported = reported = ReportedStore(
            self._backend.system,
            self._backend.where,
            store.writer,
            self._measurements,
            self._followers,
        )
        current = telemetry()
        if current is not None:
            current.opened(reported)
            self._traced_reader = current.reader(reported, store.reader)
            self._traced_primary_reader = current.reader(reported, store.primary_reader)
        return store

    async def _close(self, opened: Store) -> None:
        try:
            await opened.aclose(self._close_timeout_s)
        finally:
            self._reported = None  # accepted work is counted until it is written

    def _close_task(self, opened: Store) -> "asyncio.Task[None]":
        self._traced_reader = self._traced_primary_reader = None
        self._measurements.close()
        self._followers.close()  # notifies followers
        return super()._close_task(opened)

    def _raise_end(self, opened: Store) -> None:
        opened.writer.require_writable()

    def _abandon(self, opened: Store) -> None:
        self._reported = None
        opened.abandon()

    async def _measure(self) -> Measured:
        return await self._require_open().measure()

    @property
    def backend(self) -> Backend:
        """The backend, also while the manager is closed."""
        return self._backend

    @property
    def store(self) -> Store:
        """The open store, for code that works below the manager: it checks no arguments.

        Raises:
            HistoryClosed, WrongLoop: as every call.
        """
        return self._require_open()

    @property
    def encryption(self) -> Encryption:
        """Operations on the keys of an encrypted history, such as `rotate_keys`.

        Raises:
            InvalidInput: the history was opened without `keys`.
            HistoryClosed, WrongLoop: as every call.
        """
        store = self._require_open()
        encryption, _ = self._require_encryption()
        return Encryption(
            self._require_encryption,
            encryption.keys.ring,
            self._backend.where,
            self._limits.texts,
            has_ledger=isinstance(store, LedgeredStore) and store.ledger is not None,
        )

    def _require_encryption(self) -> tuple[StoreEncryption, OperationLog]:
        store = self._require_open()
        if not isinstance(store, EncryptedStore) or store.encryption is None:
            raise InvalidInput(
                f"{self._backend.where} is not encrypted: open it with keys=KeyRing(…)"
            )
        return store.encryption, store.operations

    @property
    def ledger(self) -> Ledger:
        """The ledger of a history that was opened with `ledger=True`, now or earlier.

        Raises:
            InvalidInput: the history has no ledger.
            HistoryClosed, WrongLoop: as every call.
        """
        self._require_ledger()
        return Ledger(self._require_ledger)

    def _require_ledger(self) -> tuple[LedgerStore, OperationLog]:
        store = self._require_open()
        if not isinstance(store, LedgeredStore) or store.ledger is None:
            raise InvalidInput(
                f"{self._backend.where} has no ledger: open it with ledger=True, and what is "
                "recorded from then on is in it"
            )
        return store.ledger, store.operations

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
        owner: Owner | Mapping[str, str | None] | None = None,
        context: Mapping[str, Any] | None = None,
        cause: Mapping[str, str] | None = None,
        if_latest: HistoryRecord | str | None = None,
    ) -> HistoryRecord:
        """Record one change of a memory and return the record when it is durable.

        Args:
            memory_id: the memory.
            old_memory: the text before the change; None for an ADD, or if it is not known.
            new_memory: the text after the change; None for a DELETE.
            event: "ADD", "UPDATE" or "DELETE".
            created_at: when the memory was created: ISO 8601 text, stored exactly as given, or an
                aware datetime. For an ADD it is the time of the change; default: now in UTC.
            updated_at: when it was changed, in the same form. For an UPDATE or DELETE it is the
                time of the change; default: now in UTC.
            is_deleted: whether the memory is deleted; by default it follows from the event.
            actor_id: the actor who made the change.
            role: the actor's role, such as "user".
            id: the record's id; default: a new UUIDv7. A call with its own id can be repeated
                safely.
            owner: the memory's owner: an `Owner`, or a mapping with any of `user_id`, `agent_id`,
                `run_id` and `app_id`. Given once, it applies to all records of the memory.
            context: the memory's metadata after the change, as JSON values.
            cause: the reason of the change: short texts by free keys, such as `request_id`. See
                `recording`.
            if_latest: a record that was read, or its id. The change is written only if that record
                is still the latest of its memory.

        Raises:
            HistoryConflict: `if_latest` is not its memory's latest record, or is a record whose
                text was erased after it was read; nothing was written.
            InvalidInput: a value can't be stored as given; nothing was queued.
            IdConflict: a record with this id has other content. (If its content is the same, it is
                returned.)
            OwnerConflict: the memory has another owner; nothing was written.
            Overloaded: the queue had no space within `queue_timeout_s`; nothing was written.
            CommitUnknown: it may have been written. With the same `id` the call can be repeated.
            StorageError: nothing was written.
        """
        store = self._require_open()
        fields = new_fields(
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
            None,
            owner,
            context,
            cause,
        )
        given: Mapping[str, Any] | None = None
        if id is not None:
            given = {
                "created_at": created_at,
                "updated_at": updated_at,
                "is_deleted": is_deleted,
                "actor_id": actor_id,
                "role": role,
                "context": None if context is None else fields[CONTEXT],
            }
        submission = one_record(fields, given, if_latest)
        await store.writer.submit(submission)
        return submission.records[0]

    async def update_history(
        self,
        memory_id: str,
        new_memory: str,
        *,
        updated_at: datetime | str | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        id: str | None = None,
        owner: Owner | Mapping[str, str | None] | None = None,
        context: Mapping[str, Any] | None = None,
        cause: Mapping[str, str] | None = None,
    ) -> HistoryRecord:
        """Record a memory's new text; return the record when it is durable.

        The old text is read in the transaction that writes the record. The record is an UPDATE
        whose `old_memory` is the latest record's `new_memory`, or an ADD if the memory has no
        record or was deleted. If the memory already has this text and context, nothing is written
        and its latest record is returned. Concurrent calls for one memory continue each other. (On
        a server, `add_history` of another manager may be written between them.)

        Args:
            memory_id: the memory.
            new_memory: the new text.
            updated_at: when it changed, as in `add_history`; default: now. It becomes `created_at`
                of an ADD.
            actor_id, role, id: as in `add_history`. A call that is repeated with the same id
                never records the change twice.
            owner, context, cause: as in `add_history`.

        Raises:
            InvalidInput: a value can't be stored as given; nothing was queued. To record a DELETE,
                use `add_history`.
            IdConflict, OwnerConflict, Overloaded, CommitUnknown, StorageError: as `add_history`.
        """
        store = self._require_open()
        submission = new_text(
            memory_id,
            new_memory,
            updated_at,
            actor_id=actor_id,
            role=role,
            id=id,
            owner=owner,
            context=context,
            cause=cause,
        )
        await store.writer.submit(submission)
        return submission.records[0]

    def require_writable(self) -> None:
        """Check that a write can succeed, for callers that must know before they start.

        Raises:
            HistoryClosed: the manager is not open, or its writer has ended.
            WrongLoop: it belongs to another event loop or process.
            MigrationError: it was opened with `migrate=False`, and its file must be adopted first.
            StorageMissing: its file or the file's log was removed or replaced while it was open.
        """
        self._require_open().writer.require_writable()

    async def batch_add_history(
        self,
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | str | None = None,
    ) -> list[HistoryRecord]:
        """Record many changes, all or none and in order; return them when they are durable.

        Args:
            records: `HistoryRecord`s, or mappings with mem0's column names as keys, and `owner`,
                `context` and `cause` as in `add_history`.
            if_latest: a record that was read, or, if all records are of one memory, its id. The
                changes are written only if that record is still the latest of its memory.

        Raises:
            HistoryConflict: as `add_history`.
            InvalidInput, IdConflict, OwnerConflict, Overloaded, CommitUnknown, StorageError: as
                `add_history`.
        """
        store = self._require_open()
        unchecked = UncheckedRecords(records, if_latest)
        submission = unchecked.check_slice()
        if submission is None:
            await store.writer.submit_when_ready(unchecked.check)
        elif submission.records:
            await store.writer.submit(submission)
        else:
            await self._calls.done()
        return unchecked.records

    async def add_in_transaction(
        self,
        connection: Any,
        records: Iterable[HistoryRecord | Mapping[str, Any]],
        *,
        if_latest: HistoryRecord | str | None = None,
    ) -> list[HistoryRecord]:
        """Record changes in the caller's transaction.

        For the arguments see `PostgresHistoryManager` and `SqlHistoryManager`.

        Raises:
            InvalidInput: this history is not in PostgreSQL and was not opened through SQLAlchemy.
        """
        self._require_open()
        raise InvalidInput(
            "only a history in PostgreSQL, or opened through SQLAlchemy, can be written within a "
            "transaction of yours; here use batch_add_history"
        )

    async def save_messages(
        self, messages: Iterable[Mapping[str, Any] | Message], session_scope: str
    ) -> None:
        """Append messages to a session scope's rolling buffer, which keeps the last ten.

        Args:
            messages: `Message`s, or mappings with the keys `role`, `content` and `name`.
            session_scope: the name of the buffer.

        Raises:
            InvalidInput: a role, content or name is not text; nothing was queued.
            Overloaded, CommitUnknown, StorageError: as `add_history`.
        """
        store = self._require_open()
        submission = messages_to_save(messages, session_scope)
        if submission.messages:
            await store.writer.submit(submission)
        else:
            await self._calls.done()

    # Reading

    async def get_history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records in the order of recording; an empty list if it is not known.

        Args:
            memory_id: the memory.

        Raises:
            InvalidInput: `memory_id` is not text.
            StorageError: the store can't be read.
        """
        return await self._reader().history(check_text("memory_id", memory_id))

    def query_history(
        self,
        *,
        memory_id: str | Collection[str] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        event: Event | str | None = None,
        text: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        cause: Mapping[str, str] | None = None,
        order: Order = "oldest",
        after: str | None = None,
        limit: int | None = None,
        page_size: int = PAGE_SIZE,
        scan_size: int | None = None,
    ) -> HistoryQuery:
        """Return a query for the records that match all filters; iterate over it.

        Args:
            memory_id: one memory, or several.
            actor_id: the actor who made the change.
            role: the actor's role.
            event: "ADD", "UPDATE" or "DELETE".
            text: a part of the old or the new text; case matters.
            since, until: aware datetimes; `occurred_at` lies in [since, until).
            user_id, agent_id, run_id, app_id: scopes of the memory's owner.
            cause: keys of the record's cause, with their texts. `run_id`, `trace_id` and
                `request_id` are found through an index.
            order: "oldest" or "newest" first, in the order of recording, not of times.
            after: the `cursor` of a page, to continue after it.
            limit: the most records in all; None for all.
            page_size: the most records of a page. Each page is one read.
            scan_size: about the most records that are looked at for a page; None for no limit. A
                page may then have fewer records, or none, before the last one.

        Raises:
            InvalidInput: at once; the message names the argument.
            CursorGone: while iterating, if the record of the cursor is gone.
            StorageError: while iterating.
        """
        self._require_open()

        async def read_page(
            wanted: Filter, after: Cursor | None, limit: int, ahead: int
        ) -> PageRead:
            return await self._reader().page(wanted, after, limit, ahead)

        async def next_cursor(position: int, order: Order) -> Cursor | None:
            return await self._reader().next_cursor(position, order)

        wanted = new_filter(
            memory_id=memory_id,
            actor_id=actor_id,
            role=role,
            event=event,
            text=text,
            since=since,
            until=until,
            order=order,
            owner=check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id),
            cause=cause,
        )
        return new_query(
            read_page,
            next_cursor,
            wanted,
            after=after,
            limit=limit,
            page_size=page_size,
            scan_size=scan_size,
        )

    async def count_history(
        self,
        *,
        memory_id: str | Collection[str] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
        event: Event | str | None = None,
        text: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        cause: Mapping[str, str] | None = None,
    ) -> int:
        """Return the number of records that match.

        Args:
            memory_id, actor_id, role, event, text, since, until: as in `query_history`.
            user_id, agent_id, run_id, app_id, cause: as in `query_history`.

        Raises:
            InvalidInput, StorageError: as `query_history`.
        """
        reader = self._reader()
        wanted = new_filter(
            memory_id=memory_id,
            actor_id=actor_id,
            role=role,
            event=event,
            text=text,
            since=since,
            until=until,
            owner=check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id),
            cause=cause,
        )
        return await reader.count(wanted)

    def follow(
        self,
        *,
        after: str | None = None,
        memory_id: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        cause: Mapping[str, str] | None = None,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> Follower:
        """Iterate over every record that is committed after a point, once and in commit order.

        A record whose transaction commits late comes late; none is skipped. Records that this
        manager commits come at once. Those of other managers come within `poll_interval_s`: all
        followers of a manager share one poll, at the shortest of their intervals. The iteration
        never ends by itself. After a timeout of `anext` it continues where it was.

        Args:
            after: the `cursor` of a follower, also of an earlier run, or the result of
                `end_cursor`; None starts with the oldest record. The cursor of a page can't be used
                here.
            memory_id: follow this memory only.
            user_id, agent_id, run_id, app_id, cause: return only such records, as in
                `query_history`. The others are read too.
            poll_interval_s: seconds between two polls for commits of others.

        Raises:
            InvalidInput: at once; the message names the argument. Also if the history is
                distributed over the nodes of a Citus cluster, which have no common commit order.
            CursorGone: while iterating, if the position to continue from no longer exists.
            HistoryClosed: while iterating, once the manager is closed.
            StorageError: while iterating; iterate again to continue.
        """
        store = self._require_open()
        memory = None if memory_id is None else check_text("memory_id", memory_id)
        check_seconds("poll_interval_s", poll_interval_s, may_be_zero=False)
        begin = store.follower.position(None if after is None else check_text("after", after))
        owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)
        return Follower(
            self._followers, begin, memory, owner, check_cause_filter(cause), poll_interval_s
        )

    async def end_cursor(self) -> str | None:
        """Return the cursor after all records committed so far, to start `follow` there.

        None if the history is empty: `follow` then starts at the beginning.

        Raises:
            InvalidInput, StorageError: as `follow`.
        """
        store = self._require_open()
        store.follower.position(None)
        end = await store.follower.end()
        return None if end is None else str(end)

    async def get_last_messages(
        self, session_scope: str, limit: int = MESSAGES_KEPT
    ) -> list[Message]:
        """Return the last messages of a session scope, in the order in which they were saved.

        Args:
            session_scope: the name of the buffer.
            limit: the most messages; a buffer keeps ten.

        Raises:
            InvalidInput: an argument is not valid; the message names it.
            StorageError: the store can't be read.
        """
        reader = self._reader()
        check_count("limit", limit)
        check_text("session_scope", session_scope)
        return list(await reader.last_messages(session_scope, limit))

    async def stats(self) -> HistoryStats:
        """Return the state of the queue and the writer, sizes, and known risks of this setup.

        This takes at most about half a second. If the store does not answer by then, sizes and
        warnings are the last known ones, and another warning says so.
        """
        store = self._require_open()
        await self._calls.done()
        measured = await self._measurements.latest()
        return history_stats(self._backend.where, store.writer.stats(), self._followers, measured)

    async def reset(self) -> None:
        """Remove all records and messages; the log of operations stays.

        The reset comes after all writes called before it, and before all writes called after it.

        Raises:
            Overloaded, CommitUnknown, StorageError: as `add_history`.
        """
        await self._require_open().reset(new_operation("reset"))

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Copy the history as it is now into a new file: see `SQLiteHistoryManager`.

        Raises:
            InvalidInput: this history is not in SQLite, or a file with this name exists.
        """
        self._require_open()
        raise InvalidInput(
            "only a history in SQLite has a backup; for a server's use its own tools (pg_dump), or "
            "copy_history"
        )

    # Time travel

    async def memory_at(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return the record in force at a moment: its `new_memory` is the memory's text then.

        None if the memory did not exist yet, or was deleted. Of the records that occurred at or
        before an instant, the last recorded one counts, because clocks can be set back.

        Args:
            memory_id: the memory.
            when: an aware datetime, or a version number: 1 is the memory's first record.

        Raises:
            InvalidInput: an argument is not valid (the message names it), or there is no such
                version.
            StorageError: the store can't be read.
        """
        reader = self._reader()
        memory_id = check_text("memory_id", memory_id)
        check_moment("when", when)
        found = await reader.last_change(memory_id, when)
        if found is None and isinstance(when, int):
            return state_at(memory_id, await reader.history(memory_id), when)
        return found if found is not None and is_alive(found) else None

    def _newest_first(self, owner: Pairs) -> HistoryQuery:
        """Return the records of an owner, the last recorded first."""
        scopes: dict[str, Any] = dict(owner)
        return self.query_history(**scopes, order="newest")

    def memories(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
    ) -> AsyncIterator[HistoryRecord]:
        """Iterate over an owner's memories: the latest record of each that is not deleted.

        The latest changes come first. No connection is held between pages.

        Args:
            user_id, agent_id, run_id, app_id: the owner's scopes; at least one.

        Raises:
            InvalidInput: at once: an argument is not valid, or none is given.
            CursorGone: while iterating, if records that were found are gone.
            StorageError: while iterating.
        """
        self._require_open()
        owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)
        if not owner:
            raise InvalidInput("name an owner: user_id, agent_id, run_id or app_id")
        return states_of_owner(self._newest_first(owner), None)

    def memories_at(
        self,
        when: datetime,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        cause: Mapping[str, str] | None = None,
    ) -> AsyncIterator[HistoryRecord]:
        """Iterate over all memories that existed at an instant: the record in force of each.

        Each is the record that `memory_at` returns. They are not in a particular order. No
        connection is held between pages.

        Args:
            when: an aware datetime.
            user_id, agent_id, run_id, app_id: only memories of this owner.
            cause: only records with this cause: see `query_history`.

        Raises:
            InvalidInput: at once.
            CursorGone: while iterating, if records that were found are gone (a reset, a removal,
                a rebuilt file).
            StorageError: while iterating.
        """
        reader = self._reader()
        check_instant("when", when)
        asked = check_cause_filter(cause)
        owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)
        if owner:
            found = states_of_owner(self._newest_first(owner), when)
        else:
            found = records_of(reader.states_at(when), self._require_open)
        return with_cause(found, asked) if asked else found

    async def diff(self, memory_id: str, start: Moment, end: Moment) -> MemoryDiff:
        """Return a memory's texts at two moments, and the records between them.

        Args:
            memory_id: the memory.
            start, end: moments, as `when` of `memory_at`; `end` may be the earlier one.

        Raises:
            InvalidInput, StorageError: as `memory_at`.
        """
        reader = self._reader()
        memory_id = check_text("memory_id", memory_id)
        check_moment("start", start)
        check_moment("end", end)
        return diff_of(memory_id, await reader.history(memory_id), start, end)

    async def restore(
        self,
        memory_id: str,
        *,
        to: Moment,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> HistoryRecord:
        """Restore a memory's text of a moment as a new record; return it when it is durable.

        A record is appended as by `update_history`, with the context of that moment; no record is
        removed. If the memory already has this text, nothing is written and its latest record is
        returned.

        Args:
            memory_id: the memory.
            to: the moment, as `when` of `memory_at`.
            actor_id, role: the actor who restores it, with the actor's role.

        Raises:
            InvalidInput: the memory is unknown, did not exist then, or its text is not known.
            HistoryConflict: its records changed each time that they were read.
            Overloaded, CommitUnknown, StorageError: as `add_history`.
        """
        store = self._require_open()
        submission = earlier_text(memory_id, to, actor_id=actor_id, role=role)
        await store.writer.submit(submission)
        if not submission.is_decided:
            await restore_after_reading(
                submission, store.writer, lambda name: self._reader().history(name)
            )
        return submission.records[0]

    @takes(rollback_request)
    async def rollback(self, asked: RollbackRequest) -> RollbackReport:
        """Return memories to their state at an instant; report what was done to each.

        A memory that existed at the instant gets its text and context back, also if it was deleted
        since. A memory that did not exist is deleted. A memory whose text is not known, as after an
        erasure, is not changed. Records are appended, never changed, at most one for each memory.
        Their cause has the report's `id` under `rollback`.

        Each memory is planned from its latest record, and planned again if others change it before
        the plan is written. The call may be interrupted at any point; the next call continues.
        Changes that begin after the call may be missed.

        Args:
            to: an aware datetime; see `memory_at` for the record in force at an instant.
            user_id, agent_id, run_id, app_id: all memories of this owner.
            memory_ids: these memories, instead of an owner's.
            dry_run: only report the changes.
            actor_id, role: the actor and role of the new records.
            on_progress: called from time to time with the memories done and the total.

        Raises:
            InvalidInput: an argument is not valid; nothing was written.
            CursorGone: records were removed while they were read. Call it again.
            Overloaded, CommitUnknown, StorageError: what was done stays done. Call it again.
        """
        return await self._take_back(asked)

    @takes(undo_request)
    async def undo(self, asked: RollbackRequest) -> RollbackReport:
        """Undo the changes of a run, or those with a cause; report what was done to each memory.

        If a memory's latest records are the run's, it gets the text and context from before them,
        or is deleted if it did not exist. A memory that others changed afterwards is not changed,
        and is reported as a conflict. Records are appended, never changed. Their cause has the
        report's `id` under `undo`, and the undone run or cause under `undo_of`.

        Changes that are already undone are skipped, so an interrupted call can be repeated.

        Args:
            run_id: a run: the records whose cause names it, and those without a run in their cause
                in memories of this run.
            cause: keys of the records' cause, with their texts, instead of a run.
            dry_run, actor_id, role, on_progress: as in `rollback`.

        Raises:
            InvalidInput: an argument is not valid; nothing was written.
            CursorGone, Overloaded, CommitUnknown, StorageError: as `rollback`.
        """
        return await self._take_back(asked)

    async def _take_back(self, asked: RollbackRequest) -> RollbackReport:
        store = self._require_open()
        asked = replace(asked, limits=self._limits.rollback)
        with operation():
            if asked.dry_run:
                return await take_back(self, asked)
            self.require_writable()
            async with logged(store.operations, asked.operation()) as tally:
                report = await take_back(self, asked)
                tally.records = records_written(report)
            return report

    # Retention

    async def prune(
        self,
        *,
        older_than: datetime | timedelta,
        keep_last: int = 1,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> PruneReport:
        """Remove records that are older than an instant, but keep the last ones of each memory.

        A record is removed if its `occurred_at` is before the instant and `keep_last` later records
        of its memory are kept. If the latest record is a DELETE, the whole memory is removed when
        all its records are old enough. A record without a known time is kept, and its memory is not
        removed as a whole.

        Pruning runs in small transactions between the writes. It may be interrupted at any point
        and run again. Records added meanwhile are left for the next run. Messages are kept. Pruning
        does not make texts unreadable for good; use `erase` for that.

        Args:
            older_than: an aware datetime, or a timedelta before now.
            keep_last: how many records of a memory to keep. With 1 or more, the last known state of
                a memory that was not deleted is always kept. With 0 a whole memory is removed when
                all its records are old enough.
            dry_run: only report what would be removed.
            on_progress: called after each step with the work done and the total.

        Raises:
            InvalidInput: an argument is not valid; nothing was removed.
            StorageError, CommitUnknown: what was removed so far stays removed. Run it again.
        """
        store = self._require_open()
        asked = new_prune_request(older_than, keep_last, dry_run=dry_run, limits=self._limits.prune)
        check_function("on_progress", on_progress)

        async def step(asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
            return await self._require_open().prune_step(asked, reached)

        if asked.dry_run:
            return await prune_in_steps(step, asked, on_progress)
        async with logged(store.operations, asked.operation()):
            return await prune_in_steps(step, asked, on_progress)

    async def erase(
        self,
        *,
        memory_ids: Iterable[str] = (),
        record_ids: Iterable[str] = (),
        actor_id: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        session_scopes: Iterable[str] = (),
        reason: str,
        dry_run: bool = False,
        vacuum: Vacuuming = True,
    ) -> ErasureReport:
        """Make texts unreadable for good; keep the event and the time of each change.

        `old_memory` and `new_memory` of all records of the named memories become None. For an
        actor, those of the actor's records become None, and their `actor_id`. If another actor's
        record of the same memory contains exactly a text that the erased actor recorded, that text
        becomes None too. The buffered messages of the named session scopes are removed. The erasure
        itself is recorded: see `erasures`.

        A repeated `add_history` of an erased record raises `IdConflict`: the text stays erased. A
        call that began before the erasure and brings a text of a named memory, or messages of a
        named session scope, later raises `Erased`. Calls that repeat texts of the history, such as
        `restore`, read them again when they write.

        To forget an owner removes the texts, contexts and causes of all records of the owner's
        memories, deleted ones too; the buffered messages of each session scope that names the owner
        as mem0 does (`user_id=ann`); and the owner's id in these records. A change that began
        before the erasure and comes after it raises `Erased`. So does any text for a memory that
        was erased with its owner. Erase the owner again only for changes that begin later, or if
        this call was interrupted.

        Args:
            memory_ids, record_ids, actor_id: what to erase; give one of these. The text that a
                named record recorded is also removed from other records of its memory.
            user_id, agent_id, run_id, app_id: one owner to forget, instead of those.
            session_scopes: also erase the buffered messages of these scopes.
            reason: kept with the erasure. Do not name a person in it.
            dry_run: only count what would be erased.
            vacuum: also rewrite a SQLite file without its free space, which may contain texts of
                earlier changes; writers wait meanwhile. On PostgreSQL: VACUUM the tables while
                writes continue, for as long as the server takes. If the call is cancelled, the
                VACUUM ends too; behind a pooler it continues, and a warning is logged. "full":
                VACUUM FULL, which rewrites the tables and locks them for reads and writes; the
                report names a table that others keep locked. Without it the bytes stay in the
                tables' files until other rows are written there.

        Raises:
            InvalidInput: an argument is not valid; nothing was erased.
            StorageError, CommitUnknown: what was erased so far stays erased. Run it again; the
                interrupted erasure stays listed as unfinished.
        """
        store = self._require_open()
        asked = new_erase_request(
            memory_ids,
            actor_id,
            session_scopes,
            reason,
            dry_run=dry_run,
            limits=self._limits.erase,
            owner=check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id),
            record_ids=record_ids,
        )
        check_vacuuming(vacuum)
        return await erase_in_steps(
            store.eraser, store.operations, asked, store.name_reader, vacuum=vacuum
        )

    async def check(self) -> CheckReport:
        """Read the whole history and report its problems. No record is changed.

        For each memory the check compares every record with the one before: text, event and order.
        Chains that other writers have broken, such as plain mem0, are notes, not problems, because
        records are never changed. Erased texts and pruned records break nothing. Problems are what
        must be repaired: ids, and an index that does not match the records.

        If the index of a SQLite file is outdated, as after a VACUUM by another program, it is
        rebuilt first, unless the file is open with `migrate=False`.

        Writers continue. The check uses bounded memory, and takes about as long as copying the
        history. `check_history` checks a file that can't be opened, and rebuilds its index.

        Raises:
            CursorGone: records were removed while they were read. Call it again.
            StorageError: the store can't be read.
        """
        store = self._require_open()
        return await check_store(store, self._backend.where, self._limits.check)

    async def erasures(self) -> list[Erasure]:
        """Return the erasures in this store, oldest first.

        A reset keeps them.

        Raises:
            StorageError: the store can't be read.
        """
        return erasures_of(await self._require_open().operations.read(kind=ERASE))

    async def operations(
        self, *, before: str | None = None, limit: int | None = None
    ) -> list[StoreOperation]:
        """Return the operations on this store other than recording, oldest first.

        The log has each reset, pruning, erasure, restore, rollback, undo, copy into the store,
        adoption and migration: the actor, times, arguments, number of records, and outcome. Reads
        and dry runs are not logged. A reset keeps the log.

        Args:
            before: the id of an operation; return those that began before it.
            limit: the most operations to return, the last ones; None for all.

        Raises:
            InvalidInput: `before` is not the id of an operation of this store.
            StorageError: the store can't be read.
        """
        if limit is not None:
            check_count("limit", limit, least=1)
        log = self._require_open().operations
        before = None if before is None else check_text("before", before)
        return await last_operations(log, before, limit)
