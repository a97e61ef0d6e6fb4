"""A pytest plugin that runs the tests on uvloop: `pytest -p tests.support.on_uvloop`."""

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The policy by which pytest-asyncio makes the loop of a test."""
    return uvloop.EventLoopPolicy()
