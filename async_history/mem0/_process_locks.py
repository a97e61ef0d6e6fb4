"""Locks that processes take on one file: one byte for each memory, gone with the process.

The file itself stays empty and is harmless where it is left: what counts is the kernel's list of
locks. It is never the database's own file, whose locks are SQLite's. Whoever removes it takes its
locks away from those who hold them: others make a new one.
"""

import contextlib
import errno
import logging
import os
import struct
from collections.abc import Callable
from typing import Any, Final

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: turns hold within a process there
    fcntl = None

_log = logging.getLogger("async_history")

SUFFIX: Final = "-turns"
"""What the file is called: the history's name, and this."""
_TAKEN: Final = (errno.EACCES, errno.EAGAIN)
_OFD_SETLK: Final = getattr(fcntl, "F_OFD_SETLK", None)
"""Locks of an open file description (Linux 3.15): no other descriptor of the file drops them.

Without them they are the process's, and closing any descriptor of the file drops them: nobody but
this module opens it, and once a process.
"""
_READ, _WRITE, _NONE = (getattr(fcntl, name, 0) for name in ("F_RDLCK", "F_WRLCK", "F_UNLCK"))
_ASKED: Final = 2**62
"""How far behind a byte the one lies by which it is asked for."""
_LONGEST_WAIT_S: Final = 0.002
"""How often it is looked whether another process has finished, which nobody tells: a commit takes a
millisecond."""
_FLOCK: Final = struct.Struct("@hhqqi4x")
"""`struct flock`: type, whence, start, length, pid."""


class FileLocks:
    """A process's locks on one file, each on the byte of its number. See `ProcessLocks`.

    Args:
        path: the history that they are of.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.longest_wait_s = _LONGEST_WAIT_S
        self._name = ""
        self._file: int | None = None
        self._held: set[int] = set()
        self._lost: set[int] = set()
        self._process = os.getpid()

    def open(self) -> None:
        """Open the file, and make it where it is not there. Blocking; nothing if it is open."""
        if self._file is not None and self._process == os.getpid():
            return
        # What a parent opened is the parent's lock: a forked child needs a description of its own.
        self.close()
        self._process = os.getpid()
        if fcntl is None:
            return
        self._name = self._name or os.path.realpath(self._path) + SUFFIX
        try:
            self._file = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _log.warning(
                "%s can't be opened (%s): updates of one memory take turns within this process "
                "only, and those of other processes can come between",
                self._name,
                error.strerror,
            )

    def take(self, number: int) -> bool:
        """Take a byte, or return False where another process has it. Does not wait."""
        if self._is_removed:
            self._lost |= self._held
            self.close()
            self.open()
        if self._file is not None and not self._set(_WRITE, number):
            return False
        self._held.add(number)
        return True

    def leave(self, number: int) -> None:
        """Give a byte up."""
        self._held.discard(number)
        if number in self._lost:
            self._lost.discard(number)
        elif self._file is not None and self._process == os.getpid():
            self._set(_NONE, number)

    def ask_for(self, number: int, _: Callable[[], None]) -> None:
        """Let the process that has a byte know that it is waited for."""
        if self._file is not None and _OFD_SETLK is not None:
            self._set(_READ, number + _ASKED)

    def stop_asking(self, number: int) -> None:
        """Take `ask_for` back."""
        if self._file is not None and _OFD_SETLK is not None:
            self._set(_NONE, number + _ASKED)

    def is_asked_for(self, number: int) -> bool:
        """Whether another process waits for a byte."""
        if self._file is None:
            return False
        if _OFD_SETLK is None:
            return True  # nobody can tell
        wanted = _FLOCK.pack(_WRITE, os.SEEK_SET, number + _ASKED, 1, 0)
        found = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, wanted)
        return bool(_FLOCK.unpack(found)[0] != _NONE)

    def _set(self, kind: int, number: int) -> bool:
        try:
            if _OFD_SETLK is not None:
                fcntl.fcntl(self._file, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
            else:
                how = fcntl.LOCK_UN if kind == _NONE else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(self._file, how, 1, number)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def is_lost(self, number: int) -> bool:
        """Whether a byte that is held may be another's: the file was removed since."""
        return number in self._lost or self._is_removed

    @property
    def _is_removed(self) -> bool:
        return self._file is not None and not os.fstat(self._file).st_nlink

    def forget(self) -> None:
        """Close a forked child's descriptor of its parent's file, which would keep its locks."""
        self.close()
        self._held.clear()
        self._lost.clear()

    def close(self) -> None:
        """Close the file, and give up what is held in it."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    __del__ = close
