"""The mount of a file, and its file system, on Linux."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TABLE: Final = Path("/proc/self/mountinfo")
"""https://www.kernel.org/doc/html/latest/filesystems/proc.html, section 3.5."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount point, and its file system such as `ext4` or `nfs4`."""

    point: Path
    file_system: str


def mount_of(path: Path) -> Mount | None:
    """Return the mount that an absolute path without links is on; None if the system can't say."""
    try:
        table = _TABLE.read_text("utf-8", "surrogateescape")
    except OSError:  # not Linux, or no /proc
        return None
    return mount_in(table, path)


def mount_in(table: str, path: Path) -> Mount | None:
    """Return the mount that a path is on, by the lines of `/proc/self/mountinfo`."""
    found: Mount | None = None
    for line in filter(None, table.split("\n")):  # a name may have other line ends
        fields, _, rest = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields.split(" ")[4]))
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and (found is None or point.is_relative_to(found.point)):
            found = Mount(point, rest.split(" ")[0])
    return found
