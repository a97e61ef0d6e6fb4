"""How a SQLite file keeps transactions whole: its journal, what syncs it, and where it can lie.

With a write-ahead log, commits are appended to `<name>-wal`, and readers do not wait. With a
rollback journal, `<name>-journal` has the former pages while the file itself is changed: readers
and the writer wait for each other, and no memory is shared between processes.
"""

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from async_history._core.options import Durability, Journal
from async_history._core.stats import StoreWarning
from async_history._sqlite.errors import is_locked, wait_for_lock
from async_history._sqlite.mounts import Mount, mount_of
from async_history.errors import StorageError, StorageLocked

_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs"),
        *("lustre", "nfs", "nfs4", "smb3", "smbfs", "vboxsf", "virtiofs"),
    }
)
"""File systems whose files another machine may have open too, as Linux names them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is, and what that asks for.

    Attributes:
        file: the file itself, its links followed: what SQLite keeps beside it is named after it.
        journal: the journal to use there.
        warnings: what to know about the place.
    """

    file: Path
    journal: Journal
    warnings: tuple[StoreWarning, ...] = ()


def place_of(path: Path, journal: Journal) -> Place:
    """Return where a file is; it need not exist."""
    file = Path(os.path.realpath(path))
    return place_on(mount_of(file), path, file, journal)


def place_on(mount: Mount | None, path: Path, file: Path, journal: Journal) -> Place:
    """Return the place of a file, given as `path`, that is on a mount."""
    if mount is None:
        return Place(file, journal)
    if mount.point == file:
        warning = StoreWarning(
            "file-mounted-alone",
            "critical",
            f"{path} is mounted without its folder: what SQLite keeps beside it is not on that "
            "mount, and is lost with the container. It has a rollback journal therefore "
            "(journal='delete'), so that every acknowledged record is in the file itself; but if "
            "the container is killed in the middle of a commit and then removed, the file can be "
            "damaged. Mount the folder instead",
        )
        return Place(file, "delete", (warning,))
    if mount.file_system in _NETWORK and journal == "wal":
        warning = StoreWarning(
            "network-file-system",
            "warning",
            f"{path} is on a file system that other machines may share ({mount.file_system}), and "
            "a write-ahead log is for one machine alone: where several use the file, open it with "
            "journal='delete' on all of them",
        )
        return Place(file, journal, (warning,))
    return Place(file, journal)


def synchronous(connection: sqlite3.Connection, durability: Durability) -> str:
    """Return how a connection has to sync for commits to be as durable as asked.

    A commit with a rollback journal is the removal of the journal, which only EXTRA syncs; and
    after a power loss NORMAL could leave a damaged file there (https://sqlite.org/pragma.html).
    """
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    has_log = mode == "wal"
    if durability == "full":
        return "FULL" if has_log else "EXTRA"
    return "NORMAL" if has_log else "FULL"


def use_journal(
    connection: sqlite3.Connection, path: Path, journal: Journal, lock_timeout_s: float
) -> None:
    """Give a file this journal, if it has the other.

    Raises:
        StorageLocked: it has a write-ahead log, and others have it open.
        StorageError: its file system can't have a write-ahead log.
    """

    # On a fresh file this statement ignores SQLite's own waiting, hence ours.
    def switch() -> str:
        mode: str
        (mode,) = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        return mode

    try:
        mode = wait_for_lock(switch, lock_timeout_s)
    except sqlite3.OperationalError as error:
        if journal == "delete" and is_locked(error):
            raise StorageLocked(
                f"{path} has a write-ahead log, and others have it open: a rollback journal "
                "(journal='delete') can take its place only while nobody else has. Close it there "
                "and try again"
            ) from error
        raise
    if mode != journal:
        raise StorageError(
            f"{path} cannot have a write-ahead log (its journal_mode stays {mode!r}): put it on a "
            "local file system, or open it with journal='delete'"
        )
