"""The service of this folder, in a separate process that is stopped while a client listens."""

import asyncio
import json
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from async_history import open_history

FOLDER = Path(__file__).parent
DASHBOARD = FOLDER.parent / "grafana" / "async_history.json"
LONG_S = 60


@asynccontextmanager
async def serving(db: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ("-m", "fastapi_service", "--db", str(db), "--port", str(port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=FOLDER, stderr=PIPE
    )
    assert process.stderr is not None
    try:
        while b"Uvicorn running" not in (line := await process.stderr.readline()):
            assert line, "it did not start"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LONG_S) as client:
            yield client, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Feed:
    """The events that a client has received completely."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.comments: list[str] = []
        self.last_id = ""

    async def next(self) -> dict[str, Any] | None:
        """Return the data of the next event with data; None at the end."""
        data: dict[str, Any] | None = None
        async for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "":
                self.comments.append(value)
            if name == "id":
                self.last_id = value
            if name == "data":
                data = json.loads(value)
            if line == "" and data is not None:
                return data
            if value == "heartbeat" and self.comments.count("heartbeat") == 1:
                return {}
        return None


async def put(client: httpx.AsyncClient, user: str, memory: str, text: str) -> httpx.Response:
    return await client.put(f"/users/{user}/memories/{memory}", json={"text": text})


async def texts(client: httpx.AsyncClient, user: str, memory: str) -> list[str | None]:
    answer = await client.get(f"/users/{user}/memories/{memory}/history")
    return [record["text"] for record in answer.raise_for_status().json()]


@pytest.mark.once
@pytest.mark.subprocess
async def test_the_service(tmp_path: Path) -> None:
    db = tmp_path / "history.db"
    async with serving(db) as (client, process):
        assert (await client.get("/health")).json()["status"] == "ok"
        await check_memories(client)
        await check_errors(client)
        async with client.stream("GET", "/users/ann/feed") as answer:
            feed = Feed(answer)
            assert await feed.next() == {}  # a heartbeat
            await put(client, "ann", "m1", "likes water")
            await put(client, "bob", "b", "of another")
            heard = await feed.next()
            assert heard is not None
            assert (heard["before"], heard["text"]) == ("likes tea", "likes water")
        await put(client, "ann", "m1", "missed")
        resumed = {"Last-Event-ID": feed.last_id}
        async with client.stream("GET", "/users/ann/feed", headers=resumed) as answer:
            feed = Feed(answer)
            heard = await feed.next()
            assert heard is not None
            assert heard["text"] == "missed"
            await check_metrics(client)
            process.send_signal(signal.SIGTERM)
            assert [await feed.next()] in ([{}], [None])  # the end of the answer, not of a line
            assert await feed.next() is None
        assert process.stderr is not None
        said = (await asyncio.wait_for(process.stderr.read(), LONG_S)).decode()
        assert await process.wait() in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in said
    assert "Error" not in said
    async with open_history(db) as history:
        assert await history.count_history(user_id="ann") == 5


async def check_memories(client: httpx.AsyncClient) -> None:
    """Check that a user has memories with a history, and that a request is undone by its id."""
    await put(client, "ann", "m1", "likes tea")
    wrong = await put(client, "ann", "m1", "likes mate")
    assert await texts(client, "ann", "m1") == ["likes tea", "likes mate"]
    request_id = wrong.headers["X-Request-ID"]
    assert (await client.post(f"/users/bob/requests/{request_id}/undo")).status_code == 404
    undone = await client.post(f"/users/ann/requests/{request_id}/undo")
    assert undone.json() == {"restored": 1, "deleted": 0, "conflicts": []}
    assert await texts(client, "ann", "m1") == ["likes tea", "likes mate", "likes tea"]
    (memory,) = (await client.get("/users/ann/memories")).json()
    assert (memory["text"], memory["actor"]) == ("likes tea", "ann")
    assert memory["cause"]["request_id"] == undone.headers["X-Request-ID"]


async def check_errors(client: httpx.AsyncClient) -> None:
    """Check that another user's memories are not found, and that errors name the input."""
    assert (await client.get("/users/bob/memories/m1/history")).status_code == 404
    taken = await put(client, "bob", "m1", "mine")
    assert (taken.status_code, taken.json()) == (404, {"error": "OwnerConflict"})
    assert (await put(client, "ann", "m1", "")).status_code == 422
    wrong = await client.get("/users/ann/feed", headers={"Last-Event-ID": "made up"})
    assert (wrong.status_code, wrong.json()) == (400, {"error": "InvalidInput"})


async def check_metrics(client: httpx.AsyncClient) -> None:
    """Check that metrics have the names that the dashboard uses."""
    scraped = (await client.get("/metrics")).text
    assert re.search(r"(?m)^async_history_records_total\{.*\} [1-9]", scraped)
    asked = set(re.findall(r"(?:async_history|db_client)_\w+(?=[{\[])", DASHBOARD.read_text()))
    seldom = {f"async_history_{name}" for name in ("refusals_total", "retries_total", "warnings")}
    missing = {name for name in asked - seldom if f"\n{name}{{" not in scraped}
    assert missing == set()
