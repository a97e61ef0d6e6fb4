"""Setting locks on bytes of an open file, without waiting for other processes.

`fcntl.fcntl` releases the GIL. While threads are busy, one of them takes it, and the event loop
waits for it: that costs ten times as much as the lock, which the kernel grants or refuses in a
microsecond. So on a local file system, C's `fcntl` is called with the GIL held. On others, such as
a network's, a lock may take as long as a server's answer.
"""

import errno
import os
import platform
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: turns hold within a process there
    fcntl = None

HAS_LOCKS: Final = fcntl is not None
"""Whether the platform has locks on bytes."""
_OFD_SETLK: Final = getattr(fcntl, "F_OFD_SETLK", None)
HAS_SHARED_LOCKS: Final = _OFD_SETLK is not None
"""Whether locks belong to an open file description (Linux 3.15), and several can share a byte.

Elsewhere locks belong to the process, and closing any descriptor of the file drops them. So only
`process_locks` opens the file, once in a process.
"""
READ, WRITE, NONE = (getattr(fcntl, name, 0) for name in ("F_RDLCK", "F_WRLCK", "F_UNLCK"))
_TAKEN: Final = (errno.EACCES, errno.EAGAIN)
_FLOCK: Final = struct.Struct("@hhqqi4x")
"""`struct flock`: type, whence, start, length, pid."""
_LOCAL: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
)
"""File systems whose locks are only in this machine's memory, by their names in Linux."""
_ABIS: Final = ("aarch64", "x86_64")
"""Processors on which C's `fcntl`, which has a variable number of arguments, is called like other
functions. ctypes knows only these."""

SetLock = Callable[[int, int, int], bool]
"""Sets the lock on a byte: `READ`, `WRITE` or `NONE`. Returns False if another process has it.

Its arguments are the file's descriptor, the lock and the byte. It raises OSError for other errors.
"""


def setter_for(file_system: str | None) -> SetLock:
    """Return the function that sets locks on files of a file system.

    Args:
        file_system: its name in Linux, such as `ext4`; None if it is not known.
    """
    return (_setter_with_gil() if file_system in _LOCAL else None) or set_lock


def set_lock(file: int, kind: int, byte: int) -> bool:
    """Set a lock, without the GIL; see `SetLock`."""
    try:
        if _OFD_SETLK is not None:
            fcntl.fcntl(file, _OFD_SETLK, _flock(kind, byte))
        else:
            how = fcntl.LOCK_UN if kind == NONE else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(file, how, 1, byte)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _setter_with_gil() -> SetLock | None:
    """Return a function that sets a lock with the GIL held; None if the platform has none.

    In a 32-bit process, `fcntl` may have another `struct flock`.
    """
    if _OFD_SETLK is None or sys.maxsize < 1 << 32 or platform.machine() not in _ABIS:
        return None
    try:
        import ctypes

        c_fcntl = ctypes.PyDLL(None, use_errno=True).fcntl
    except (ImportError, OSError, AttributeError):  # built without ctypes, or linked statically
        return None
    c_fcntl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
    c_fcntl.restype = ctypes.c_int

    def set_lock_with_gil(file: int, kind: int, byte: int) -> bool:
        flock = _flock(kind, byte)
        sys.audit("fcntl.fcntl", file, _OFD_SETLK, flock)
        if c_fcntl(file, _OFD_SETLK, flock) == 0:
            return True
        if ctypes.get_errno() in _TAKEN:
            return False
        return set_lock(file, kind, byte)  # it raises the error, or a signal interrupted the call

    return set_lock_with_gil


def is_locked(file: int, byte: int) -> bool:
    """Return whether another process has a lock on a byte that excludes writing."""
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(WRITE, byte))
    return bool(_FLOCK.unpack(found)[0] != NONE)


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
