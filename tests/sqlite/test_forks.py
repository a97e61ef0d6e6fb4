"""Forked children that open their own history, as the error of the parent's advises."""

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from async_history import open_history
from async_history._sqlite import fork
from tests.subprocesses import processes
from tests.subprocesses.checks import check_levels, check_manager, check_sound, looking
from tests.subprocesses.forking import PROGRAMS
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(
        sys.platform == "win32" or not hasattr(os, "fork"), reason="this system has no fork"
    ),
]


async def test_a_history_continues_if_the_end_of_a_fork_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "LONGEST_PAUSE_S", 0.05)
    async with open_history(tmp_path / "history.db") as history:
        await asyncio.to_thread(fork._before_fork)
        try:
            await asyncio.wait_for(history.add_history("m", None, "tea", "ADD"), LONG_S)
            async with open_history(tmp_path / "history.db") as other:
                assert len(await other.get_history("m")) == 1
        finally:
            fork._gate.forks -= 1


async def test_a_history_continues_after_an_exception_before_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    async with open_history(tmp_path / "history.db") as history:
        with monkeypatch.context() as patched:
            patched.setattr(fork._Pause, "has_begun", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fork._before_fork()
        fork._after_fork_in_parent()
        assert fork._gate.forks == 0
        await asyncio.wait_for(
            history.add_history("m", None, "tea", "ADD"), fork.LONGEST_PAUSE_S / 2
        )


@pytest.mark.parametrize("program", PROGRAMS)
async def test_every_processs_acknowledged_records_are_there(tmp_path: Path, program: str) -> None:
    path = tmp_path / "history.db"
    acked = processes.run("forking", program, path).split()
    there: list[str] = []
    for file in (path, tmp_path / "history.db.other"):
        if file.exists():
            with closing(sqlite3.connect(file)) as connection:
                there += [row[0] for row in connection.execute("SELECT id FROM history")]
    assert sorted(there) == sorted(set(acked) - {"begun"})
    if path.exists():
        async with open_history(path, create=False) as history:
            await check_manager(history, path)
        with looking(path) as connection:
            check_sound(connection)
            check_levels(connection)
