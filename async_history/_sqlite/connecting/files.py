"""Removing a database's files, and making a new file name durable."""

import os
from pathlib import Path


def remove(database: Path) -> None:
    """Remove a database file and its journal, log and index of the log."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable. On Windows this does nothing and is not needed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
