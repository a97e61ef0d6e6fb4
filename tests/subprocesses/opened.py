"""Opening a file in the programs that tests start, with the journal of the test."""

import os
from pathlib import Path
from typing import Any

# Imported before a program forks. Otherwise each child would read the modules again.
import async_history._core.writing.writer
import async_history._sqlite.manager  # noqa: F401
from async_history import HistoryManager, open_history

VARIABLE = "TEST_JOURNAL"
"""The environment variable that names the journal: "wal", as by default, or "delete"."""


def journal() -> Any:
    """Return the journal that this program's files have."""
    return os.environ.get(VARIABLE, "wal")


def opened(path: Path, **options: Any) -> HistoryManager:
    """Return a manager of a file."""
    return open_history(path, journal=journal(), **options)
