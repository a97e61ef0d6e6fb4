"""The connections to one history in SQLite: one that writes, a few that read.

Lives here: which connection does what, waiting where others hold the lock, opening anew where they
changed the file. Not here: how a connection is opened (_sqlite_open), and what is done through it.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from anyio import to_thread

from async_history._sqlite import is_commit_unknown, is_locked, is_other_schema, storage_error
from async_history.backends._sqlite_commit import IndexBehind, fetched
from async_history.backends._sqlite_open import (
    LENGTHEN_LOG,
    connected,
    needs_changes,
    open_as_it_is,
    open_reading,
    open_writing,
    prepare_file,
    warn_of_others,
)
from async_history.backends._sqlite_thread import ThreadConnection
from async_history.errors import HistoryClosed, StorageError, StorageLocked
from async_history.options import Durability
from async_history.writer import OutcomeUnknown

T = TypeVar("T")

READERS: Final = 2
"""Connections that read: one long answer does not keep the next short one waiting."""
_ASK_AGAIN_S: Final = 0.01
"""Pause before a lock is asked for again; SQLite itself has waited for it already."""
TAKE_UPS: Final = 20
"""How often one call may find other tables than it knows before that is taken for an error: with 5,
resets that followed each other at once made one call in some hundreds fail."""


class Connections:
    """The connections to a file, or to a database in memory, which has one for all.

    Args:
        path: the file, or None for memory.
        on_begun: called on the writing connection's thread when it begins to add a batch.
        lock_timeout_s: how long to wait while another process holds the file's lock.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        durability: Durability,
        on_begun: Callable[[], None],
        lock_timeout_s: float,
    ) -> None:
        self.path = path
        self.where = "the history in memory" if path is None else str(path)
        self.lock_timeout_s = lock_timeout_s
        self._open_writing = partial(open_writing, path, durability, on_begun)
        self._writing: ThreadConnection | None = None
        self._with_long_log: ThreadConnection | None = None
        self._reading: dict[ThreadConnection, int] = {}
        self._is_abandoned = False
        # In memory there is one connection, and no reader may see its open transaction.
        self._turn: AbstractAsyncContextManager[Any] = (
            asyncio.Lock() if path is None else contextlib.nullcontext()
        )

    # Opening

    async def open(self, *, create: bool) -> None:
        """Open them all, the file brought up to date before."""
        if self.path is None:
            self._writing = await connected(self._open_writing)
            self._reading = {self._writing: 0}
        else:
            await to_thread.run_sync(warn_of_others, self.path)
            self._writing = await self._prepared(self.path, create=create)
            await self._open_readers(partial(open_reading, self.path))

    async def open_unchanged(self, *, create: bool) -> bool:
        """Open those that read, the file left as it is, if it had to be changed to be written."""
        if self.path is None:
            return False
        look = partial(needs_changes, self.path, create=create, lock_timeout_s=self.lock_timeout_s)
        if not await to_thread.run_sync(look, abandon_on_cancel=True):
            return False
        await self._open_readers(partial(open_as_it_is, self.path, self.lock_timeout_s))
        return True

    async def _prepared(self, path: Path, *, create: bool) -> ThreadConnection:
        """Bring the file up to date and return a connection that writes."""
        prepare = partial(prepare_file, path, create=create, lock_timeout_s=self.lock_timeout_s)
        await to_thread.run_sync(prepare, abandon_on_cancel=True)
        return await connected(self._open_writing)

    async def _open_readers(self, open_: Callable[[], sqlite3.Connection]) -> None:
        for _ in range(READERS):
            self._reading[await connected(open_)] = 0

    # Writing

    async def write(self, work: Callable[[ThreadConnection], Awaitable[T]]) -> T:
        """Do work that writes, waiting while others hold the lock and taking up what they did.

        Raises:
            OutcomeUnknown: the storage failed in a way that may have left the transaction behind.
            StorageError: nothing was written.
        """
        deadline = monotonic() + self.lock_timeout_s
        take_ups = 0
        while True:
            try:
                async with self._turn:
                    return await work(await self._writing_connection())
            except IndexBehind as error:
                await self._let_go_of_writing()
                reason: Exception = error
            except sqlite3.Error as error:
                if is_commit_unknown(error):
                    raise OutcomeUnknown(str(storage_error(error, self.where))) from error
                if self.path is not None and is_other_schema(error) and take_ups < TAKE_UPS:
                    take_ups += 1
                    await self._let_go_of_writing()
                elif not is_locked(error):
                    raise storage_error(error, self.where) from error
                reason = error
            if monotonic() > deadline:
                raise _last_word(reason, self.where) from reason
            await asyncio.sleep(_ASK_AGAIN_S)

    async def lengthen_log(self, connection: ThreadConnection) -> None:
        """Let the log of the connection that writes grow longer from now on."""
        if self._with_long_log is not connection:
            await connection.execute(LENGTHEN_LOG)
            self._with_long_log = connection

    async def take_up(self) -> None:
        """Open the connection that writes anew, which takes up whatever is there now."""
        await self._let_go_of_writing()

        async def nothing_more(connection: ThreadConnection) -> None: ...

        await self.write(nothing_more)

    async def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole database into another, which nobody else uses meanwhile."""
        async with self._turn:
            await (await self._writing_connection()).backup(target)

    async def _writing_connection(self) -> ThreadConnection:
        """Return the connection that writes, opened anew where others' changes made us let go."""
        if self._writing is None:
            if self.path is None or self._is_abandoned:
                raise HistoryClosed("the manager was closed before this was written")
            self._writing = await self._prepared(self.path, create=False)
        return self._writing

    async def _let_go_of_writing(self) -> None:
        if self._writing is not None:
            connection, self._writing = self._writing, None
            await connection.close()

    # Reading

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one SELECT on the least busy connection that reads.

        Raises:
            sqlite3.Error: what it is, and where, is for the caller to say.
        """
        deadline = monotonic() + self.lock_timeout_s
        while True:
            async with self._turn:
                if not self._reading:
                    raise HistoryClosed("the manager was closed before this was read")
                connection = min(self._reading, key=self._reading.__getitem__)
                self._reading[connection] += 1
                try:
                    return await connection.run(partial(fetched, sql=sql, parameters=parameters))
                except sqlite3.Error as error:
                    if not is_locked(error) or monotonic() > deadline:
                        raise
                finally:
                    if connection in self._reading:
                        self._reading[connection] -= 1
            await asyncio.sleep(_ASK_AGAIN_S)

    # Closing

    async def close(self) -> None:
        """Close them, the one that writes last: it copies the log into the file."""
        while self._reading:
            connection, _ = self._reading.popitem()
            if connection is not self._writing:
                await connection.close()
        await self._let_go_of_writing()

    def abandon(self) -> None:
        """Let go of them all, whatever they are doing, and open none again."""
        self._is_abandoned = True
        connections = (*self._reading, self._writing)
        self._reading, self._writing = {}, None
        for connection in connections:
            if connection is not None:
                connection.stop()


def _last_word(reason: Exception, where: str) -> StorageError:
    if isinstance(reason, sqlite3.Error):
        return storage_error(reason, where)
    return StorageLocked(f"others keep changing {where}; not written, try again")
