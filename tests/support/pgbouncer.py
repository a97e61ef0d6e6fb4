"""A real PgBouncer in front of a test's server, also with TLS."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.markers import require
from tests.support.patience import LONG_S
from tests.support.ports import free_port
from tests.support.postgres_server import server_user


def require_pgbouncer() -> str:
    """Return the program, or skip the test; in CI fail it."""
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get("ASYNC_HISTORY_CI"):
        pytest.fail("PgBouncer is not installed: apt-get install pgbouncer")
    if found is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    return found


@contextlib.contextmanager
def pgbouncer(
    postgres: str,
    *,
    mode: str = "transaction",
    pool_size: int = 2,
    most_clients: int = 200,
    certificate: Path | None = None,
) -> Iterator[str]:
    """Run a PgBouncer in front of the database of a URL; yield the URL through it.

    Args:
        postgres: the server's URL.
        mode: when a client's connection to the server is given to another.
        pool_size: connections to the server.
        most_clients: connections of clients; others are refused.
        certificate: a PEM file with key and certificate, for clients with TLS.
    """
    require("pgbouncer")
    program = require_pgbouncer()
    parts = urlsplit(postgres)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    server = (
        f"host={query.get('host', parts.hostname)} port={query.get('port', parts.port or 5432)}"
    )
    login = f"user={parts.username}" + (f" password={parts.password}" if parts.password else "")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="async_history_bouncer"))
    tls = ""
    if certificate is not None:
        shutil.copy(certificate, folder / "server.pem")
        tls = (
            f"client_tls_sslmode = require\nclient_tls_key_file = {folder}/server.pem\n"
            f"client_tls_cert_file = {folder}/server.pem\n"
        )
    (folder / "users").write_text('"owner" "secret"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
* = {server} {login}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = {most_clients}
ignore_startup_parameters = extra_float_digits
{tls}"""
    )
    user = server_user()
    if user is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, user, -1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-q", folder / "pgbouncer.ini"],
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + LONG_S
        while not _accepts(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "PgBouncer did not start"
            time.sleep(0.02)
        yield f"postgresql://owner:secret@127.0.0.1:{port}{parts.path}"
    finally:
        process.terminate()
        process.wait(LONG_S)
        shutil.rmtree(folder, ignore_errors=True)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
