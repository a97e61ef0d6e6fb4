"""Every call, from each of the last frames that the interpreter's recursion limit leaves.

Such a call raises RecursionError somewhere inside. Then nothing that others wait for has changed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from async_history import HistoryManager, open_history
from tests.conftest import stores, url_of
from tests.support.patience import LONG_S
from tests.support.reads import READS
from tests.support.writes import WRITES

ITERATED = {"page", "walk", "memories_at", "dump"}
"""Reads left out: near the limit CPython 3.11 crashes in any asynchronous generator."""
FRAMES = 100
"""More than a call needs above its caller's frame."""

Call = Callable[[HistoryManager], Awaitable[object]]
Open = Callable[[], AbstractAsyncContextManager[HistoryManager]]


@pytest.fixture(params=stores("file", "rollback journal", "memory", "postgres"))
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "rollback journal":
        return lambda: open_history(tmp_path / "history.db", journal="delete")
    url = url_of(request.param, request, tmp_path)
    if request.param == "postgres":
        # One of two connections writes. If a place in the pool were lost, nothing could be read.
        return lambda: open_history(url, pool_size=2)
    return lambda: open_history(url)


async def from_the_last_frames(call: Callable[[], Awaitable[object]], ended: list[bool]) -> None:
    """Call from each of the last frames, the deepest first, and note which calls ended well."""
    try:
        await from_the_last_frames(call, ended)
    except RecursionError:
        if len(ended) == FRAMES:
            return
        ended.append(False)
        await call()
        ended[-1] = True
        raise RecursionError from None


async def _add_many(history: HistoryManager) -> object:
    """Record so many that checking them is done in several turns of the loop."""
    return await history.batch_add_history([{"memory_id": "many", "event": "ADD"}] * 600)


# asyncio warns of a task that it could not schedule.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("kind", ["reads", "writes"])
async def test_a_call_that_fails_blocks_nothing(open_: Open, kind: str) -> None:
    calls: dict[str, Call] = {**WRITES, "many": _add_many}
    if kind == "reads":
        calls = {name: read for name, read in READS.items() if name not in ITERATED}
    async with asyncio.timeout(LONG_S), open_() as history:
        await history.add_history("m", None, "first", "ADD")
        for name, call in calls.items():
            ended: list[bool] = []
            await from_the_last_frames(partial(call, history), ended)
            assert not ended[0], f"{name} needs no stack"
            assert ended[-1], f"{name} needs more than {FRAMES} frames"
            await history.add_history("m", None, name, "ADD")
            await asyncio.gather(*(history.get_history("m") for _ in range(3)))
