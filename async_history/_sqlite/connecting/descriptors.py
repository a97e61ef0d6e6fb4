"""The regular files that this process has open, by their descriptors."""

import contextlib
import os
import stat
from typing import Final

_MOST_DESCRIPTORS: Final = 4096
"""Descriptors to try if the system does not list the open ones."""

Identity = tuple[int, int]
"""A file's device and inode number."""


def identity_of(status: os.stat_result) -> Identity:
    """Return the identity of a file, independent of its name."""
    return status.st_dev, status.st_ino


def open_files() -> dict[Identity, list[int]]:
    """Return this process's open regular files and their descriptors."""
    found: dict[Identity, list[int]] = {}
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        descriptors = list(range(_MOST_DESCRIPTORS))
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                found.setdefault(identity_of(status), []).append(descriptor)
    return found
