"""Programs put pysqlite3, which has a newer SQLite, in the place of Python's sqlite3."""

import subprocess
import sys
from pathlib import Path

from tests.subprocesses.processes import ROOT
from tests.support.patience import LONG_S


def test_a_driver_with_the_names_of_pysqlite3_serves(tmp_path: Path) -> None:
    module = "tests.subprocesses.replaced_driver"
    ended = subprocess.run(
        [sys.executable, "-m", module, tmp_path / "history.db"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG_S,
    )
    assert ended.returncode == 0, ended.stderr
