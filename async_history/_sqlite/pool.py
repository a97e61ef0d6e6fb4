"""The connections to one history in SQLite: one that writes, a few that read."""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._core.cancellation import to_the_end
from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._core.writer import OutcomeUnknown
from async_history._sqlite.connection import ThreadConnection, fetched
from async_history._sqlite.errors import (
    LOG_RESET_WARNING,
    has_log_reset_fault,
    is_commit_unknown,
    is_locked,
    is_other_schema,
    storage_error,
    typed_errors,
)
from async_history._sqlite.file_watch import OpenFile, has_log_open, is_used_elsewhere
from async_history._sqlite.index import IndexBehind
from async_history._sqlite.journal import place_of
from async_history._sqlite.opening import (
    LENGTHEN_LOG,
    connected,
    glance,
    is_there,
    look,
    open_reading,
    open_writing,
    prepare_file,
)
from async_history._sqlite.readonly import Look
from async_history._sqlite.worker_thread import run_in_thread
from async_history.errors import HistoryClosed, StorageError, StorageLocked

_log = logging.getLogger("async_history")

T = TypeVar("T")

READERS: Final = 2
"""Connections that read: one long answer does not keep the next short one waiting."""
_ASK_AGAIN_S: Final = 0.01
"""Pause before a lock is asked for again; SQLite itself has waited for it already."""
MAX_REOPENS: Final = 20
"""How often one call may find other tables than it knows before that is taken for an error: with 5,
resets that followed each other at once made one call in some hundreds fail."""


def _say_nothing() -> None: ...


class ConnectionPool:
    """The connections to a file, or to a database in memory.

    Beside a write-ahead log readers have connections of their own. In memory, where no reader may
    see an open transaction, and with a rollback journal, where readers and the writer wait for each
    other anyway, one connection does everything, in the order of asking.

    Args:
        path: the file, or None for memory.
        journal: the journal that the file is to have.
        lock_timeout_s: how long to wait while another process holds the file's lock.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        journal: Journal,
        durability: Durability,
        lock_timeout_s: float,
    ) -> None:
        self.path = path
        self.where = "the history in memory" if path is None else str(path)
        self.place_warnings: tuple[StoreWarning, ...] = ()
        self.lock_timeout_s = lock_timeout_s
        self._journal: Journal | None = journal
        self._durability = durability
        self._has_begun: Callable[[], None] = _say_nothing
        self._writing: ThreadConnection | None = None
        self._with_long_log: ThreadConnection | None = None
        self._reading: list[ThreadConnection] = []
        self._looks: dict[ThreadConnection, Look] = {}
        self._is_closed = False
        self._file: OpenFile | None = None
        self._is_one = path is None
        self.has_log = path is not None
        self.turn: AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        """Held by whoever reads or writes, where these wait for each other."""

    # Opening

    async def open(self, *, create: bool) -> None:
        """Open them all, the file brought up to date before."""
        await self._find()
        await self._open(create=create)

    async def open_as_it_is(self, *, create: bool) -> bool:
        """Open those that read, and leave the file as it is until something is written.

        Returns whether it can be written without being adopted or indexed. Where there is no file
        yet it is made, if `create` says so.
        """
        await self._find()
        if self.path is None or not await run_in_thread(partial(is_there, self.path, create)):
            await self._open(create=create)
            return True
        ask = partial(glance, self.path, lock_timeout_s=self.lock_timeout_s)
        told = await run_in_thread(ask)
        self._journal = None
        self.has_log = told.has_log
        if not self.has_log:
            self.turn = asyncio.Lock()
        for _ in range(READERS):
            self._reading.append(await self._look(self.path))
        return told.is_prepared

    async def _find(self) -> None:
        """Find the file through its links, and what its place asks for."""
        if self.path is None or self._journal is None:
            return
        with typed_errors(self.where):
            place = await run_in_thread(partial(place_of, self.path, self._journal))
        self.path, self._journal, self.place_warnings = place.file, place.journal, place.warnings
        for warning in self.place_warnings:
            _log.warning(warning)

    async def _open(self, *, create: bool) -> None:
        self.has_log = self.path is not None and self._journal != "delete"
        self._is_one = not self.has_log
        if self._is_one:
            self.turn = asyncio.Lock()
        if self.path is None:
            self._writing = await connected(self._open_writing())
            return
        with typed_errors(self.where):
            is_open_here = await run_in_thread(partial(has_log_open, self.path))
        self._writing = await self._prepared(self.path, create=create)
        if self.has_log and has_log_reset_fault(sqlite3.sqlite_version_info):
            where = "in this process" if is_open_here else "by another process"
            if is_open_here or await run_in_thread(partial(is_used_elsewhere, self.path)):
                _log.warning("%s is in use elsewhere, %s. %s", self.path, where, LOG_RESET_WARNING)
        if not self._is_one:
            for _ in range(READERS):
                self._reading.append(await self._connected(partial(open_reading, self.path)))

    async def _prepared(self, path: Path, *, create: bool) -> ThreadConnection:
        """Bring the file up to date and return a connection that writes."""
        prepare = partial(
            prepare_file, path, self._journal, create=create, lock_timeout_s=self.lock_timeout_s
        )
        await run_in_thread(prepare)
        connection = await self._connected(self._open_writing())
        try:
            self._file = await connection.run(lambda _: OpenFile(path))
        except BaseException:
            await to_the_end(connection.close())
            raise
        return connection

    def _open_writing(self) -> Callable[[], sqlite3.Connection]:
        return partial(open_writing, self.path, self._durability, lambda: self._has_begun())

    async def _look(self, path: Path) -> ThreadConnection:
        """Open a connection that reads and leaves no trace."""
        looks: list[Look] = []

        def open_() -> sqlite3.Connection:
            looks.append(look(path))
            return looks[-1].connection

        connection = await self._connected(open_)
        self._looks[connection] = looks[-1]
        return connection

    async def _connected(self, open_: Callable[[], sqlite3.Connection]) -> ThreadConnection:
        """Open a connection, waiting while others hold the lock."""
        deadline = monotonic() + self.lock_timeout_s
        while True:
            try:
                return await connected(open_)
            except StorageLocked:
                if monotonic() > deadline:
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    # Writing

    async def write(
        self,
        work: Callable[[ThreadConnection], Awaitable[T]],
        has_begun: Callable[[], None] = _say_nothing,
    ) -> T:
        """Do work that writes, waiting while others hold the lock and taking up what they did.

        Args:
            has_begun: called on the connection's thread when it begins to add a batch.

        Raises:
            OutcomeUnknown: the storage failed in a way that may have left the transaction behind.
            StorageError: nothing was written.
        """
        deadline = monotonic() + self.lock_timeout_s
        self._has_begun = has_begun
        reopened = 0
        while True:
            try:
                async with self.turn:
                    return await self._checked(work)
            except IndexBehind as error:
                await self._let_go_of_writing()
                reason: Exception = error
            except StorageError as error:  # of opening a connection that writes
                opening = error.__cause__
                if not isinstance(opening, sqlite3.Error) or not is_other_schema(opening):
                    raise
                if reopened == MAX_REOPENS:
                    raise
                reopened += 1
                await self._let_go_of_writing()
                reason = error
            except sqlite3.Error as error:
                if is_commit_unknown(error):
                    raise OutcomeUnknown(str(storage_error(error, self.where))) from error
                if self.path is not None and is_other_schema(error) and reopened < MAX_REOPENS:
                    reopened += 1
                    await self._let_go_of_writing()
                elif not is_locked(error):
                    raise storage_error(error, self.where) from error
                reason = error
            if monotonic() > deadline:
                raise _final_error(reason, self.where) from reason
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _checked(self, work: Callable[[ThreadConnection], Awaitable[T]]) -> T:
        """Do work that writes, if it would be found under the file's name."""
        connection = await self._writing_connection()
        if self._file is not None:
            connection.check = self._file.require_there
        try:
            return await work(connection)
        finally:
            connection.check = None

    def require_file(self) -> None:
        """Check that the file is where a write would look for it. Takes a `stat` or two.

        Raises:
            StorageMissing: the file or its log was removed, or the file that is open replaced.
            StorageError: it can't be looked at.
        """
        if self.path is None:
            return
        with typed_errors(self.where):
            if self._writing is None:
                os.stat(self.path)
            elif self._file is not None:
                self._file.require_there()

    async def lengthen_log(self, connection: ThreadConnection) -> None:
        """Let the log of the connection that writes grow longer from now on."""
        if self._with_long_log is not connection:
            await connection.run(partial(fetched, sql=LENGTHEN_LOG))
            self._with_long_log = connection

    async def reopen_writer(self) -> None:
        """Open the connection that writes anew, which takes up whatever is there now."""
        await self._let_go_of_writing()

        async def nothing_more(connection: ThreadConnection) -> None: ...

        await self.write(nothing_more)

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another, which nobody else uses meanwhile."""
        async with self.turn:
            await (await self._writing_connection()).backup(target)

    async def _writing_connection(self) -> ThreadConnection:
        """Return the connection that writes, opened anew where others' changes made us let go."""
        if self._writing is None:
            if self.path is None or self._is_closed:
                raise HistoryClosed("the manager was closed before this was written")
            self._writing = await self._prepared(self.path, create=False)
        return self._writing

    async def _let_go_of_writing(self) -> None:
        if self._writing is not None:
            connection, self._writing = self._writing, None
            await to_the_end(connection.close())

    # Reading

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the least busy connection that reads.

        Raises:
            sqlite3.Error: what it is, and where, is for the caller to say.
        """
        deadline = monotonic() + self.lock_timeout_s
        while True:
            async with self.turn:
                connection = await self._reading_connection()
                if not await self._is_fit(connection):
                    continue
                try:
                    fetch = partial(fetched, sql=sql, parameters=parameters)
                    rows = await connection.ask(fetch)
                    if await self._is_sound(connection):
                        return rows
                except sqlite3.Error as error:
                    is_final = not is_locked(error) or monotonic() > deadline
                    if await self._is_sound(connection) and is_final:
                        raise
            if monotonic() > deadline:
                raise StorageLocked(f"{self.where} was changed whenever it was read; try again")
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _reading_connection(self) -> ThreadConnection:
        """Return the least busy connection that reads."""
        if self._is_one and not self._is_closed:
            return await self._writing_connection()
        if not self._reading:
            raise HistoryClosed("the manager was closed before this was read")
        return min(self._reading, key=lambda connection: connection.unanswered)

    async def _is_fit(self, connection: ThreadConnection) -> bool:
        """Return whether reading through a connection leaves no trace; if not, open another."""
        looking = self._looks.get(connection)
        if looking is None or not looking.has_rollback_journal:
            return True
        if await run_in_thread(looking.is_fit):
            return True
        await self._replace(connection)
        return False

    async def _is_sound(self, connection: ThreadConnection) -> bool:
        """Return whether what a connection read is what the file says; if not, open another."""
        looking = self._looks.get(connection)
        if looking is None or not looking.is_without_lock:
            return True
        if await run_in_thread(looking.is_sound):
            return True
        await self._replace(connection)
        return False

    async def _replace(self, connection: ThreadConnection) -> None:
        """Look at the file through another connection than this one."""
        if connection in self._reading and self.path is not None:
            another = await self._look(self.path)
            # Meanwhile others may have done the same, or the manager may have been closed.
            if connection in self._reading:
                self._reading.remove(connection)
                self._reading.append(another)
            else:
                connection = another
            del self._looks[connection]
            await to_the_end(connection.close())

    def warnings(self) -> list[StoreWarning]:
        """Return what to know about where the file is, and whether it still is. It may block."""
        gone = None if self._file is None else self._file.warning()
        return [*self.place_warnings, *([gone] if gone is not None else [])]

    # Closing

    async def close(self) -> None:
        """Close them, the one that writes last: it copies the log into the file."""
        while self._reading:
            connection = self._reading.pop()
            connection.refuse_reads()
            await to_the_end(connection.close())
        if self._writing is not None:
            self._writing.refuse_reads()
        await self._let_go_of_writing()
        self._is_closed = True

    def abandon(self) -> None:
        """Let go of them all, whatever they are doing, and open none again."""
        self._is_closed = True
        connections = (*self._reading, self._writing)
        self._reading, self._writing = [], None
        for connection in connections:
            if connection is not None:
                connection.stop()


def _final_error(reason: Exception, where: str) -> StorageError:
    if isinstance(reason, sqlite3.Error):
        return storage_error(reason, where)
    return StorageLocked(f"others keep changing {where}; not written, try again")
