"""The history that a command uses by default, and how to open one without changing it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from async_history import HistoryManager, StorageMissing, open_history

URL_VARIABLE: Final = "ASYNC_HISTORY_URL"
_FILE: Final = "history.db"


def to_write(url: str | None) -> str:
    """Return the URL for a command that writes."""
    return url or _FILE


def to_read(url: str | None) -> str:
    """Return the URL for a command that reads; mem0's own file if there is no other."""
    if url or os.path.exists(_FILE):
        return url or _FILE
    mem0_file = _mem0_file()
    return str(mem0_file) if os.path.exists(mem0_file) else _FILE


def _mem0_file() -> Path:
    # mem0ai 2.2, configs/base.py
    return Path(os.environ.get("MEM0_DIR") or Path.home() / ".mem0") / "history.db"


def is_default(url: str) -> bool:
    """Return whether a command uses this history without `--db`."""
    return url == to_write(os.environ.get(URL_VARIABLE))


@asynccontextmanager
async def open_to_read(url: str) -> AsyncIterator[HistoryManager]:
    """Open an existing history without creating or migrating anything."""
    try:
        async with open_history(url, create=False, migrate=False) as history:
            yield history
    except StorageMissing as error:
        raise StorageMissing(
            f"no history in {url}: it does not exist or is empty. Name another with --db"
        ) from error
