"""A connection with a thread of its own, which is handed a whole transaction at once.

A transaction that the event loop drives statement by statement stays open while anything else
holds the loop, and the file is locked for every other process as long. So all of it runs on the
connection's thread.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiosqlite

from async_history._core.threads import start
from async_history.errors import HistoryClosed

T = TypeVar("T")

_ASK_AGAIN_S: Final = 0.01
"""Pause between two interruptions of a read: between two statements an interruption is lost."""
_CLOSED: Final = "the manager was closed before this was read"


class ThreadConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs functions.

    A read that nobody waits for any more is interrupted where it is what the thread is doing, and
    left out where it is not yet. Until the thread is done with it, it counts as unanswered: the
    next read goes to another connection.

    Attributes:
        check: called there before each function; what it raises is raised instead.
    """

    check: Callable[[], None] | None = None

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._lock = threading.Lock()
        self._asked: _Asked | None = None
        self._unanswered = 0
        self._refuses_reads = False

    async def opened(self) -> Self:
        """Start the thread and connect on it.

        Raises:
            StorageError: no thread could be started.
        """
        start(self._thread)
        await self._connect()
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function on the connection's thread and return what it returns.

        Work that was begun or queued runs on where the caller is cancelled. It must not return a
        cursor: another thread would free it, and in a forked child nobody would.
        """
        if self.check is not None:
            work = partial(_checked, self.check, work)
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result

    async def ask(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function that only reads, unchecked, as long as somebody waits for it.

        Where the caller is cancelled this raises at once, and the read ends as soon as SQLite lets
        go of it.

        Raises:
            HistoryClosed: reads are refused, since before it was called or since.
        """
        asked = _Asked()
        with self._lock:
            self._unanswered += 1
        try:
            answer = partial(self._answer, asked, read)
            result: T = await self._execute(answer, self._conn)  # type: ignore[no-untyped-call]
            return result
        except asyncio.CancelledError:
            asked.is_given_up = True
            self._interrupt(asked)
            raise

    def _answer(
        self,
        asked: "_Asked",
        read: Callable[[sqlite3.Connection], T],
        connection: sqlite3.Connection,
    ) -> T:
        asked.connection = connection
        with self._lock:
            self._asked = asked
        try:
            if asked.is_given_up or self._refuses_reads:
                raise HistoryClosed(_CLOSED)
            return read(connection)
        except sqlite3.OperationalError as error:
            if self._refuses_reads:
                raise HistoryClosed(_CLOSED) from error
            raise
        finally:
            with self._lock:
                self._asked = None
                self._unanswered -= 1

    def _interrupt(self, asked: "_Asked | None") -> None:
        """Interrupt a read until it ends, unless it is not what the thread is doing."""
        with self._lock:
            # No other statement can meet this: SQLite forgets it when the next one begins.
            if asked is None or asked is not self._asked or asked.connection is None:
                return
            asked.connection.interrupt()
        with contextlib.suppress(RuntimeError):  # a thread without an event loop
            asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self._interrupt, asked)

    @property
    def unanswered(self) -> int:
        """Reads that the thread is not done with, also those that nobody waits for any more."""
        return self._unanswered

    def refuse_reads(self) -> None:
        """End the read that is under way, and answer no other. Any thread may call this."""
        self._refuses_reads = True
        self._interrupt(self._asked)

    def stop(self) -> "asyncio.Future[None] | None":
        """Let the thread end, once it has done what writes; reads are refused."""
        self.refuse_reads()
        stopped: asyncio.Future[None] | None = super().stop()
        return stopped

    def pause(self, wait: Callable[[], None]) -> None:
        """Let the thread wait, after what it was given before."""
        self._tx.put_nowait((None, wait))

    @property
    def has_thread(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()


class _Asked:
    """A read that was asked for."""

    def __init__(self) -> None:
        self.is_given_up = False
        self.connection: sqlite3.Connection | None = None


def _checked(
    check: Callable[[], None],
    work: Callable[[sqlite3.Connection], T],
    connection: sqlite3.Connection,
) -> T:
    check()
    return work(connection)


def fetched(
    connection: sqlite3.Connection, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()
) -> list[Any]:
    """Run one statement and return its rows. To be used within `run` or `ask`."""
    return connection.execute(sql, parameters).fetchall()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes, undone where its body fails. To be used within `run`."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()  # undoes nothing where the transaction is already gone
        raise


def completed(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits to its end, and return its result.

    What is decided alike for every database is written once, as coroutines, for a server has to
    be waited for. SQLite's steps answer at once, so that no event loop is needed.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits, on a thread without an event loop")
