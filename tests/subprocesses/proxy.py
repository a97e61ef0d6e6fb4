"""A proxy in front of a database that knows where messages end: it cuts there, or delays one.

    async with Proxy(server.folder, server.port) as proxy:
        proxy.cut_after(3)

Runs in the test's own loop, on a unix socket in its own folder: the name of pytest's may be too
long for a socket. The protocol's framing:
https://www.postgresql.org/docs/current/protocol-message-formats.html and
https://mariadb.com/kb/en/0-packet/
"""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Self

_PORT = 5432
"""Only names the socket."""
_CANCEL_REQUEST = (80877102).to_bytes(4, "big")
"""The start of a client's first message, after its length, if it cancels another's query."""


class Late:
    """A message that is held up, with everything that its client sends after it, until `release`.

    `came` is set when there is one. As on a network, the message arrives even if its client was cut
    off before.
    """

    def __init__(self, wanted: bytes, after: int) -> None:
        self.wanted = wanted
        self.after = after
        self.came = asyncio.Event()
        self.released = asyncio.Event()
        self.client: asyncio.StreamWriter | None = None

    def cut_client(self) -> None:
        """Cut off the client that sent it."""
        assert self.client is not None
        self.client.close()

    def release(self) -> None:
        """Let the message arrive."""
        self.released.set()


class Proxy:
    """Passes messages on in both directions, one by one, and counts requests to cancel.

    Args:
        server_folder, server_port: where the server's socket is.
    """

    def __init__(self, server_folder: Path, server_port: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="proxy_")
        folder = Path(self._folder.name)
        self.url = f"postgresql://owner@/postgres?host={folder}&port={_PORT}"
        self.cuts = 0
        self.cancel_requests = 0
        self._path = folder / f".s.PGSQL.{_PORT}"
        self._server_path = server_folder / f".s.PGSQL.{server_port}"
        self._left: int | None = None
        self._refuses_after = False
        self._refuses = False
        self._awaited: tuple[int, asyncio.Event] | None = None
        self._late: Late | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        self._folder.cleanup()

    def cut_after(self, messages: int, *, for_good: bool = False) -> None:
        """Pass on so many more messages; lose the next one, and cut its connection.

        Args:
            for_good: accept no connection after that, until `stop_cutting`.
        """
        self._left = messages
        self._refuses_after = for_good

    def stop_cutting(self) -> None:
        """Stop cutting and refusing connections."""
        self._left = None
        self._refuses = False

    def passed(self, messages: int) -> asyncio.Event:
        """Return an event that is set once so many more messages were passed on."""
        self._awaited = (messages, asyncio.Event())
        return self._awaited[1]

    def hold(self, wanted: bytes = b"", *, after: int = 0) -> Late:
        """Hold up a client's message that contains this: the next one after so many others."""
        self._late = Late(wanted, after)
        return self._late

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._refuses:
            to_client.close()
            return
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            server, to_server = await asyncio.open_unix_connection(self._server_path)
        except OSError:
            to_client.close()
            return
        ends = (to_client, to_server)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(client, to_server, ends, from_client=True))
                both.create_task(self._pass_on(server, to_client, ends, from_client=False))
        except asyncio.CancelledError:
            pass
        finally:
            for end in ends:
                end.close()
            self._links.discard(link)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        from_client: bool,
    ) -> None:
        has_type = not from_client  # a client's first message has no type
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await self._next_message(reader, has_type=has_type)
                self.cancel_requests += not has_type and message[4:8] == _CANCEL_REQUEST
                has_type = True
                if self._is_cut():
                    for end in ends:
                        end.close()
                    return
                if from_client:
                    await self._hold_up(message, ends[0])
                if not writer.is_closing():  # else its reader is gone, but maybe not the other
                    writer.write(message)
                self._tell_who_waits()
        writer.close()

    def _is_cut(self) -> bool:
        if self._left is None:
            return False
        if self._left:
            self._left -= 1
            return False
        self._left = None
        self.cuts += 1
        self._refuses = self._refuses_after
        return True

    def _tell_who_waits(self) -> None:
        if self._awaited is not None:
            left, event = self._awaited
            self._awaited = (left - 1, event)
            if left <= 1:
                event.set()

    async def _hold_up(self, message: bytes, client: asyncio.StreamWriter) -> None:
        late = self._late
        if late is None or late.wanted not in message:
            return
        late.after -= 1
        if late.after < 0:
            self._late = None
            late.client = client
            late.came.set()
            await late.released.wait()

    async def _next_message(self, reader: asyncio.StreamReader, *, has_type: bool) -> bytes:
        head = await reader.readexactly(5 if has_type else 4)
        return head + await reader.readexactly(int.from_bytes(head[-4:], "big") - 4)


class MariaDBProxy(Proxy):
    """The same for MariaDB or MySQL, whose packets begin with a length of three bytes.

    Args:
        server_socket: the server's.
    """

    def __init__(self, server_socket: Path) -> None:
        super().__init__(server_socket.parent, _PORT)
        self._server_path = server_socket
        self.socket = self._path

    async def _next_message(self, reader: asyncio.StreamReader, *, has_type: bool) -> bytes:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head[:3], "little"))
