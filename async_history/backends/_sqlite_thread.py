"""A connection with a thread of its own, which is handed a whole transaction at once.

A transaction that the event loop drives statement by statement stays open while anything else
holds the loop, and the file is locked for every other process as long. So all of it runs on the
connection's thread.

Lives here: handing work over, transactions on that thread. Not here: what is done in them.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

import aiosqlite

T = TypeVar("T")


class ThreadConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs functions.

    Attributes:
        check: called there before each function; what it raises is raised instead.
    """

    check: Callable[[], None] | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function on the connection's thread and return what it returns.

        Work that was begun or queued runs on where the caller is cancelled. It must not return a
        cursor: another thread would free it, and in a forked child nobody would.
        """
        if self.check is not None:
            work = partial(_checked, self.check, work)
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result

    def pause(self, wait: Callable[[], None]) -> None:
        """Let the thread wait, after what it was given before."""
        self._tx.put_nowait((None, wait))

    @property
    def has_thread(self) -> bool:
        """Tell whether the thread still runs."""
        return self._thread.is_alive()


def _checked(
    check: Callable[[], None],
    work: Callable[[sqlite3.Connection], T],
    connection: sqlite3.Connection,
) -> T:
    check()
    return work(connection)


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
