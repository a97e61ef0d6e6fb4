"""Detection of an open file that was removed or replaced, or whose log another process uses.

A process can continue to write to a removed file that it has open, but no other process will read
that. SQLite detects this for a file with a rollback journal, but not with a write-ahead log.
"""

import os
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from async_history._core.stats import StoreWarning
from async_history._sqlite.connecting.descriptors import Identity, identity_of, open_files
from async_history._sqlite.connecting.readonly import side_file
from async_history.errors import StorageMissing

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_IN_USE_BYTE: Final = 128
"""The byte of a log's index that each user of the log locks (UNIX_SHM_DMS in os_unix.c)."""
_NO_FILE: Final = (FileNotFoundError, NotADirectoryError)
_FLOCK: Final = {"linux": "hhqqi", "darwin": "qqihh"}
"""The layout of `struct flock`, by platform."""


class OpenFile:
    """The identity of a file and its log when a connection opened them. Its methods block."""

    def __init__(self, path: Path) -> None:
        # As text: each commit needs them, and converting a Path takes as long as the check.
        self._name = os.fspath(path)
        names = (self._name, os.fspath(side_file(path, "-wal")))
        identities = [(name, _identity(name)) for name in names]
        self._opened = [(name, opened) for name, opened in identities if opened is not None]

    def require_present(self) -> None:
        """Check that the file and its log are still at their paths.

        Raises:
            StorageMissing: one of them was removed or replaced by another file, or the file was
                emptied.
        """
        warning = self.warning()
        if warning is not None:
            raise StorageMissing(f"{warning}; nothing was written")

    def warning(self) -> StoreWarning | None:
        """Return the warning that the file or its log was removed, replaced or emptied; None if
        neither was."""
        for name, opened in self._opened:  # all in one function: each commit waits for this
            is_database = name == self._name
            try:
                status = os.stat(name)
            except _NO_FILE:
                return _warning(name, "removed", is_database)
            if (status.st_dev, status.st_ino) != opened:
                return _warning(name, "replaced by another file", is_database)
            if is_database and not status.st_size:
                return _warning(name, "emptied", is_database)
        return None


def _warning(name: str, what: str, is_database: bool) -> StoreWarning:
    if what == "emptied":
        advice = "close the history everywhere and restore a backup"
    elif is_database:
        advice = "put it back under its name, or close the history and open it again"
    else:
        advice = (
            "close the history in all processes, which copies the log into the file, and open it "
            "again"
        )
    is_gone = what == "removed"
    return StoreWarning(
        "file-removed" if is_gone else "file-replaced",
        "critical",
        f"{name} was {what} while it was open: {advice}",
    )


def has_log_open(path: Path) -> bool:
    """Return whether this process uses the log of a file, through any connection."""
    index = _identity(side_file(path, "-shm"))
    return index is not None and index in open_files()


def is_used_elsewhere(path: Path) -> bool:
    """Return whether another process uses the log of a file that this process has open.

    False if the platform can't say. It asks through SQLite's own descriptor, because closing
    another one would drop SQLite's locks.
    """
    layout = _FLOCK.get(sys.platform)
    index = _identity(side_file(path, "-shm"))
    if fcntl is None or layout is None or index is None:
        return False
    for descriptor in open_files().get(index, ()):
        asked = _flock(layout, fcntl.F_WRLCK)
        told = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        return bool(_lock_type(layout, told) != fcntl.F_UNLCK)
    return False


def _flock(layout: str, lock_type: int) -> bytes:
    if layout.startswith("h"):
        return struct.pack(layout, lock_type, os.SEEK_SET, _IN_USE_BYTE, 1, 0)
    return struct.pack(layout, _IN_USE_BYTE, 1, 0, lock_type, os.SEEK_SET)


def _lock_type(layout: str, flock: bytes) -> int:
    fields = struct.unpack(layout, flock[: struct.calcsize(layout)])
    return int(fields[0] if layout.startswith("h") else fields[3])


def _identity(name: str | Path) -> Identity | None:
    try:
        return identity_of(os.stat(name))
    except _NO_FILE:
        return None
