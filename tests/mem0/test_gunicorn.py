"""mem0's server in gunicorn, run by `async-history run`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import stores, url_of
from tests.mem0.memories import recorded
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.mem0, pytest.mark.once, pytest.mark.subprocess]

RUN = ("-m", "async_history.cli", "run", "--", sys.executable, "-W", "ignore", "-m")
CHANGES = [("ADD", "likes tea"), ("UPDATE", "likes mate")]


@contextlib.contextmanager
def gunicorn(url: str, folder: Path, *options: str) -> Iterator[Path]:
    """Run mem0's server with two workers; yield its socket. It must stop when it is asked to."""
    path, log = folder / "socket", folder / "log"
    command = ["gunicorn", "-k", "asgi", "--workers", "2", "--bind", f"unix:{path}", *options]
    limits = ["--timeout", "0", "--keep-alive", str(int(LONG_S))]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *RUN, *command, *limits, "tests.subprocesses.mem0_server:app"],
            stderr=stream,
            env={**os.environ, "MEM0_DIR": str(folder), "HISTORY_DB_PATH": url},
        )
    try:
        deadline = time.monotonic() + LONG_S
        while not _accepts(path):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield path
        process.terminate()
        assert process.wait(LONG_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def connected(path: Path) -> Iterator[httpx.Client]:
    """Connect to the first worker that accepts, and stay connected."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://server", timeout=LONG_S) as client:
        yield client


@contextlib.contextmanager
def both_workers(path: Path) -> Iterator[list[httpx.Client]]:
    """Yield a connection to each of the two workers."""
    with connected(path) as one, connected(path) as other:
        first = one.get("/worker").json()
        os.kill(first, signal.SIGSTOP)  # so that the other accepts
        try:
            assert other.get("/worker").json() != first
        finally:
            os.kill(first, signal.SIGCONT)
        yield [one, other]


def use(client: httpx.Client, user_id: str) -> None:
    """Add a memory, let a child of the worker add one, and update the first."""

    def posted(path: str, user_id: str) -> Any:
        messages = [{"role": "user", "content": "likes tea"}]
        answer = client.post(path, json={"messages": messages, "user_id": user_id})
        return answer.raise_for_status().json()

    memory = f"/memories/{posted('/memories', user_id)['results'][0]['id']}"
    assert posted("/children", f"{user_id}-child") == 0
    client.put(memory, json={"text": "likes mate"}).raise_for_status()
    told = client.get(f"{memory}/history").raise_for_status().json()
    assert [(record["event"], record["new_memory"]) for record in told] == CHANGES


def record(url: str, folder: Path, *options: str) -> None:
    """Let both workers, and a child of each, record at the same time."""
    with (
        gunicorn(url, folder, *options) as path,
        both_workers(path) as clients,
        ThreadPoolExecutor() as threads,
    ):
        list(threads.map(use, clients, ("ann", "ben")))
    found = [
        (record.owner and record.owner.user_id, record.event, record.new_memory)
        for record in recorded(url)
    ]
    expected = [(user_id, *change) for user_id in ("ann", "ben") for change in CHANGES]
    expected += [(f"{user_id}-child", *CHANGES[0]) for user_id in ("ann", "ben")]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("store", stores("file", "postgres"))
def test_gunicorns_workers_record_in_what_was_opened_before_the_fork(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With `--preload` mem0's objects are built and the history is read before the fork."""
    record(url_of(store, request, tmp_path), tmp_path, "--preload")


def test_gunicorns_workers_record_in_what_each_opens(tmp_path: Path) -> None:
    record(str(tmp_path / "history.db"), tmp_path)
