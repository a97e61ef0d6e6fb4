"""Programs put pysqlite3, which has a newer SQLite, in the place of Python's sqlite3."""

import sys
from pathlib import Path

import pytest

from tests.subprocesses.processes import run


@pytest.mark.subprocess
@pytest.mark.skipif(
    sys.version_info >= (3, 15) or sys.platform != "linux", reason="pysqlite3 has no build for it"
)
@pytest.mark.parametrize("part", ["use", "fork"])
def test_pysqlite3_in_the_place_of_sqlite3_serves(tmp_path: Path, part: str) -> None:
    run("replaced_driver", part, tmp_path / "history.db")
