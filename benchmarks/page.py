"""How long does the first view of any page take among 3 million records, and what do viewers cost?

    python -m benchmarks.page [--quick] [--repeat 3] [--rows 3000000] [--store FILE-OR-URL]

Every view, call of the API and preview of a change is measured: the first request of a new process
after it has opened the history, and later ones. The processor time is that of all threads of the
process. Counts of everything have no target. Then 1,000 tasks write into another file, with and
without viewers.
"""

import asyncio
import gc
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from async_history import open_history
from async_history.web import Access
from async_history.web._app import WebLimits, new_app
from benchmarks._measure import OthersLoad, median
from benchmarks._page_store import Request, fill, requests
from benchmarks._page_viewers import NOBODY, READERS, SLOW, Written, written
from benchmarks._report import (
    Bar,
    as_json,
    each,
    milliseconds,
    options_parser,
    print_bars,
    print_load,
    print_table,
    results_folder,
    work_folder,
    write_json,
)

_FIRST_VIEW_MS: Final = 200
_LATER: Final = 5
_VIEWERS: Final = "viewers"
_WITH_VIEWERS: Final = 0.97
_WITH_VIEWERS_COST: Final = 1.03
_EVENTS: Final = 200_000
"""The least seconds, so that each viewer gets several batches."""
_ROUNDS: Final = 3


class Taken(NamedTuple):
    """The seconds of a request, and its answer."""

    wall_s: float
    processor_s: float
    status: int
    size_bytes: int


async def ask(app: Any, request: Request) -> Taken:
    """Send a request to an application, like a server, and wait for the whole answer."""
    path, _, query = request.path.partition("?")
    headers = [(b"host", b"localhost"), (b"accept", b"text/html")]
    body = b""
    if request.form is not None:
        body = urlencode({**request.form, "csrf_token": "token"}).encode()
        headers += [
            (b"cookie", b"async_history_csrf=token"),
            (b"content-type", b"application/x-www-form-urlencoded"),
        ]
    scope = {
        "type": "http",
        "method": "GET" if request.form is None else "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    status, size_bytes = 0, 0
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, size_bytes
        status = message.get("status", status)
        size_bytes += len(message.get("body", b""))

    begun, busy = time.perf_counter(), time.process_time()
    await app(scope, receive, send)
    return Taken(time.perf_counter() - begun, time.process_time() - busy, status, size_bytes)


async def _ask_several(store: str, request: Request) -> list[Taken]:
    async with open_history(store) as history:
        app = new_app(history, lambda _: Access(write=True), write=True, limits=WebLimits())
        return [await ask(app, request) for _ in range(1 + _LATER)]


def _in_a_process(store: str, request: Request) -> list[Taken]:
    return asyncio.run(_ask_several(store, request))


async def _filled(store: str, rows: int) -> list[Request]:
    """Return the requests of a store, which is filled first if it is empty."""
    async with open_history(store) as history:
        if await history.end_cursor() is None:
            await fill(history, rows)
        return await requests(history, rows)


def _only(asked: list[Request], named: str | None) -> list[Request]:
    return [one for one in asked if named is None or named in one.name]


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rows, repeat = (10_000, 1) if options.quick else (options.rows, options.repeat)
    with work_folder(options.dir) as folder:
        store = options.store or str(folder / "page.db")
        asked: list[Request] = []
        if options.only != _VIEWERS:
            asked = _only(asyncio.run(_filled(store, rows)), options.only)
        load = OthersLoad()
        gc.freeze()  # otherwise each process would copy these objects at its first collection
        found: dict[str, list[list[Taken]]] = {one.name: [] for one in asked}
        # Processes are forked from this one, which has imported everything and opened nothing.
        processes = multiprocessing.get_context("fork")
        for _ in range(repeat):
            for request in asked:
                with processes.Pool(1) as pool:
                    found[request.name].append(pool.apply(_in_a_process, (store, request)))
        events, rounds = (2_000, 1) if options.quick else (_EVENTS, _ROUNDS * repeat)
        viewed = written(folder, events, rounds) if options.only in (None, _VIEWERS) else {}
        bounded = {one.name for one in asked if not one.is_scan}
        _tell(options, folder, found, bounded, viewed, rows, load.processors())


def _tell(
    options: Namespace,
    folder: Path,
    found: Mapping[str, list[list[Taken]]],
    bounded: Container[str],
    viewed: Mapping[str, list[Written]],
    rows: int,
    load: float,
) -> None:
    first = {name: [run[0] for run in runs] for name, runs in found.items()}
    later = {name: [one for run in runs for one in run[1:]] for name, runs in found.items()}
    print_table(
        ("ms", "status", "KB", "first, wall", "processor", "later, wall", "processor"),
        [
            [
                name,
                str(runs[0].status),
                f"{runs[0].size_bytes / 1e3:,.0f}",
                milliseconds(median([one.wall_s for one in runs])),
                milliseconds(median([one.processor_s for one in runs])),
                milliseconds(median([one.wall_s for one in later[name]])),
                milliseconds(median([one.processor_s for one in later[name]])),
            ]
            for name, runs in first.items()
        ],
    )
    slowest = {
        name: median([one.wall_s for one in runs]) * 1e3
        for name, runs in first.items()
        if name in bounded
    }
    bars = _of_viewers(viewed)
    if slowest:
        name = max(slowest, key=slowest.__getitem__)
        bars.append(
            Bar(
                f"first view at {rows:,} records, the slowest",
                _FIRST_VIEW_MS,
                slowest[name],
                name,
                at_most=True,
                unit="ms",
            )
        )
    print_bars(bars)
    print_load(load)
    write_json(
        results_folder(options, folder) / "page.json",
        {
            "processors_others_used": load,
            "rows": rows,
            "bars": [as_json(bar) for bar in bars],
            "viewers": {way: [one._asdict() for one in runs] for way, runs in viewed.items()},
            "requests": {
                name: [[one._asdict() for one in run] for run in runs]
                for name, runs in found.items()
            },
        },
    )


def _of_viewers(viewed: Mapping[str, list[Written]]) -> list[Bar]:
    """Return the bars of the writers' speed, and of their processor time for an event."""
    bars = []
    for way in (READERS, SLOW) if viewed else ():
        runs = [*zip(viewed[way], viewed[NOBODY], strict=True)]
        speeds = [one.events_per_s / other.events_per_s for one, other in runs]
        costs = [one.processor_s / other.processor_s for one, other in runs]
        others = median([one.viewers_processors for one in viewed[way]])
        figures = f"{each(speeds)}; the viewers kept {others:.2f} processors busy"
        bars.append(Bar(f"events/s with {way}", _WITH_VIEWERS, median(speeds), figures))
        bars.append(
            Bar(
                f"the writers' processor time an event with {way}",
                _WITH_VIEWERS_COST,
                median(costs),
                each(costs),
                at_most=True,
            )
        )
    return bars


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000, help="records of the history")
    parser.add_argument("--store", help="a file or URL; filled first if it is empty")
    parser.add_argument("--only", help="only requests with this in their name, or viewers")
    main(parser.parse_args())
