"""Byte-range locks on one file, shared by processes: one byte for each memory.

The kernel releases them when the process ends. The file stays empty and can be left in place. It is
never the database's own file, whose locks are SQLite's. If the file is removed, its locks are lost:
other processes create a new file.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from async_history._sqlite.connecting.mounts import mount_of
from async_history.mem0._turns import byte_locks
from async_history.mem0._turns.byte_locks import NONE, READ, WRITE, SetLock

_log = logging.getLogger("async_history")

SUFFIX: Final = "-turns"
"""Appended to the history's name to name the lock file."""
_ASKED: Final = 2**62
"""Offset from a memory's byte to the byte that a waiting process locks."""
_LONGEST_WAIT_S: Final = 0.002
"""Longest pause in seconds between two attempts to lock a byte: a release is not notified, and a
commit takes a millisecond."""


class FileLocks:
    """Implements `ProcessLocks` on one file.

    Args:
        path: the history's file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.longest_wait_s = _LONGEST_WAIT_S
        self._name = ""
        self._file: int | None = None
        self._set: SetLock = byte_locks.set_lock
        self._held: set[int] = set()
        self._lost: set[int] = set()
        self._process = os.getpid()

    def open(self) -> None:
        """Open the file, created if missing. It blocks. Idempotent."""
        if self._file is not None and self._process == os.getpid():
            return
        # The parent's file description holds the parent's locks: a forked child needs its own.
        self.close()
        self._process = os.getpid()
        if not byte_locks.HAS_LOCKS:
            return
        if not self._name:
            self._name = os.path.realpath(self._path) + SUFFIX
            mount = mount_of(Path(self._name))
            self._set = byte_locks.setter_for(None if mount is None else mount.file_system)
        try:
            self._file = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _log.warning(
                "%s can't be opened (%s): updates of one memory are serialized within this process "
                "only, and updates of other processes can come between them",
                self._name,
                error.strerror,
            )

    def take(self, number: int) -> bool:
        """Lock a byte; return False if another process has it. It does not wait."""
        if self._file is not None and not self._set(self._file, WRITE, number):
            return False
        self._held.add(number)
        return True

    def release(self, number: int) -> None:
        """Unlock a byte."""
        self._held.discard(number)
        if number in self._lost:
            self._lost.discard(number)
        elif self._file is not None and self._process == os.getpid():
            self._set(self._file, NONE, number)

    def ask_for(self, number: int, _: Callable[[], None]) -> None:
        """Signal to the process that holds a byte that this one waits for it."""
        if self._file is not None and byte_locks.HAS_SHARED_LOCKS:
            self._set(self._file, READ, number + _ASKED)

    def stop_asking(self, number: int) -> None:
        """Undo `ask_for`."""
        if self._file is not None and byte_locks.HAS_SHARED_LOCKS:
            self._set(self._file, NONE, number + _ASKED)

    def is_asked_for(self, number: int) -> bool:
        """Return whether another process waits for a byte."""
        if self._file is None:
            return False
        if not byte_locks.HAS_SHARED_LOCKS:
            return True  # it may be waiting
        return byte_locks.is_locked(self._file, number + _ASKED)

    def look(self) -> None:
        """Open a new file if the file was removed: the locks that are held are lost."""
        if self._file is not None and not os.fstat(self._file).st_nlink:
            self._lost |= self._held
            self.close()
            self.open()

    def is_lost(self, number: int) -> bool:
        """Return whether a lock that is held here is lost, because the file was removed."""
        return number in self._lost

    def reset_in_child(self) -> None:
        """Close the parent's file in a forked child, which would keep the parent's locks."""
        self.close()
        self._held.clear()
        self._lost.clear()

    def close(self) -> None:
        """Close the file, which releases its locks."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    __del__ = close
