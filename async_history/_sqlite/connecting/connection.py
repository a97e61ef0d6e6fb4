"""A SQLite connection with its own thread, which runs a whole transaction in one call.

If the event loop ran a transaction statement by statement, the transaction would stay open, and the
file locked for other processes, whenever other code blocks the loop. So a transaction runs on the
connection's thread from begin to commit.
"""

import asyncio
import contextlib
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiosqlite

from async_history._core.concurrency.threads import error_for_future, start
from async_history._sqlite.connecting.worker_thread import INTERRUPT_PAUSE_S
from async_history.errors import HistoryClosed

T = TypeVar("T")

_CLOSED: Final = "the manager was closed before this was read"


class ThreadConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs functions.

    A cancelled read is interrupted if the thread is running it, and skipped if it is still queued.
    It counts as pending until the thread is done with it, so the next read goes to another
    connection.

    Attributes:
        check: called on the thread before each function that writes. If it raises, the function is
            not called and the error is raised to the caller.
        waits_for_lock: whether SQLite waits in each statement while another holds the file's lock.
            It is set by `lock_waits`.
    """

    check: Callable[[], None] | None = None
    waits_for_lock = True

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._lock = threading.Lock()
        self._current_read: _Read | None = None
        self._pending_reads = 0
        self._refuses_reads = False

    async def opened(self) -> Self:
        """Start the thread and connect on it.

        Raises:
            StorageError: no thread could be started.
        """
        start(self._thread)
        await self._connect()
        return self

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Queue a function for the thread. The driver logs the function, but not its arguments."""
        if self._connection is None or not self._running:
            raise ValueError("the connection is closed")
        loop = asyncio.get_running_loop()
        work = _Work(partial(fn, *args, **kwargs), loop.create_future())
        self._tx.put_nowait((None, work))
        return await work.result

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function on the connection's thread and return its result.

        If the caller is cancelled, the function still runs to its end. It must not return a
        cursor: another thread would free it, and in a forked child no thread would.
        """
        if self.check is not None:
            work = partial(_check_and_run, self.check, work)
        result: T = await self._execute(work, self._conn)
        return result

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function that only reads, without `check`, and return its result.

        If the caller is cancelled, this raises at once, and the read is interrupted.

        Raises:
            HistoryClosed: the connection refuses reads, or began to during this one.
        """
        queued = _Read()
        with self._lock:
            self._pending_reads += 1
        try:
            run_read = partial(self._run_read, queued, read)
            result: T = await self._execute(run_read, self._conn)
            return result
        except asyncio.CancelledError:
            queued.is_cancelled = True
            self._interrupt(queued)
            raise

    def _run_read(
        self,
        queued: "_Read",
        read: Callable[[sqlite3.Connection], T],
        connection: sqlite3.Connection,
    ) -> T:
        queued.connection = connection
        with self._lock:
            self._current_read = queued
        try:
            if queued.is_cancelled or self._refuses_reads:
                raise HistoryClosed(_CLOSED)
            return read(connection)
        except sqlite3.OperationalError as error:
            if self._refuses_reads:
                raise HistoryClosed(_CLOSED) from error
            raise
        finally:
            with self._lock:
                self._current_read = None
                self._pending_reads -= 1

    def _interrupt(self, queued: "_Read | None") -> None:
        """Interrupt a read, repeatedly, as long as the thread is running it."""
        with self._lock:
            # It can't hit another statement: SQLite clears it when the next one begins.
            if queued is None or queued is not self._current_read or queued.connection is None:
                return
            queued.connection.interrupt()
        with contextlib.suppress(RuntimeError):  # a thread without an event loop
            asyncio.get_running_loop().call_later(INTERRUPT_PAUSE_S, self._interrupt, queued)

    @property
    def pending_reads(self) -> int:
        """Reads that the thread is not done with, including cancelled ones."""
        return self._pending_reads

    def refuse_reads(self) -> None:
        """Interrupt the current read and refuse all later ones. Any thread may call this."""
        self._refuses_reads = True
        self._interrupt(self._current_read)

    def stop(self) -> "asyncio.Future[None] | None":
        """Stop the thread after its queued writes; reads are refused."""
        self.refuse_reads()
        stopped: asyncio.Future[None] | None = super().stop()
        return stopped

    def pause(self, wait: Callable[[], None]) -> None:
        """Run a function that waits on the thread, after all work queued before it."""
        self._tx.put_nowait((None, wait))

    @property
    def has_thread(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()


class _Work:
    """A call for the thread, and its result on the event loop.

    Its `repr` shows no arguments: they contain recorded texts. The driver would give the result to
    the loop once. If an exception, such as one that a signal handler raises, came between, the
    caller would wait for ever.
    """

    def __init__(self, call: Callable[[], Any], result: "asyncio.Future[Any]") -> None:
        self.result = result
        self._call = call
        self._found: Any = None
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._found = self._call()
        except BaseException as error:
            _free_cursors(error)
            self._error = error_for_future(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.result.get_loop().call_soon_threadsafe(self._give)

    def _give(self) -> None:
        try:
            if self.result.done():
                return
            if self._error is None:
                self.result.set_result(self._found)
            else:
                self.result.set_exception(self._error)
        except BaseException:
            self.result.get_loop().call_soon(self._give)
            raise


def _free_cursors(error: BaseException) -> None:
    """Let go of what the frames of an error hold, on the thread that ran them.

    A tool that wraps the driver's functions has their cursors in its frames. While the error lives,
    such a cursor keeps a read transaction open, and later reads would not see what was committed.
    """
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__context__


class _Read:
    """One read: whether its caller was cancelled, and the connection that runs it."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.connection: sqlite3.Connection | None = None


def _check_and_run(
    check: Callable[[], None],
    work: Callable[[sqlite3.Connection], T],
    connection: sqlite3.Connection,
) -> T:
    check()
    return work(connection)


def fetch_rows(
    connection: sqlite3.Connection, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()
) -> list[Any]:
    """Run one statement and return all its rows. To be called within `run` or `read`."""
    return connection.execute(sql, parameters).fetchall()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes, rolled back if its body raises. To be used within `run`."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()  # does nothing if SQLite has already rolled it back
        raise
