"""The connections that read one SQLite file, some of which must not change it."""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from async_history._core.concurrency.cancellation import to_the_end
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.connecting.readonly import ReadOnlyFile
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.opening import connect_with_retry, open_read_only, open_reading
from async_history.errors import HistoryClosed

READERS: Final = 2
"""Connections that read. With two, one long read does not block the next short one."""


class ReadConnections:
    """`READERS` connections that read a file; none until they are opened.

    Args:
        lock_timeout_s: seconds to wait while another connection holds the file's lock.
    """

    def __init__(self, lock_timeout_s: float) -> None:
        self._lock_timeout_s = lock_timeout_s
        self.connections: list[ThreadConnection] = []
        self._read_only_files: dict[ThreadConnection, ReadOnlyFile] = {}

    async def open(self, path: Path) -> None:
        """Open connections to a file that this process also writes."""
        for _ in range(READERS):
            self.connections.append(await self._connect(partial(open_reading, path)))

    async def open_read_only(self, path: Path) -> None:
        """Open connections that neither change the file nor add files next to it."""
        for _ in range(READERS):
            self.connections.append(await self._connect_read_only(path))

    async def _connect(self, open_: Callable[[], sqlite3.Connection]) -> ThreadConnection:
        return await connect_with_retry(open_, self._lock_timeout_s)

    async def _connect_read_only(self, path: Path) -> ThreadConnection:
        files: list[ReadOnlyFile] = []

        def open_() -> sqlite3.Connection:
            files.append(open_read_only(path))
            return files[-1].connection

        connection = await self._connect(open_)
        self._read_only_files[connection] = files[-1]
        return connection

    def least_busy(self) -> ThreadConnection:
        """Return the connection with the fewest pending reads.

        Raises:
            HistoryClosed: the connections are closed.
        """
        if not self.connections:
            raise HistoryClosed("the manager was closed before this was read")
        return min(self.connections, key=lambda connection: connection.pending_reads)

    async def leaves_no_files(self, connection: ThreadConnection) -> bool:
        """Return whether a read would add no files next to this one; if not, replace the
        connection."""
        file = self._read_only_files.get(connection)
        if file is None or not file.has_rollback_journal:
            return True
        if await run_in_thread(file.leaves_no_files):
            return True
        await self._replace(connection, file.path)
        return False

    async def is_unchanged(self, connection: ThreadConnection) -> bool:
        """Return whether the file did not change during a read; if not, replace the connection."""
        file = self._read_only_files.get(connection)
        if file is None or not file.takes_no_lock:
            return True
        if await run_in_thread(file.is_unchanged):
            return True
        await self._replace(connection, file.path)
        return False

    async def _replace(self, connection: ThreadConnection, path: Path) -> None:
        """Replace a connection with a new one."""
        if connection not in self.connections:
            return
        another = await self._connect_read_only(path)
        # Another task may have replaced it meanwhile, or they may have been closed.
        if connection in self.connections:
            self.connections.remove(connection)
            self.connections.append(another)
        else:
            connection = another
        del self._read_only_files[connection]
        await to_the_end(connection.close())

    async def close(self) -> None:
        """Close all connections."""
        while self.connections:
            connection = self.connections.pop()
            connection.refuse_reads()
            await to_the_end(connection.close())

    def stop(self) -> None:
        """Stop all connections without waiting for their work."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.stop()
