"""The SQLite backend: each call of the contract, handed to the part that knows."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from async_history._core.backend import HistoryStats, Measured, StoreWarning
from async_history._core.cancellation import to_the_end
from async_history._core.coalesce import CoalescedReads
from async_history._core.erasure_log import Erasure, ErasureLog
from async_history._core.follow import FollowRead
from async_history._core.lifecycle import CLOSE_TIMEOUT_S
from async_history._core.manager import HistoryManager
from async_history._core.options import DURABILITIES, JOURNALS, Durability, Journal
from async_history._core.prune import PruneCursor, PruneRequest, PruneStep
from async_history._core.query import Cursor, Filter, PageRead, RowsRead
from async_history._core.queue import QUEUE_BYTES, QUEUE_RECORDS
from async_history._core.recent import RecentCommits
from async_history._core.records import HistoryRecord, Message
from async_history._core.submissions import Submission
from async_history._core.timeline import states_at
from async_history._core.validation import (
    check_choice,
    check_file_name,
    check_flag,
    check_function,
    check_queue,
    check_seconds,
    file_path,
)
from async_history._core.writer import GroupCommitWriter
from async_history._sqlite.backup import back_up, back_up_file, run
from async_history._sqlite.commit import WRITE_PROGRAM, BatchCommitter
from async_history._sqlite.connection import ThreadConnection
from async_history._sqlite.encoding import check_parameters, check_submission
from async_history._sqlite.erase import ERASURES, FileErasure
from async_history._sqlite.errors import (
    LOG_RESET_WARNING,
    absolute,
    connect,
    has_log_reset_fault,
    is_other_schema,
    storage_error,
    typed_errors,
)
from async_history._sqlite.follow import FollowReader, Place, place_from
from async_history._sqlite.index import INDEX_NO_ROWS, THROUGH_INDEX, WITHOUT_INDEX
from async_history._sqlite.opening import LONGEST_LOG_BYTES, long_log_warning
from async_history._sqlite.pool import MAX_REOPENS, READERS, ConnectionPool
from async_history._sqlite.prune import prune
from async_history._sqlite.read import HistoryReader
from async_history._sqlite.readonly import beside
from async_history._sqlite.schema.versions import install_statements
from async_history._sqlite.timeline import FileStates
from async_history._sqlite.worker_thread import run_in_thread
from async_history.errors import HistoryError, MigrationError

T = TypeVar("T")

_MANY: Final = 10
"""Submissions of a batch from which on a longer log is worth its while."""
LOCK_TIMEOUT_S = 30.0
"""How long another process may hold the file's lock, unless told otherwise."""


def _reset_script() -> str:
    return ";\n".join(
        (
            "BEGIN IMMEDIATE",
            "DROP TABLE IF EXISTS history",
            "DROP TABLE IF EXISTS messages",
            *install_statements(),
            INDEX_NO_ROWS,
            WRITE_PROGRAM,
            "COMMIT",
        )
    )


class SQLiteHistoryManager(HistoryManager):
    """A history in one SQLite file, shared by any number of tasks and processes; or in memory.

    Args:
        path: the file, or None for a database in memory that ends with the manager.
        create: make the file and its missing folders (the file for its owner's eyes only), or
            raise `StorageMissing`.
        migrate: adopt and index a file as it is opened. Without it the file is not changed: a
            file that would need it can be read, and refuses to be written.
        journal: "wal", or "delete": a rollback journal, for a file that several machines share, or
            whose file system has no shared memory. Readers and the writer then wait for each
            other. A file that has the other journal is given this one; with `migrate=False` it
            keeps what it has.
        durability: "full": an ack survives the machine's power loss. "normal": it survives the
            process's death; power loss may take the last ones.
        queue_records, queue_bytes, queue_timeout_s: see `GroupCommitWriter`.
        lock_timeout_s: how long to wait while another process holds the file's lock.
        close_timeout_s: how long closing waits for what was accepted.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        create: bool = True,
        migrate: bool = True,
        journal: Journal = "wal",
        durability: Durability = "full",
        queue_records: int = QUEUE_RECORDS,
        queue_bytes: int = QUEUE_BYTES,
        queue_timeout_s: float | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        super().__init__(close_timeout_s=close_timeout_s)
        check_choice("durability", durability, DURABILITIES)
        check_choice("journal", journal, JOURNALS)
        check_seconds("lock_timeout_s", lock_timeout_s)
        check_queue(queue_records, queue_bytes, queue_timeout_s)
        self._create = check_flag("create", create)
        self._migrate = check_flag("migrate", migrate)
        self._connections = ConnectionPool(
            None if path is None else absolute(file_path("path", path)),
            journal=journal,
            durability=durability,
            on_begun=self._on_commit_begun,
            lock_timeout_s=lock_timeout_s,
        )
        self._new_writer = partial(
            GroupCommitWriter[Submission],
            self._commit,
            finish=self._release,
            queue_records=queue_records,
            queue_bytes=queue_bytes,
            queue_timeout_s=queue_timeout_s,
            commit_timeout_s=lock_timeout_s,
        )
        self._writer: GroupCommitWriter[Submission] | None = None
        self._recent = RecentCommits(self._commit_signal)
        self._is_utf16 = False

    @property
    def store_name(self) -> tuple[str, ...] | None:
        path = self._connections.path
        return None if path is None else ("file", str(path.absolute()))

    async def _open(self) -> None:
        try:
            is_prepared = True
            if self._migrate:
                await self._connections.open(create=self._create)
            else:
                is_prepared = await self._connections.open_as_it_is(create=self._create)
            if is_prepared:
                self._writer = self._new_writer()
            self._reader = HistoryReader(
                self._fetch, THROUGH_INDEX if is_prepared else WITHOUT_INDEX
            )
            ((encoding,),) = await self._fetch("PRAGMA encoding", {})
            self._is_utf16 = encoding != "UTF-8"
            self._follower = FollowReader(self._fetch, self._reader, self._recent)
            self._histories = CoalescedReads(self._reader.histories, READERS)
        except BaseException:
            await to_the_end(self._close())
            raise

    # Writing

    def _require_writable(self) -> None:
        self._require_writer().require_open()

    def _submit(self, submission: Submission) -> "asyncio.Future[None]":
        writer = self._require_writer()
        if self._is_utf16:
            check_submission(submission)
        return writer.submit(submission)

    async def _submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        async def checked() -> Submission:
            submission = await prepare()
            if self._is_utf16:
                check_submission(submission)
            return submission

        await self._require_writer().submit_when_ready(checked)

    def _require_writer(self) -> GroupCommitWriter[Submission]:
        if self._writer is None:
            raise MigrationError(
                f"{self._connections.where} was opened with migrate=False and needs adoption or "
                "indexing before it can be written; open it with migrate=True"
            )
        return self._writer

    async def _commit(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        async def commit(connection: ThreadConnection) -> Mapping[int, HistoryError]:
            if len(batch) >= _MANY:
                await self._connections.lengthen_log(connection)
            return await BatchCommitter(connection, self._recent).commit(batch)

        refused = await self._connections.write(commit)
        self._commit_signal.notify()
        return refused

    def _on_commit_begun(self) -> None:
        if self._writer is not None:
            self._writer.commit_has_begun()

    def _empty(self) -> "asyncio.Future[None]":
        return self._in_turn(lambda connection: connection.run(_reset))

    async def _prune_step(self, asked: PruneRequest, reached: PruneCursor | None) -> PruneStep:
        return await self._in_turn(
            lambda connection: connection.run(partial(prune, asked, reached))
        )

    def _erase_backend(self) -> FileErasure:
        writer = self._require_writer()
        return FileErasure(
            self._in_turn,
            lambda: writer.run_in_turn(self._connections.reopen_writer),
            self._connections.path,
            self._connections.lock_timeout_s,
        )

    def _in_turn(self, work: Callable[[ThreadConnection], Awaitable[T]]) -> "asyncio.Future[T]":
        """Do work that writes, after all writes called before it and before all after."""

        async def alone() -> T:
            self._recent.forget()
            return await self._connections.write(work)

        return self._require_writer().run_in_turn(alone)

    # Reading

    async def _read_history(self, memory_id: str) -> list[HistoryRecord]:
        return await self._histories.of(memory_id)

    async def _read_page(
        self, wanted: Filter, after: Cursor | None, limit: int, ahead: int
    ) -> PageRead:
        return await self._reader.page(wanted, after, limit, ahead)

    async def _count(self, wanted: Filter) -> int:
        return await self._reader.count(wanted)

    def _follow_place(self, cursor: str | None) -> Place | None:
        return None if cursor is None else place_from(cursor)

    async def _read_behind(
        self, place: Place | None, memory_id: str | None, limit: int
    ) -> FollowRead[Place]:
        return await self._follower.page(place, memory_id, limit)

    async def _read_end(self) -> Place | None:
        return await self._follower.end()

    async def _read_mark(self) -> object:
        return await self._follower.end()

    def _read_states(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        return states_at(FileStates(self._fetch, self._reader), when)

    async def _read_rows(self, after: Cursor | None, limit: int) -> RowsRead:
        return await self._reader.rows(after, limit)

    async def _read_times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        return await self._reader.times_before(ids)

    async def _read_newest(self) -> int | None:
        return await self._reader.newest()

    async def _read_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        return await self._reader.last_messages(session_scope, limit)

    async def _read_erasures(self) -> Sequence[Erasure]:
        return await ErasureLog(ERASURES, lambda sql: self._fetch(sql, {})).read()

    async def _read_scopes(self, after: str, limit: int) -> Sequence[str]:
        return await self._reader.scopes(after, limit)

    async def _fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one SELECT, taking up a file whose tables others have dropped."""
        connections = self._connections
        if self._is_utf16:
            check_parameters(parameters)
        for _ in range(MAX_REOPENS):
            try:
                return await connections.fetch(sql, parameters)
            except sqlite3.Error as error:
                if not is_other_schema(error):
                    raise storage_error(error, connections.where) from error
                if self._writer is None:
                    return []  # an old file has not every table
            await self._writer.run_in_turn(connections.reopen_writer)
        with typed_errors(connections.where):
            return await connections.fetch(sql, parameters)

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another, which nobody else uses meanwhile."""
        await self._connections.copy_into(target)

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Copy the history as it is now into a new file, while writes go on.

        The copy has everything acked before the call, and is one file that opens like any other.
        It appears under its name when it is whole and on disk; until then it is beside it, as
        `<name>.….unfinished`. The file's log grows by what is written meanwhile.

        Args:
            on_progress: told, on the event loop, how many of how many pages are copied.

        Raises:
            InvalidInput: there is a file of that name. It was not touched.
            StorageError: the copy could not be read or written; nothing of it is left.
            asyncio.CancelledError: nothing of the copy is left, unless it was whole already.
        """
        self._require_open()
        target = absolute(Path(check_file_name("path", path)))
        check_function("on_progress", on_progress)
        connections = self._connections
        if connections.path is not None:
            # Where a reader keeps the writer waiting, ours wait here, however long it takes.
            async with connections.turn:
                copy = partial(back_up_file, connections.path, connections.lock_timeout_s, target)
                await run(copy, on_progress)
            return
        with contextlib.closing(connect(None, "rw")) as whole:
            await to_the_end(self.copy_into(whole))
            await run(partial(back_up, whole, target), on_progress)

    async def _measure(self) -> Measured:
        path = self._connections.path
        return Measured() if path is None else await run_in_thread(partial(self._measured, path))

    def _measured(self, path: Path) -> Measured:
        warnings = self._connections.warnings()
        file_bytes, log_bytes = _sizes(path, beside(path, "-wal"))
        if log_bytes > LONGEST_LOG_BYTES:
            warnings.append(long_log_warning(path, log_bytes))
        if self._connections.has_log and has_log_reset_fault(sqlite3.sqlite_version_info):
            warnings.append(StoreWarning("wal-reset-fault", "critical", LOG_RESET_WARNING))
        return Measured(file_bytes, log_bytes, tuple(warnings))

    def _new_stats(self, measured: Measured) -> HistoryStats:
        return HistoryStats(
            store=self._connections.where,
            writer=None if self._writer is None else self._writer.stats(),
            file_bytes=measured.file_bytes,
            wal_bytes=measured.wal_bytes,
            warnings=measured.warnings,
        )

    # Closing

    async def _close(self) -> None:
        if self._writer is None:
            await self._release()
        else:
            await self._writer.aclose(self._close_timeout_s)
            if not self._writer.task.done():
                self._abandon()

    async def _release(self) -> None:
        self._closed = True
        await self._connections.close()

    def _abandon(self) -> None:
        self._connections.abandon()


def _reset(connection: sqlite3.Connection) -> None:
    try:
        connection.executescript(_reset_script())
    except BaseException:
        connection.rollback()
        raise


def _sizes(*paths: Path) -> list[int]:
    """Return the size of each file, 0 where there is none."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            sizes.append(0)
    return sizes
