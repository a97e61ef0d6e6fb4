"""The cost of live feed viewers for writers in the same program.

The page is served on the writers' loop. Its viewers are in another process: they read what they
get, or, if they are slow, nothing. The processor time of that process is counted separately.
"""

import asyncio
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from async_history import open_history
from async_history.web._app import WebLimits, new_app
from async_history.web._server import listening, serve_app
from benchmarks._measure import quiet_collector, unwatched
from benchmarks._records import NewRecord, agents

_TASKS: Final = 1_000
_REQUEST: Final = b"GET /api/follow HTTP/1.1\r\nHost: localhost\r\n\r\n"
_READ_BYTES: Final = 1 << 16
NOBODY: Final = "no viewers"
READERS: Final = "100 viewers"
SLOW: Final = "100 viewers that do not read"
_VIEWERS: Final = {NOBODY: (0, True), READERS: (100, True), SLOW: (100, False)}
"""The number of viewers, and whether they read."""


class Written(NamedTuple):
    """The speed of writing tasks: events a second, and the program's processor seconds for each.

    `viewers_processors` is the number of processors that the viewers kept busy.
    """

    events_per_s: float
    processor_s: float
    viewers_processors: float = 0.0


async def _view(port: int, *, reads: bool) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, _REQUEST)
        while reads and await loop.sock_recv(sock, _READ_BYTES):
            pass
        await asyncio.Event().wait()


def _view_all(port: int, count: int, reads: bool) -> None:
    async def view() -> None:
        await asyncio.gather(*(_view(port, reads=reads) for _ in range(count)))

    asyncio.run(view())


@contextmanager
def _viewers(port: int, way: str) -> Iterator[None]:
    processes = multiprocessing.get_context("fork")
    process = processes.Process(target=_view_all, args=(port, *_VIEWERS[way]))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


async def _write(file: Path, listener: socket.socket, way: str, events: int) -> Written:
    per_agent = agents(_TASKS, events)
    async with open_history(file) as history:
        app = new_app(history, None, write=False, limits=WebLimits())
        serving = asyncio.create_task(serve_app(app, listener))
        while app.state.feed.viewers < _VIEWERS[way][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # there is no event for new connections

        async def add(record: NewRecord) -> None:
            await history.add_history(**record.as_mapping())

        with quiet_collector():
            busy = time.process_time()
            events_per_s = await unwatched(add, per_agent)
            busy = time.process_time() - busy
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    return Written(events_per_s, busy / sum(map(len, per_agent)))


def written(folder: Path, events: int, rounds: int) -> dict[str, list[Written]]:
    """Let the ways take turns, in a new order each time, each on a new file."""
    found: dict[str, list[Written]] = {way: [] for way in _VIEWERS}
    for number in range(rounds):
        for way in random.sample(list(_VIEWERS), len(_VIEWERS)):
            file = folder / f"{number} {way}.db"
            begun, busy_s = time.perf_counter(), _children_busy_s()
            with listening("127.0.0.1", 0) as listener, _viewers(listener.getsockname()[1], way):
                one = asyncio.run(_write(file, listener, way, events))
            busy = (_children_busy_s() - busy_s) / (time.perf_counter() - begun)
            found[way].append(one._replace(viewers_processors=busy))
            file.unlink()
    return found


def _children_busy_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
