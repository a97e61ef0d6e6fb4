"""Programs put pysqlite3, which has a newer SQLite, in the place of Python's sqlite3."""

from pathlib import Path

import pytest

from tests.subprocesses.processes import run

pytest.importorskip("pysqlite3")


@pytest.mark.subprocess
@pytest.mark.parametrize("part", ["use", "fork"])
def test_pysqlite3_in_the_place_of_sqlite3_serves(tmp_path: Path, part: str) -> None:
    run("replaced_driver", part, tmp_path / "history.db")
