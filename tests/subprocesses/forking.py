"""A program that forks while it has a history open, in each of the ways that programs do.

    python -m tests.subprocesses.forking WHAT PATH

Prints the ids that were acknowledged in any process, one a line.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from async_history import HistoryManager, WrongLoop
from async_history import open_history as opened
from async_history._sqlite.connecting import fork
from async_history.blocking import BlockingHistoryManager
from tests.subprocesses.processes import ending
from tests.support.patience import LONG_S

CHILDREN = 4
RECORDS = 25


def forked(child: Callable[[], None]) -> int:
    """Run something in a forked child that always ends."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(int(LONG_S))  # a child that is stuck ends, even if nothing waits for it
    status = 1
    try:
        child()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def say(record_id: str) -> None:
    os.write(1, f"{record_id}\n".encode())


async def write(history: HistoryManager, who: str, count: int = RECORDS) -> None:
    for number in range(count):
        say((await history.add_history(who, None, str(number), "ADD")).id)
        assert len(await history.get_history(who)) == number + 1


async def own(path: str, who: str) -> None:
    """Open a history as a new process does, and write."""
    async with opened(path) as history:
        await write(history, who)


def in_child(path: str, who: str, go: int | None = None) -> None:
    """Write in a forked child: first alone, then once the parent has closed its history."""
    asyncio.events._set_running_loop(None)
    if go is None:
        asyncio.run(own(path, who))
        return

    async def both() -> None:
        async with opened(path) as history:
            await write(history, who)
            say("begun")
            os.read(go, 1)
            await write(history, f"{who} after")

    asyncio.run(both())


def wait_for(pids: list[int]) -> None:
    assert [ending(pid) for pid in pids] == [0] * len(pids)


@contextlib.contextmanager
def closing_pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


async def parent_closes_first(path: str) -> None:
    """The parent closes the file while the children write."""
    with closing_pipe() as (reading, writing):
        async with opened(path) as history:
            await write(history, "parent")
            pids = [forked(partial(in_child, path, f"child {n}", reading)) for n in range(CHILDREN)]
        os.write(writing, b"." * CHILDREN)
        wait_for(pids)


async def busy(path: str) -> None:
    """Another thread forks while tasks of the parent write and read."""
    async with opened(path) as history:
        is_over = False

        async def work(task: int) -> None:
            number = 0
            while not is_over:
                say((await history.add_history(f"t{task}", None, "x", "ADD")).id)
                number += 1
                assert len(await history.get_history(f"t{task}")) == number

        tasks = [asyncio.create_task(work(task)) for task in range(20)]
        for child in range(CHILDREN):
            pid = await asyncio.to_thread(forked, partial(in_child, path, f"child {child}"))
            assert await asyncio.to_thread(ending, pid) == 0
        is_over = True
        await asyncio.gather(*tasks)


async def at_once(path: str) -> None:
    """Several threads fork at the same time."""
    async with opened(path) as history:
        await write(history, "parent")
        pids = await asyncio.gather(
            *(
                asyncio.to_thread(forked, partial(in_child, path, f"child {child}"))
                for child in range(CHILDREN)
            )
        )
        await write(history, "parent after")
        for pid in pids:
            assert await asyncio.to_thread(ending, pid) == 0


async def of_children(path: str) -> None:
    """A child forks while it has the file open itself."""

    async def child() -> None:
        async with opened(path) as history:
            await write(history, "child")
            wait_for([forked(partial(in_child, path, "grandchild"))])

    def in_its_own_loop() -> None:
        asyncio.events._set_running_loop(None)
        asyncio.run(child())

    async with opened(path) as history:
        await write(history, "parent")
        wait_for([forked(in_its_own_loop)])


async def with_multiprocessing(path: str) -> None:
    async with opened(path) as history:
        await write(history, "parent")
        fork = multiprocessing.get_context("fork")
        children = [
            fork.Process(target=in_child, args=(path, f"child {child}"))
            for child in range(CHILDREN)
        ]
        for process in children:
            process.start()
        for process in children:
            await asyncio.to_thread(process.join, LONG_S)
            assert process.exitcode == 0


async def blocking(path: str) -> None:
    """A blocking history is opened before the workers are forked (gunicorn --preload)."""

    def child(who: str) -> None:
        with contextlib.closing(BlockingHistoryManager(path)) as history:
            for _ in range(RECORDS):
                history.add_history(who, None, "x", "ADD")
            assert len(history.get_history(who)) == RECORDS

    history = BlockingHistoryManager(path)
    history.add_history("parent", None, "x", "ADD")
    assert history.connection is not None  # lent to the program, and dropped like our own
    assert len(history.connection.execute("SELECT id FROM history").fetchall()) == 1
    pids = [forked(partial(child, f"child {n}")) for n in range(CHILDREN)]
    history.close()
    wait_for(pids)
    async with opened(path) as again:
        for who in ("parent", *(f"child {n}" for n in range(CHILDREN))):
            for record in await again.get_history(who):
                say(record.id)


async def closed_before(path: str) -> None:
    """A history that is closed before the fork has no effect."""
    await own(path, "parent")
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute("SELECT count(*) FROM history").fetchall()
    wait_for([forked(partial(in_child, path, f"child {n}")) for n in range(CHILDREN)])


async def plain(path: str) -> None:
    """A plain connection of the parent can't be dropped: the child gets an error that says why."""
    await own(path, "parent")
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("SELECT count(*) FROM history").fetchall()

    def child() -> None:
        asyncio.events._set_running_loop(None)
        for _ in range(2):
            with pytest.raises(WrongLoop, match="was open when this process was forked"):
                asyncio.run(own(path, "refused"))
        asyncio.run(own(f"{path}.other", "child"))
        connection.close()  # now SQLite has forgotten the file
        asyncio.run(own(path, "child"))

    wait_for([forked(child)])
    connection.close()


async def in_use(path: str) -> None:
    """Another thread runs a statement: its connection is refused, and nothing hangs."""
    fork.RESPONSE_S = 2.0
    await own(path, "parent")
    history = BlockingHistoryManager(path)
    connection = history.connection
    assert connection is not None
    is_running, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        is_running.set()
        may_end.wait()

    connection.create_function("wait", 0, wait)
    running = threading.Thread(target=lambda: connection.execute("SELECT wait()").fetchall())
    running.start()
    is_running.wait()

    def child() -> None:
        asyncio.events._set_running_loop(None)
        with pytest.raises(WrongLoop, match="was open when this process was forked"):
            asyncio.run(own(path, "refused"))
        asyncio.run(own(f"{path}.other", "child"))

    pid = forked(child)
    assert await asyncio.to_thread(ending, pid) == 0
    may_end.set()
    running.join()
    history.close()


async def mutex(path: str) -> None:
    """SQLite does not answer in the child: the child raises instead of waiting for ever."""
    fork.RESPONSE_S = 0.2

    def child() -> None:
        asyncio.events._set_running_loop(None)
        # Python can't hold one of SQLite's own mutexes at a chosen moment.
        sqlite3.connect = lambda *_, **__: threading.Event().wait()  # type: ignore[assignment]
        for where in (path, "memory://"):
            with pytest.raises(WrongLoop, match="another thread was using SQLite"):
                asyncio.run(own(where, "refused"))

    wait_for([forked(child)])


async def mutex_of_what_is_open(path: str) -> None:
    """The same with an open history: it is not closed in the child, and the fork ends."""
    fork.RESPONSE_S = 0.2
    parent = os.getpid()

    def held(call: Callable[..., Any]) -> Callable[..., Any]:
        def wait_in_child(*arguments: Any, **options: Any) -> Any:
            if os.getpid() != parent:
                threading.Event().wait()
            return call(*arguments, **options)

        return wait_in_child

    def child() -> None:
        asyncio.events._set_running_loop(None)
        for where in (path, "memory://"):
            with pytest.raises(WrongLoop, match="another thread was using SQLite"):
                asyncio.run(own(where, "refused"))

    async with opened(path) as history:
        await write(history, "parent")
        sqlite3.connect = held(sqlite3.connect)
        fork.Connection.close = held(fork.Connection.close)  # type: ignore[method-assign]
        pid = forked(child)
        assert await asyncio.to_thread(ending, pid) == 0
        await write(history, "afterwards")


PROGRAMS = {
    program.__name__: program
    for program in (
        *(parent_closes_first, busy, at_once, of_children, with_multiprocessing, blocking),
        *(closed_before, plain, in_use, mutex, mutex_of_what_is_open),
    )
}


if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](sys.argv[2]))
