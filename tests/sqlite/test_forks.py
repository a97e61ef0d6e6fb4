"""Forked children that open their own history, as the error of the parent's advises."""

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from async_history import open_history
from tests.subprocesses import processes
from tests.subprocesses.checks import check_levels, check_manager, check_sound, looking
from tests.subprocesses.forking import PROGRAMS

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(
        sys.platform == "win32" or not hasattr(os, "fork"), reason="this system has no fork"
    ),
]


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
