"""Reading a SQLite file that others own: nothing is changed, and nothing is left beside it.

A connection that only reads still lays a log and the log's index beside a file in WAL mode that
nobody has open, owned by whoever reads: its owner may not be able to write to them, and so to the
file. And where nothing can be laid there it can't read at all. So a file whose log is not there is
read as it lies, without a lock (`immutable=1`), and what was read counts only if neither the file
nor what is beside it has changed since before (https://sqlite.org/uri.html, "immutable").
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from async_history._core.options import Journal
from async_history._sqlite.errors import connect, wait_for_lock
from async_history.errors import StorageLocked, StorageReadOnly

State = tuple[tuple[int, ...] | None, ...]
"""What tells a file that was changed from one that was not, and the same of what is beside it."""

_LOG: Final = "-wal"
_LOG_INDEX: Final = "-shm"


T = TypeVar("T")


class Look:
    """A connection that reads one file. Made, used and closed in a thread that may block.

    Raises:
        StorageReadOnly: this user may not read the file, or can't read its log.
        sqlite3.Error: it is no database, or locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lies_still: State | None = None
        self._has_rollback_journal = False
        _require_readable(path)
        state = _state(path)
        if not self._is_without_log(state):
            self.connection = connect(path, "ro")
        elif _is_in_log_mode(path):
            self._lies_still = state
            self.connection = connect(path, "ro", "immutable=1")
        else:
            self._has_rollback_journal = True
            self.connection = connect(path, "rw" if self._may_undo(state) else "ro")
        self.connection.execute("PRAGMA query_only = ON")

    @property
    def has_rollback_journal(self) -> bool:
        """Return whether the file had no log when this was opened: see `is_fit`."""
        return self._has_rollback_journal

    @property
    def is_without_lock(self) -> bool:
        """Return whether what was read must be asked about: see `is_sound`."""
        return self._lies_still is not None

    def is_fit(self) -> bool:
        """Whether reading will leave no trace still: others may have given the file a log."""
        return not (self._has_rollback_journal and _is_in_log_mode(self._path))

    def is_sound(self) -> bool:
        """Return whether what was read until now is what the file said."""
        return self._lies_still is None or self._lies_still == _state(self._path)

    def require_sound(self) -> None:
        """Refuse what was read if it may not be what the file said.

        Raises:
            StorageLocked: others changed the file meanwhile.
        """
        if not self.is_sound():
            raise StorageLocked(f"{self._path} was changed while it was being read; try again")

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

    def _may_undo(self, state: State) -> bool:
        """Return whether this user may undo a transaction whose writer was killed.

        Nobody can read before that. SQLite knows whether there is one, now or at any later read,
        and undoes it then; a connection that may only read fails instead.
        """
        _, log, _ = state
        folder = self._path.parent
        return log is None and may(self._path, os.W_OK) and may(folder, os.W_OK | os.X_OK)

    def _is_without_log(self, state: State) -> bool:
        """Return whether all there is to read is in the file."""
        _, log, index = state
        if log is None:
            return True
        if not may(beside(self._path, _LOG), os.R_OK):
            raise StorageReadOnly(
                f"{self._path} has a log that this user may not read; check the rights of "
                f"{beside(self._path, _LOG)}"
            )
        if index is not None:
            return False
        if log[_SIZE] == 0:
            return True
        # To read a log SQLite lays its index beside it: that must stay writable for the owner.
        if may(self._path.parent, os.W_OK | os.X_OK) and _acts_for_owner(self._path):
            return False
        raise StorageReadOnly(
            f"{self._path} has a log that was not copied into it, and its index (-shm) is missing: "
            "let its owner open it once where it may be written"
        )


_SIZE: Final = 2


def looked(open_: Callable[[], Look], read: Callable[[Look], T], timeout_s: float) -> T:
    """Return what a look reads, looking again where others lock it or changed it meanwhile.

    Raises:
        sqlite3.OperationalError, StorageLocked: they still did after `timeout_s`.
    """

    def attempt() -> T:
        with open_() as look:
            try:
                answer = read(look)
            except sqlite3.Error:
                look.require_sound()
                raise
            look.require_sound()
            return answer

    return wait_for_lock(attempt, timeout_s)


def beside(path: Path, suffix: str) -> Path:
    """Return the name of what SQLite keeps beside a file, its links followed."""
    return path.with_name(path.name + suffix)


def may(path: Path, mode: int) -> bool:
    """Return whether this process may read, write or search there, by rights and by mount."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def require_writable(path: Path, journal: Journal | None) -> None:
    """Refuse what may not be written, before SQLite leaves files beside it that nobody can write.

    Raises:
        StorageReadOnly: this user, or this mount, may not write the file, or beside it.
    """
    _require_readable(path)
    folder = path.parent
    # Where others have made them, a log and its index need no right to make any.
    has_log = all(beside(path, suffix).exists() for suffix in (_LOG, _LOG_INDEX))
    if not may(path, os.W_OK):
        what = "it"
    elif not may(folder, os.W_OK | os.X_OK) and (journal == "delete" or not has_log):
        what = f"its folder {folder}, where SQLite keeps a journal beside it,"
    else:
        return
    raise StorageReadOnly(
        f"{path} can't be opened for writing, for {what} may not be written by this user or on "
        "this mount: see to that, or open it with migrate=False to read it"
    )


def _require_readable(path: Path) -> None:
    if path.exists() and not may(path, os.R_OK):
        raise StorageReadOnly(f"{path} may not be read by this user; check its rights")


def _state(path: Path) -> State:
    return tuple(map(_signature, (path, beside(path, _LOG), beside(path, _LOG_INDEX))))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_in_log_mode(path: Path) -> bool:
    """Return whether the file says that it has a write-ahead log.

    Asked of SQLite, which then refuses to read without a lock. Opening and closing the file
    ourselves would drop the locks this process holds (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    with contextlib.closing(connect(path, "ro", "nolock=1")) as connection:
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN and path.exists()
        except sqlite3.DatabaseError:
            return False  # no database, as whoever reads it will be told
    return False


def _acts_for_owner(path: Path) -> bool:
    """Return whether what this process lays beside a file is its owner's: root's is."""
    geteuid: Callable[[], int] | None = getattr(os, "geteuid", None)
    return geteuid is None or geteuid() in (0, path.stat().st_uid)
