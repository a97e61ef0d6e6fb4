"""A simulated network between two processes of one machine: a proxy that delays each direction.

    python -m benchmarks._delay SOCKET DELAY_SECONDS HOST PORT

It runs in a separate process until its standard input closes. It delays every byte by the same
time, in order, and does not limit the bandwidth. Each direction has two threads, because a selector
wakes only at whole milliseconds.
"""

import contextlib
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

_CHUNK_BYTES: Final = 256 * 1024
_SOME_SLEEPS: Final = 100
_SHORT_SLEEP_S: Final = 0.001
_POSTGRES_PORT: Final = "5432"


@contextlib.contextmanager
def delayed(url: str, delay_s: float, folder: Path) -> Iterator[str]:
    """Run a proxy in front of a PostgreSQL server; yield the URL through it.

    Args:
        url: a URL with one host, without TLS.
        delay_s: the delay in each direction.
        folder: a new folder, for the proxy's socket.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = parts.hostname or query.get("host", "localhost")
    port = str(parts.port or query.get("port", _POSTGRES_PORT))
    folder.mkdir()
    path = folder / f".s.PGSQL.{port}"
    proxy = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._delay", str(path), str(delay_s), host, port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline(), "the proxy did not start"
        user = parts.netloc.rpartition("@")[0]
        through = urlencode({**query, "host": str(folder), "port": port})
        yield parts._replace(netloc=f"{user}@" if user else "", query=through).geturl()
    finally:
        proxy.communicate()


def _connect(host: str, port: str) -> socket.socket:
    if host.startswith("/"):
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(f"{host}/.s.PGSQL.{port}")
    else:
        upstream = socket.create_connection((host, int(port)))
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return upstream


class _Direction:
    """One direction: chunks from one socket are sent to another after the delay."""

    def __init__(
        self, source: socket.socket, target: socket.socket, delay_s: float, late_s: float
    ) -> None:
        self._source = source
        self._target = target
        self._delay_s = delay_s
        self._late_s = late_s
        self._under_way = SimpleQueue[tuple[float, bytes]]()
        self.threads = [threading.Thread(target=run) for run in (self._take, self._bring)]

    def _take(self) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = self._source.recv(_CHUNK_BYTES)
            except OSError:
                chunk = b""
            self._under_way.put((perf_counter() + self._delay_s, chunk))

    def _bring(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, chunk = self._under_way.get()
                while self._delay_s and (left := due - perf_counter()) > 0:
                    sleep(max(0.0, left - self._late_s))
                if not chunk:
                    break
                self._target.sendall(chunk)
        for end in (self._source, self._target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _carry(client: socket.socket, host: str, port: str, delay_s: float, late_s: float) -> None:
    """Forward one connection until either side closes it."""
    with client, _connect(host, port) as server:
        ways = [
            _Direction(source, target, delay_s, late_s)
            for source, target in ((client, server), (server, client))
        ]
        threads = [thread for way in ways for thread in way.threads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _late_s() -> float:
    """Return how late this system wakes a sleeping thread."""
    late = []
    for _ in range(_SOME_SLEEPS):
        begun = perf_counter()
        sleep(_SHORT_SLEEP_S)
        late.append(perf_counter() - begun - _SHORT_SLEEP_S)
    return max(0.0, statistics.median(late))


def _serve(path: str, delay_s: float, host: str, port: str) -> None:
    late_s = _late_s()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(
                target=_carry, args=(client, host, port, delay_s, late_s), daemon=True
            ).start()


def main(path: str, delay_s: str, host: str, port: str) -> None:
    """Serve until standard input closes."""
    serving = (path, float(delay_s), host, port)
    threading.Thread(target=_serve, args=serving, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
