"""Connecting to SQLite, typed errors for its errors, and waiting for a lock."""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

from async_history._core.recorded_texts import UNDECODABLE, hide_texts
from async_history._sqlite.connecting import fork
from async_history._sqlite.connecting.temporary import use_temporary_folder
from async_history._sqlite.connecting.worker_thread import interrupt_when_stopping, is_stopping
from async_history.errors import (
    StorageCorrupt,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
)

T = TypeVar("T")

LOCK_SLICE_S = 0.25
"""Seconds that SQLite itself may wait for a lock before we retry. So closing and the program's exit
wait for at most this long."""
LOCK_PAUSE_S: Final = 0.01
"""Seconds between two such tries, in which the loop can run."""

LOG_RESET_WARNING = (
    f"SQLite {sqlite3.sqlite_version} has the WAL-reset fault: if two connections write a file at "
    "the same moment, a commit can be lost (https://www.sqlite.org/wal.html#walreset). A file "
    "that only one manager has open is safe. For several processes, or several managers or event "
    "loops in one process, use a Python with SQLite 3.51.3 or later"
)

_PRIMARY_CODE = 0xFF
_READONLY_ROLLBACK: Final = 776
_READONLY_DBMOVED: Final = 1032
_IOERR_WRITE: Final = 778
_IOERR_SHMSIZE: Final = 4874
"""Extended codes, as numbers: pysqlite3, which programs put in the place of sqlite3, has no names
for them."""

_PROBED_BYTES: Final = 1 << 16
"""More bytes than SQLite writes at a time, 64 KiB."""

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
"""SQLITE_PROTOCOL: others used or reset the log each time that this connection tried to."""

_BY_CODE: dict[int, tuple[type[StorageError], str]] = {
    sqlite3.SQLITE_BUSY: (
        StorageLocked,
        "is locked by another connection; try again, or raise lock_timeout_s",
    ),
    sqlite3.SQLITE_LOCKED: (StorageLocked, "is locked by another connection; try again"),
    sqlite3.SQLITE_PROTOCOL: (StorageLocked, "is locked by other connections; try again"),
    sqlite3.SQLITE_FULL: (
        StorageFull,
        "has no free disk space left, or SQLite's folder for temporary files has none (that is "
        "SQLITE_TMPDIR, TMPDIR or /var/tmp); free some and try again",
    ),
    sqlite3.SQLITE_IOERR: (
        StorageError,
        "had an I/O error; check the disk, its quota, and the limit on a file's size (ulimit -f)",
    ),
    sqlite3.SQLITE_READONLY: (
        StorageReadOnly,
        "may not be written; check the permissions of the file and of its folder",
    ),
    sqlite3.SQLITE_PERM: (StorageReadOnly, "may not be accessed; check its permissions"),
    sqlite3.SQLITE_CORRUPT: (
        StorageCorrupt,
        "is damaged; stop writing to it and recover it with the sqlite3 shell's .recover",
    ),
    sqlite3.SQLITE_NOTADB: (StorageCorrupt, "is not a SQLite database"),
}


def has_log_reset_fault(version: tuple[int, ...]) -> bool:
    """Return whether this SQLite has the WAL-reset fault: 3.7.0 to 3.51.2, except two fixed
    ones."""
    return (3, 7, 0) <= version <= (3, 51, 2) and version not in ((3, 44, 6), (3, 50, 7))


def is_commit_unknown(error: sqlite3.Error) -> bool:
    """Return whether a transaction that ended in this error may still take effect.

    An I/O error while committing can leave the commit frame in the log: a later recovery finds
    it (https://www.sqlite.org/atomiccommit.html, section 9).
    """
    return _code(error) == sqlite3.SQLITE_IOERR and not is_write_refused(error)


def is_write_refused(error: sqlite3.Error) -> bool:
    """Return whether the system refused to write, for another reason than a full disk.

    Nothing is committed: the last write of a transaction makes it valid, and a sync follows.
    """
    return getattr(error, "sqlite_errorcode", None) == _IOERR_WRITE


def may_be_of_system(error: sqlite3.Error) -> bool:
    """Return whether `system_refusal` may know the cause of an error.

    SQLite reports an exhausted quota, a disk without inodes or that has become read-only as an I/O
    error, or as a file that can't be opened.
    """
    return getattr(error, "sqlite_errorcode", None) in (_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN)


def system_refusal(error: sqlite3.Error, file: Path) -> StorageError | None:
    """Return the typed error if the system does not let this process write in a file's folder now.

    It writes to a file that has no name, and blocks. It returns None on systems that do not have
    such files.
    """
    try:
        descriptor = os.open(file.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            left = _PROBED_BYTES
            while left:  # the last free space takes a part, and only the next call is refused
                left -= os.write(descriptor, bytes(left))
        finally:
            os.close(descriptor)
    except AttributeError:
        return None
    except OSError as refusal:
        if refusal.errno in _REFUSALS:
            return _BY_ERRNO[refusal.errno](f"{file} {_REFUSALS[refusal.errno]} ({error})")
    return None


_REFUSALS: Final = {
    errno.ENOSPC: (
        "has no free disk space or inodes left (see df and df -i); free some and try again"
    ),
    errno.EDQUOT: "gets no more disk space by its quota; free some and try again",
    errno.EROFS: (
        "may not be written: its file system is read-only, maybe since an I/O error (see the "
        "system's log)"
    ),
}
"""What is said of the errors that `system_refusal` finds."""


def storage_error(error: sqlite3.Error, where: str) -> StorageError:
    """Return the typed error for a driver's error; `where` names the file.

    The driver's error, which becomes the cause, no longer shows recorded texts.
    """
    hide_texts(error)
    if getattr(error, "sqlite_errorcode", None) == _READONLY_DBMOVED:
        return StorageMissing(
            f"{where} was removed or replaced by another file while it was open; nothing was "
            "written. Put it back under its name, or close the history and open it again"
        )
    code = _code(error)
    if str(error).startswith(UNDECODABLE):
        return StorageCorrupt(
            f"{where} has a text that is not UTF-8, as another program stored it: correct it "
            f"there; records that are read without it are sound ({error})"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return StorageMissing(
            f"{where} cannot be opened: check that it and its folder exist and may be read, that "
            "the path has at most 504 bytes and the file's name 247, and that this process may "
            "open more files (ulimit -n)"
        )
    if getattr(error, "sqlite_errorcode", 0) == _READONLY_ROLLBACK:
        return StorageReadOnly(
            f"{where} has the unfinished transaction of a writer that was killed, and this user "
            "may not roll it back: open the file as a user who may write it and its folder"
        )
    if getattr(error, "sqlite_errorcode", 0) == _IOERR_SHMSIZE:
        return StorageFull(
            f"{where} can't be used without 32 KiB of free disk space, for the index of its log "
            f"(-shm); free some and try again ({error})"
        )
    kind, advice = _BY_CODE.get(code, (StorageError, "failed"))
    return kind(f"{where} {advice} ({error})")


_BY_ERRNO: Final[dict[int, type[StorageError]]] = {
    errno.ENOENT: StorageMissing,
    errno.ENOTDIR: StorageMissing,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EACCES: StorageReadOnly,
    errno.EPERM: StorageReadOnly,
    errno.EROFS: StorageReadOnly,
}


@contextmanager
def typed_errors(where: str, *, written: Path | None = None) -> Iterator[None]:
    """Turn driver and system errors raised in the body into typed ones, with the first as cause.

    `written` is the file that the body writes, on a thread that may block: see `system_refusal`.
    """
    try:
        yield
    except sqlite3.Error as error:
        refusal = None
        if written is not None and may_be_of_system(error):
            refusal = system_refusal(error, written)
        raise refusal or storage_error(error, where) from error
    except UnicodeDecodeError:  # of the driver, for a message with a damaged name; it has its bytes
        raise StorageCorrupt(
            f"{where} is damaged: its schema has a name or a statement that is not UTF-8. Stop "
            "writing to it and recover it with the sqlite3 shell's .recover"
        ) from None
    except OSError as error:
        kind = _BY_ERRNO.get(error.errno or 0, StorageError)
        raise kind(f"{where} cannot be used: {error}") from error


def file_size(path: Path) -> int:
    """Return a file's size in bytes.

    Raises:
        StorageError: it is not an ordinary file.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise StorageError(
            f"{path} is a folder: name a file in it. (Docker makes a folder where the file to be "
            "mounted was not there)"
        )
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not an ordinary file; name one")
    return status.st_size


OLDEST_SQLITE = (3, 32, 0)
"""The first version that binds a full batch's parameters (https://sqlite.org/limits.html)."""


def connect(path: Path | None, mode: Literal["ro", "rw"], how: str = "") -> fork.Connection:
    """Connect to an existing file, or without a path to a new database in memory.

    The connection is in autocommit mode and waits `LOCK_SLICE_S` for a lock. Another thread may
    close it once the thread that used it has ended. `how` holds more parameters of the URI
    (https://sqlite.org/uri.html).

    Raises:
        StorageError: this SQLite is too old.
        WrongLoop: this process was forked from one that had the file open (see `fork`).
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StorageError(
            f"this Python has SQLite {sqlite3.sqlite_version}; use one with 3.32 or later"
        )
    target = ":memory:" if path is None else f"{absolute(path).as_uri()}?mode={mode}&{how}"
    fork.require_usable(path)
    connection = sqlite3.connect(
        target,
        uri=True,
        timeout=LOCK_SLICE_S,
        isolation_level=None,
        check_same_thread=False,
        factory=fork.Connection,
    )
    fork.register(connection)
    use_temporary_folder(connection)
    interrupt_when_stopping(connection)
    return connection


def absolute(path: Path) -> Path:
    """Return the absolute path, which stays valid when the program changes its folder.

    Raises:
        StorageMissing: the path is relative, and the current folder has been removed.
    """
    if path.is_absolute():
        return path
    with typed_errors(str(path)):
        # Not Path.absolute(): tools that watch event loops report its os.getcwd() as blocking.
        return Path(os.fsdecode(os.getcwdb()), path)


def is_locked(error: sqlite3.Error | StorageLocked) -> bool:
    """Return whether another connection holds the lock, so that a retry may succeed."""
    if isinstance(error, StorageLocked):
        return True
    return _code(error) in _LOCKED


def is_schema_mismatch(error: sqlite3.Error) -> bool:
    """Return whether a statement found an unexpected schema, as after another process's reset."""
    return _code(error) in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)


def wait_for_lock(operation: Callable[[], T], timeout_s: float) -> T:
    """Run an operation, and retry until it gets the file's lock, in a thread that may block.

    Raises:
        sqlite3.OperationalError, StorageLocked: another connection still has the lock after
            `timeout_s`, or when the program ends or the caller is cancelled.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return operation()
        except (sqlite3.OperationalError, StorageLocked) as error:
            if time.monotonic() > deadline or is_stopping() or not is_locked(error):
                raise
            with fork.not_using_sqlite():
                time.sleep(LOCK_PAUSE_S)


@contextmanager
def read_snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Make all reads in the body see one snapshot of the file.

    Without it, another process can drop a table between two statements.
    """
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
