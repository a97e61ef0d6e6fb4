"""The history of a synchronous manager: opened on its loop, closed during a reset."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._opening import is_server, open_history
from async_history._sqlite.errors import connect, typed_errors, wait_for_lock
from async_history._sqlite.manager import LOCK_TIMEOUT_S, SQLiteHistoryManager
from async_history._sqlite.worker_thread import run_in_thread
from async_history.errors import HistoryClosed

T = TypeVar("T")

_DROP_TABLES: Final = """
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS history;
DROP TABLE IF EXISTS messages;
COMMIT;
"""


class LoopStore:
    """The manager on its own loop: opened on first use, and closed during a reset."""

    def __init__(
        self, url: str | os.PathLike[str], path: Path | None, options: HistoryOptions
    ) -> None:
        self._url = path or url
        self._path = path
        self._options = options
        self.lock_timeout_s = options.get("lock_timeout_s", LOCK_TIMEOUT_S)
        self._is_server = is_server(url)
        self.is_sqlite = False
        self._manager: HistoryManager | None = None
        self._closed = False
        self._turn = asyncio.Lock()  # held during opening and reset
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        async with self._turn:
            await self._ensure_open()

    async def call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        async with self._turn:
            manager = await self._ensure_open()
            self._running += 1
            self._idle.clear()
        try:
            return await function(manager)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _ensure_open(self) -> HistoryManager:
        if self._closed:
            raise HistoryClosed("the history was closed before this call began")
        if self._manager is None:
            self._manager = open_history(self._url, **self._options)
            self.is_sqlite = isinstance(self._manager, SQLiteHistoryManager)
            try:
                await self._manager
            except BaseException:
                self._manager = None
                raise
        return self._manager

    async def reset(self) -> None:
        """Empty a server's schema, which others use too; drop the tables of a file or of memory."""
        if self._is_server:
            await self.call(lambda manager: manager.reset())
            return
        async with self._turn:
            await self._idle.wait()
            if self._closed:
                raise HistoryClosed("the history was closed before this call began")
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.aclose()
            if self._path is not None:
                await run_in_thread(partial(_drop_tables, self._path, self.lock_timeout_s))

    async def copy_memory(self, target: sqlite3.Connection) -> None:
        """Copy a database in memory into another."""
        async with self._turn:
            if isinstance(self._manager, SQLiteHistoryManager):
                await self._manager.copy_into(target)

    async def aclose(self) -> None:
        self._closed = True
        if self._manager is not None:
            await self._manager.aclose()
        # Running calls, and tasks that the manager's close timeout left running: stopping the loop
        # would cancel them.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def _drop_tables(path: Path, lock_timeout_s: float) -> None:
    """Drop mem0's two tables, as its own reset does."""
    with typed_errors(str(path)), closing(connect(path, "rw")) as connection:
        wait_for_lock(lambda: connection.executescript(_DROP_TABLES), lock_timeout_s)
