"""Debian's Prometheus, which scrapes the metrics of a test."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.patience import LONG_S
from tests.support.ports import free_port

_INTERVAL = "500ms"


def require_prometheus() -> str:
    """Return the program, or skip the test; in CI fail it."""
    found = shutil.which("prometheus")
    if found is None and os.environ.get("ASYNC_HISTORY_CI"):
        pytest.fail("Prometheus is not installed: apt-get install prometheus")
    if found is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    return found


class Prometheus:
    """A server, and queries of it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; fail if it refuses the query."""
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        said = answer.json()
        assert said["status"] == "success", said
        return said["data"]

    async def query(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of each series that an expression has now."""
        return [one["metric"] for one in (await self.get("query", query=expression))["result"]]

    async def wait_for(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of each series of an expression, once there are any.

        For a moment there are none if this process was too busy to answer one request for metrics.
        """
        async with asyncio.timeout(LONG_S):
            while not (found := await self.query(expression)):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
        return found


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """Run a server that scrapes a host and port."""
    program, port = require_prometheus(), free_port()
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: {_INTERVAL}, scrape_timeout: {_INTERVAL}}}
scrape_configs: [{{job_name: history, static_configs: [{{targets: ["{target}"]}}]}}]
"""
    )
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(LONG_S):
                while not await _is_ready(client):
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False
