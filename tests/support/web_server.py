"""The page of a history, served by uvicorn on 127.0.0.1 from another thread."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import uvicorn

from async_history import HistoryManager, open_history
from async_history.web import Access
from async_history.web._app import WebLimits, new_app
from tests.support.patience import LONG_S, MINUTES_S
from tests.support.ports import free_port

Fill = Callable[[HistoryManager], Awaitable[None]]


class WebServer:
    """A served page: its URL, and its history on the loop of its thread."""

    def __init__(self, history: HistoryManager, url: str) -> None:
        self.url = url
        self._history = history
        self._loop = asyncio.get_running_loop()

    def run(self, work: Callable[[HistoryManager], Awaitable[Any]]) -> Any:
        """Run work with the history on its loop, and return the result."""

        async def done() -> Any:
            return await work(self._history)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(LONG_S)


@contextlib.contextmanager
def web_server(
    fill: Fill, url: str = "memory://", origins: Sequence[str] = ()
) -> Iterator[WebServer]:
    """Serve a history that `fill` fills. Callers on this computer may change it.

    Args:
        origins: other sites whose pages may read.
    """
    begun: Future[tuple[WebServer, uvicorn.Server]] = Future()
    thread = threading.Thread(target=_run, args=(fill, url, origins, begun))
    thread.start()
    server, program = begun.result(MINUTES_S)
    try:
        yield server
    finally:
        program.should_exit = True
        thread.join(LONG_S)


def _run(
    fill: Fill,
    url: str,
    origins: Sequence[str],
    begun: "Future[tuple[WebServer, uvicorn.Server]]",
) -> None:
    try:
        asyncio.run(_serve(fill, url, origins, begun))
    except BaseException as error:
        if begun.done():
            raise
        begun.set_exception(error)


async def _serve(
    fill: Fill,
    url: str,
    origins: Sequence[str],
    begun: "Future[tuple[WebServer, uvicorn.Server]]",
) -> None:
    async with open_history(url) as history:
        await fill(history)
        app = new_app(
            history,
            lambda _: Access(write=True),
            write=True,
            limits=WebLimits(),
            origins=origins,
        )
        port = free_port()
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1
        )
        program = uvicorn.Server(config)
        serving = asyncio.create_task(program.serve())
        while not program.started:
            await asyncio.sleep(0)
            if serving.done():
                raise RuntimeError("the server did not start")
        begun.set_result((WebServer(history, f"http://127.0.0.1:{port}"), program))
        await serving
