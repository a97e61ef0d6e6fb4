"""Reading a SQLite file without changing it or leaving files next to it.

If no process has a file in WAL mode open, a read-only connection still creates a log (-wal) and its
index (-shm) next to it. The reading user owns them, so the file's owner may be unable to write to
them, and then to the file. If they can't be created, the file can't be read at all. So a file
without a log is read without a lock (`immutable=1`), and a result counts only if neither the file
nor its log has changed since before (https://sqlite.org/uri.html, "immutable").
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from async_history._core.options import Journal
from async_history._sqlite.connecting.errors import connect, wait_for_lock
from async_history.errors import StorageLocked, StorageReadOnly

State = tuple[tuple[int, ...] | None, ...]
"""Signatures of a file, its log and the log's index; they differ if one was changed."""

_LOG: Final = "-wal"
_LOG_INDEX: Final = "-shm"


T = TypeVar("T")


class ReadOnlyFile:
    """A connection that reads one file without leaving files next to it.

    It is created, used and closed in a thread that may block.

    Raises:
        StorageReadOnly: this user may not read the file or its log.
        sqlite3.Error: it is not a database, or it is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state_at_open: State | None = None
        self._has_rollback_journal = False
        _require_readable(path)
        state = _state(path)
        if not self._is_without_log(state):
            self.connection = connect(path, "ro")
        elif _is_in_wal_mode(path):
            self._state_at_open = state
            self.connection = connect(path, "ro", "immutable=1")
        else:
            self._has_rollback_journal = True
            self.connection = connect(path, "rw" if self._may_roll_back(state) else "ro")
        self.connection.execute("PRAGMA query_only = ON")

    @property
    def has_rollback_journal(self) -> bool:
        """Whether the file had a rollback journal when it was opened: see `leaves_no_files`."""
        return self._has_rollback_journal

    @property
    def takes_no_lock(self) -> bool:
        """Whether reads take no lock, so that each result must be checked: see `is_unchanged`."""
        return self._state_at_open is not None

    def leaves_no_files(self) -> bool:
        """Return whether a read still leaves no files: another process may have created a log."""
        return not (self._has_rollback_journal and _is_in_wal_mode(self.path))

    def is_unchanged(self) -> bool:
        """Return whether the file has not changed since it was opened here without a lock."""
        return self._state_at_open is None or self._state_at_open == _state(self.path)

    def require_unchanged(self) -> None:
        """Check that the file has not changed since it was opened here without a lock.

        Raises:
            StorageLocked: another process changed the file meanwhile.
        """
        if not self.is_unchanged():
            raise StorageLocked(f"{self.path} was changed while it was being read; try again")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _may_roll_back(self, state: State) -> bool:
        """Return whether this user may roll back a transaction whose writer was killed.

        Until then the file can't be read. SQLite rolls it back at the next read; a read-only
        connection fails instead.
        """
        _, log, _ = state
        folder = self.path.parent
        return (
            log is None and has_access(self.path, os.W_OK) and has_access(folder, os.W_OK | os.X_OK)
        )

    def _is_without_log(self, state: State) -> bool:
        """Return whether the file itself holds all records.

        Raises:
            StorageReadOnly: they are partly in a log that this user can't read.
        """
        _, log, index = state
        if log is None:
            return True
        if not has_access(side_file(self.path, _LOG), os.R_OK):
            raise StorageReadOnly(
                f"{self.path} has a log that this user may not read; check the permissions of "
                f"{side_file(self.path, _LOG)}"
            )
        if index is not None:
            return False
        if log[_SIZE] == 0:
            return True
        # To read a log SQLite creates its index, which must stay writable for the file's owner.
        if has_access(self.path.parent, os.W_OK | os.X_OK) and _is_owner_or_root(self.path):
            return False
        raise StorageReadOnly(
            f"{self.path} has a log that was not copied into it, and its index (-shm) is missing: "
            "open the file once as its owner, where it may be written"
        )


_SIZE: Final = 2


def read_with_retry(
    open_: Callable[[], ReadOnlyFile], read: Callable[[ReadOnlyFile], T], timeout_s: float
) -> T:
    """Return the result of `read`; open and read again if others lock or change the file meanwhile.

    Raises:
        sqlite3.OperationalError, StorageLocked: this did not succeed within `timeout_s`.
    """

    def attempt() -> T:
        with open_() as open_read_only:
            try:
                answer = read(open_read_only)
            except sqlite3.Error:
                open_read_only.require_unchanged()
                raise
            open_read_only.require_unchanged()
            return answer

    return wait_for_lock(attempt, timeout_s)


def side_file(path: Path, suffix: str) -> Path:
    """Return the path of the file that SQLite keeps next to a file; `path` has no links."""
    return path.with_name(path.name + suffix)


def has_access(path: Path, mode: int) -> bool:
    """Return whether permissions and mount let this process use a path in an `os.access` mode."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def require_writable(path: Path, journal: Journal | None) -> None:
    """Check that a file can be written, before SQLite leaves files that can't be written next to
    it.

    Raises:
        StorageReadOnly: this user or this mount may not write the file or its folder.
    """
    _require_readable(path)
    folder = path.parent
    # An existing log and index can be used without permission to create files.
    has_log = all(side_file(path, suffix).exists() for suffix in (_LOG, _LOG_INDEX))
    if not has_access(path, os.W_OK):
        what = "it"
    elif not has_access(folder, os.W_OK | os.X_OK) and (journal == "delete" or not has_log):
        what = f"its folder {folder}, where SQLite keeps the journal,"
    else:
        return
    raise StorageReadOnly(
        f"{path} can't be opened for writing: {what} may not be written by this user or on this "
        "mount. Change that, or open it with migrate=False to read it"
    )


def _require_readable(path: Path) -> None:
    if path.exists() and not has_access(path, os.R_OK):
        raise StorageReadOnly(f"{path} may not be read by this user; check its permissions")


def _state(path: Path) -> State:
    return tuple(map(_signature, (path, side_file(path, _LOG), side_file(path, _LOG_INDEX))))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_in_wal_mode(path: Path) -> bool:
    """Return whether the file's header says that it is in WAL mode.

    In that mode SQLite refuses to read with `nolock=1`. Reading the header ourselves would drop the
    locks this process holds on the file (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    with contextlib.closing(connect(path, "ro", "nolock=1")) as connection:
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN and path.exists()
        except sqlite3.DatabaseError:
            return False  # not a database: the first read will raise
    return False


def _is_owner_or_root(path: Path) -> bool:
    """Return whether this process runs as the file's owner or as root."""
    geteuid: Callable[[], int] | None = getattr(os, "geteuid", None)
    return geteuid is None or geteuid() in (0, path.stat().st_uid)
