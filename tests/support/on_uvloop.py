"""A pytest plugin that runs the tests on uvloop: `pytest -p tests.support.on_uvloop`."""

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return how pytest-asyncio makes the loop of a test."""
    return {"uvloop": uvloop.new_event_loop}
