"""What others do to a file in WAL mode that is open: remove it, replace it, use it too.

Whoever has a removed file open can go on writing to it, and nobody else will ever read that. SQLite
notices it where a file has a rollback journal, but not beside a write-ahead log.
"""

import os
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from async_history._core.stats import StoreWarning
from async_history._sqlite.descriptors import Identity, identity_of, open_files
from async_history._sqlite.readonly import beside
from async_history.errors import StorageMissing

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_IN_USE_BYTE: Final = 128
"""Of a log's index: whoever uses the log locks it (UNIX_SHM_DMS in SQLite's os_unix.c)."""
_FLOCK: Final = {"linux": "hhqqi", "darwin": "qqihh"}
"""`struct flock`, by platform."""


class OpenFile:
    """A file and its log, if it has one, as a connection has just opened them. Asking blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = {name: _identity(name) for name in (path, beside(path, "-wal"))}

    def require_there(self) -> None:
        """Check that a commit would be found under the file's name.

        Raises:
            StorageMissing: the file or its log was removed, or another lies in its place.
        """
        warning = self.warning()
        if warning is not None:
            raise StorageMissing(f"{warning}; nothing was written")

    def warning(self) -> StoreWarning | None:
        """Return what to say where the file or its log is not the one that was opened."""
        for name, opened in self._opened.items():
            now = _identity(name)
            if opened is not None and now != opened:
                return _warning(name, name == self._path, is_gone=now is None)
        return None


def _warning(name: Path, is_database: bool, *, is_gone: bool) -> StoreWarning:
    what = "removed" if is_gone else "replaced by another file"
    way_out = (
        "put it back under its name, or close the history and open it again"
        if is_database
        else "close the history everywhere, which copies into the file what is only in the log, "
        "and open it again"
    )
    return StoreWarning(
        "file-removed" if is_gone else "file-replaced",
        "critical",
        f"{name} was {what} while it was open: {way_out}",
    )


def has_log_open(path: Path) -> bool:
    """Return whether this process uses the log of a file, through whatever connection."""
    index = _identity(beside(path, "-shm"))
    return index is not None and index in open_files()


def is_used_elsewhere(path: Path) -> bool:
    """Return whether another process uses the log of a file that this process has open.

    Asked through SQLite's own descriptor: to close another one would drop SQLite's locks. False
    where that can't be told.
    """
    layout = _FLOCK.get(sys.platform)
    index = _identity(beside(path, "-shm"))
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


def _identity(name: Path) -> Identity | None:
    try:
        return identity_of(os.stat(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
