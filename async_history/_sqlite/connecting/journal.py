"""The journal of a SQLite file: which one its location allows, setting it, and how it is synced.

With a write-ahead log, commits are appended to `<name>-wal`, and readers do not wait. With a
rollback journal, `<name>-journal` keeps the old pages while the file itself is changed: readers
and the writer wait for each other, and processes share no memory.
"""

import os
import sqlite3
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._sqlite.connecting.errors import is_locked, wait_for_lock
from async_history._sqlite.connecting.mounts import Mount, mount_of
from async_history.errors import StorageError, StorageLocked

_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs"),
        *("lustre", "nfs", "nfs4", "smb3", "smbfs", "vboxsf", "virtiofs"),
    }
)
"""Network file systems, by their names in Linux. Another machine may have a file open too."""


@dataclass(frozen=True, slots=True)
class FileLocation:
    """A file's real path, and the journal and warnings that its location requires.

    Attributes:
        file: the path without links; SQLite names the log and journal after it.
        journal: the journal to use there.
        warnings: known risks of the location.
    """

    file: Path
    journal: Journal
    warnings: tuple[StoreWarning, ...] = ()


def location_of(path: Path, journal: Journal) -> FileLocation:
    """Return a file's location; the file need not exist."""
    file = Path(os.path.realpath(path))
    location = location_on(mount_of(file), path, file, journal)
    return replace(location, warnings=(*location.warnings, *_names_warning(path, file)))


def _names_warning(path: Path, file: Path) -> tuple[StoreWarning, ...]:
    """Return the warning that a file has hard links (https://sqlite.org/howtocorrupt.html, 2.5)."""
    try:
        found = file.stat()
    except OSError:  # it is missing, or can't be opened
        return ()
    names = found.st_nlink
    if names < 2 or not stat.S_ISREG(found.st_mode):  # each folder has several
        return ()
    text = (
        f"{path} has {names} names (hard links), and SQLite's log or journal is next to one of "
        "them. A program that opens the file by another name does not see it: acknowledged "
        "records can be lost, and the file damaged. Remove the other names, or make copies of them"
    )
    return (StoreWarning("several-names", "critical", text),)


def location_on(mount: Mount | None, path: Path, file: Path, journal: Journal) -> FileLocation:
    """Return the location of a file on a mount; messages call the file `path`."""
    if mount is None:
        return FileLocation(file, journal)
    if mount.point == file:
        warning = StoreWarning(
            "file-mounted-alone",
            "critical",
            f"{path} is mounted without its folder: SQLite's log or journal next to it is not on "
            "that mount, and is lost with the container. So the file uses a rollback journal "
            "(journal='delete'), and every acknowledged record is in the file itself. But if the "
            "container is killed during a commit and then removed, the file can be damaged. Mount "
            "the folder instead",
        )
        return FileLocation(file, "delete", (warning,))
    if mount.file_system in _NETWORK and journal == "wal":
        warning = StoreWarning(
            "network-file-system",
            "warning",
            f"{path} is on a file system that other machines may share ({mount.file_system}), but "
            "a write-ahead log works on one machine only: if several machines use the file, open "
            "it with journal='delete' on all of them",
        )
        return FileLocation(file, journal, (warning,))
    return FileLocation(file, journal)


def synchronous(connection: sqlite3.Connection, durability: Durability) -> str:
    """Return the `PRAGMA synchronous` that gives a connection's commits this durability.

    With a rollback journal, a commit is the removal of the journal, which only EXTRA syncs; with
    NORMAL, a power loss could damage the file (https://sqlite.org/pragma.html).
    """
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    has_log = mode == "wal"
    if durability == "full":
        return "FULL" if has_log else "EXTRA"
    return "NORMAL" if has_log else "FULL"


def use_journal(
    connection: sqlite3.Connection, path: Path, journal: Journal, lock_timeout_s: float
) -> None:
    """Set a file's journal, unless it has it already.

    Raises:
        StorageLocked: it has a write-ahead log, and another connection has it open.
        StorageError: its file system can't have a write-ahead log.
    """

    # On a new file SQLite does not wait for a lock in this statement, so we do.
    def switch() -> str:
        mode: str
        (mode,) = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        return mode

    try:
        mode = wait_for_lock(switch, lock_timeout_s)
    except sqlite3.OperationalError as error:
        if journal == "delete" and is_locked(error):
            raise StorageLocked(
                f"{path} has a write-ahead log, and others have it open. Close it there and try "
                "again: the change to a rollback journal (journal='delete') needs the file alone"
            ) from error
        raise
    if mode != journal:
        raise StorageError(
            f"{path} cannot have a write-ahead log (its journal_mode stays {mode!r}): put it on a "
            "local file system, or open it with journal='delete'"
        )
