"""The server: uvicorn, with a timeout wherever a client could keep it waiting."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from async_history._core.manager import HistoryManager
from async_history.errors import InvalidInput
from async_history.web._access import Access, TokenAccess
from async_history.web._access_log import ACCESS_LOG
from async_history.web._app import WebLimits, new_app
from async_history.web._feed import Feed
from async_history.web._origins import check_origins

__all__ = ["ACCESS_LOG", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits on the number of connections, and on how long each may keep the server waiting.

    Attributes:
        connections: most at the same time; others are answered 503.
        request_s: seconds in which the head of a request must arrive.
        stalled_s: seconds after which a client that does not read is disconnected.
        end_s: seconds that a stopping server waits for unfinished answers.
    """

    connections: int = 1_024
    request_s: float = 10.0
    stalled_s: float = 20.0
    end_s: int = 5


LIMITS: Final = ConnectionLimits()
_ADVICE: Final = "give a token, by --token-file or ASYNC_HISTORY_TOKEN"


async def serve(
    history: HistoryManager,
    *,
    host: str,
    port: int,
    token: str | None,
    write: bool,
    origins: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serve the page until the call is cancelled.

    Args:
        history: an open manager.
        host: a name or an address of this computer.
        port: a port; 0 for a free one.
        token: the token that callers must give; None admits callers on this computer only.
        write: whether the history may be changed.
        origins: other sites whose pages may read with the token.
        on_ready: called with the page's URL when it accepts requests.

    Raises:
        InvalidInput: other computers could reach the host, or pages of other sites could read, and
            there is no token; or an origin is not valid.
        OSError: the host or the port can't be used.
    """
    authorize = None if token is None else TokenAccess(token, Access(write=True))
    if check_origins(origins) and authorize is None:
        raise InvalidInput(f"pages of {origins[0]} may read only with a token: {_ADVICE}")
    with listening(host, port) as listener:
        address, port = listener.getsockname()[:2]
        if authorize is None and not ip_address(address).is_loopback:
            raise InvalidInput(f"others can reach {address}: {_ADVICE}")
        shown = f"[{address}]" if ":" in address else address
        on_ready(f"http://{shown}:{port}/")
        app = new_app(history, authorize, write=write, limits=WebLimits(), origins=origins)
        await serve_app(app, listener)


async def serve_app(
    app: Starlette, listener: socket.socket, *, limits: ConnectionLimits = LIMITS
) -> None:
    """Serve a page until the call is cancelled, then finish the answers under way.

    Args:
        app: an application from `new_app`.
        listener: a listening socket.
        limits: see `ConnectionLimits`.
    """
    config = uvicorn.Config(
        app,
        http=partial(BoundedConnection, limits=limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=limits.end_s,
    )
    server = _Server(config, app.state.feed)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise


def listening(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: the host or the port can't be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listener = socket.create_server(address[:2], family=family)
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """A server that ends the live feeds before it waits for answers, and handles no signals."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class BoundedConnection(H11Protocol):
    """A connection with timeouts for an incomplete request and for an answer that is not read.

    Args:
        limits: see `ConnectionLimits`.
        arguments: uvicorn's.
    """

    def __init__(self, *, limits: ConnectionLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._until_request: asyncio.TimerHandle | None = None
        self._until_read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self._expect_request()
        elif self._until_request is not None:
            self._until_request.cancel()
            self._until_request = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._until_read is None:
            abort = self.transport.abort
            self._until_read = self.loop.call_later(self._limits.stalled_s, abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._until_read is not None:
            self._until_read.cancel()
            self._until_read = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._until_request, self._until_read):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._until_request is None:
            abort = self.transport.abort
            self._until_request = self.loop.call_later(self._limits.request_s, abort)
