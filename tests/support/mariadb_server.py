"""MariaDB servers for the tests: from the machine's `mariadb-server`, or the server of
`TEST_MARIADB_URL`.

A server has its own folder, listens on a unix socket and on a port of 127.0.0.1, and is stopped by
the process that started it.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.markers import require
from tests.support.patience import LONG_S
from tests.support.ports import free_port

_PROGRAM: Final = "mariadbd"
_PATH: Final = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"


def is_installed() -> bool:
    """Return whether the machine has a MariaDB."""
    return shutil.which(_PROGRAM, path=_PATH) is not None


def require_server() -> None:
    """Skip a test if there is no MariaDB; in CI that is a failure."""
    if not is_installed() and not os.environ.get("ASYNC_HISTORY_CI"):
        import pytest  # benchmarks have none

        pytest.skip("MariaDB is not installed (apt install mariadb-server)")


class MariaDBServer:
    """One server: made, started, stopped, killed, paused.

    Args:
        settings: options of the server, over the defaults.
    """

    def __init__(self, **settings: str) -> None:
        require("mariadb")
        require_server()
        self.folder = Path(tempfile.mkdtemp(prefix="async_history_mdb"))
        self._data = self.folder / "data"
        self.socket = self.folder / "socket"
        self.port = free_port()
        self._settings = {
            "innodb-buffer-pool-size": "32M",
            "innodb-flush-log-at-trx-commit": "2",  # for a crash of the system, not of the server
            "innodb-doublewrite": "OFF",
            "innodb-log-file-size": "16M",
            "innodb-stats-persistent": "OFF",
            "performance-schema": "OFF",
            "character-set-server": "latin1",
            "max-connections": "60",
            "max-allowed-packet": "128M",
            # MySQL's defaults, so that statements suit it too
            "sql-mode": "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,"
            "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
            "innodb-force-primary-key": "ON",
        } | settings
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> "MariaDBServer":
        """Make an empty server whose `root` needs no password."""
        program = shutil.which("mariadb-install-db", path=f"{_PATH}{os.pathsep}/usr/bin")
        assert program is not None, "mariadb-install-db is missing"
        done = subprocess.run(
            [
                program,
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._user(),
            ],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            env={**os.environ, "TMPDIR": str(self.folder)},  # a server empties it when it starts
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return self

    @staticmethod
    def _user() -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def start(self) -> "MariaDBServer":
        """Start the server, and wait until it accepts connections."""
        program = shutil.which(_PROGRAM, path=_PATH)
        assert program is not None, "mariadbd is missing"
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = subprocess.Popen(
            [
                program,
                "--no-defaults",
                f"--datadir={self._data}",
                f"--socket={self.socket}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--tmpdir={self.folder}",
                f"--pid-file={self.folder / 'pid'}",
                f"--log-error={self.folder / 'log.err'}",
                *self._user(),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + LONG_S
        while not self._accepts():
            assert self._process.poll() is None, (self.folder / "log.err").read_text()[-2_000:]
            assert time.monotonic() < deadline, "MariaDB did not start"
            time.sleep(0.05)
        return self

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server: SIGTERM stops it cleanly, SIGKILL as in a crash."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(LONG_S)
        self._process = None

    def files_with(self, word: bytes) -> set[str]:
        """Stop the server, return the names of the files that have a word, and start it again."""
        self.stop()
        found = [file for file in self.folder.rglob("*") if file.is_file()]
        names = {file.name for file in found if word in file.read_bytes()}
        self.start()
        return names

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def send(self, how: signal.Signals) -> None:
        """Send the server a signal, such as SIGSTOP or SIGCONT."""
        assert self._process is not None
        self._process.send_signal(how)

    def url(self, database: str = "", *, tcp: bool = False, user: str = "root") -> URL:
        """Return a URL: over the unix socket, or over TCP."""
        if tcp:
            return make_url(f"mariadb+asyncmy://{user}@127.0.0.1:{self.port}/{database}")
        return make_url(f"mariadb+asyncmy://{user}@/{database}?unix_socket={self.socket}")

    def remove(self) -> None:
        """Stop at once, and delete everything."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def run_sql(url: URL, *statements: str) -> list[Any]:
    """Run statements on a new connection; return the rows of the last."""

    async def run() -> list[Any]:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        rows: list[Any] = []
        async with engine.connect() as connection:
            for statement in statements:
                done = await connection.exec_driver_sql(statement)
                rows = list(done.all()) if done.returns_rows else []
        await engine.dispose()
        return rows

    found: list[Any] = in_thread(run)
    return found


def kill_sessions(url: URL, found: str) -> list[int]:
    """Kill the sessions that a query finds; return their ids.

    A session that has just closed may still be found, and be gone when it is killed.
    """
    sessions: list[int] = [row[0] for row in run_sql(url, found)]
    run_sql(
        url,
        *(
            "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094 BEGIN END;"
            f" KILL CONNECTION {session}; END"
            for session in sessions
        ),
    )
    return sessions


def in_thread(run: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine in another thread's loop: a test's own loop may run in this one."""

    async def main() -> Any:
        return await run()

    with ThreadPoolExecutor() as thread:
        return thread.submit(asyncio.run, main()).result()
