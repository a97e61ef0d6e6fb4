"""Calls when no thread can be started, and when there is no asyncio loop."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from async_history import (
    HistoryManager,
    StorageError,
    WrongLoop,
    check_history,
    open_history,
)
from async_history.blocking import BlockingHistoryManager
from tests.support.patience import LONG_S

StopThreads = Callable[[int], None]


@pytest.fixture
def allow_threads(monkeypatch: pytest.MonkeyPatch) -> StopThreads:
    """Let so many threads of the library and its driver start, and no more."""

    def allow(count: int) -> None:
        start, left = threading.Thread.start, [count]

        def start_or_not(thread: threading.Thread) -> None:
            if left[0] <= 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_not)

    return allow


async def test_opening_without_a_thread(tmp_path: Path, allow_threads: StopThreads) -> None:
    """At each thread that it needs in turn: a typed error, and nothing stays open."""
    before = set(threading.enumerate())
    for count in range(100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", threading.Thread.start)
            allow_threads(count)
            try:
                history = await open_history(tmp_path / "history.db")
            except StorageError as error:
                assert "no thread could be started" in str(error)  # noqa: PT017 - the last attempt works
            else:
                await history.aclose()
                break
    else:
        pytest.fail("it never opened")
    assert count >= 3
    left = [each for each in set(threading.enumerate()) - before if not each.daemon]
    for thread in left:
        thread.join(LONG_S)
    assert not any(thread.is_alive() for thread in left)


async def test_a_later_call_that_needs_a_thread(tmp_path: Path, allow_threads: StopThreads) -> None:
    async with open_history(tmp_path / "history.db") as history:
        allow_threads(0)
        with pytest.raises(StorageError, match="no thread could be started"):
            await history.backup(tmp_path / "backup.db")
        assert "no thread could be started" in (await history.stats()).warnings[0]
        await history.add_history("m", None, "x", "ADD")
        assert len(await history.get_history("m")) == 1


def test_a_blocking_manager_without_a_thread(allow_threads: StopThreads) -> None:
    allow_threads(0)
    with pytest.raises(StorageError, match="no thread could be started"):
        BlockingHistoryManager("memory://")


@pytest.mark.parametrize(
    "begin",
    [
        lambda history: history.__await__().send(None),
        lambda history: history.__aenter__().send(None),
        lambda _: check_history("sqlite:///history.db").send(None),
    ],
    ids=["await", "async with", "check"],
)
def test_trios_loop_is_refused_by_name(
    begin: Callable[[HistoryManager], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In trio, as without any loop, there is no asyncio loop."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "history.db").touch()
    with pytest.raises(WrongLoop, match="asyncio only"):
        begin(open_history("history.db"))
    asyncio.run(_use())


async def _use() -> None:
    async with open_history("history.db") as history:
        await history.add_history("m", None, "x", "ADD")
