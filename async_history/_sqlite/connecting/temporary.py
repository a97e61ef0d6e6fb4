"""Where SQLite keeps temporary data: large statements and sorts, and the copy that VACUUM makes."""

import os
import sqlite3
from typing import Final

_FOLDERS: Final = ("/var/tmp", "/usr/tmp", "/tmp", ".")  # noqa: S108 - not ours to choose


def use_temporary_folder(connection: sqlite3.Connection) -> None:
    """Keep temporary data in memory if SQLite would find no folder for it.

    Otherwise even a batch of 1,000 records fails in a container that may only write its volume.
    """
    if os.name == "posix" and not _has_temporary_folder():
        connection.execute("PRAGMA temp_store = MEMORY")


def _has_temporary_folder() -> bool:
    """Search as SQLite does (https://www.sqlite.org/tempfiles.html, section 5)."""
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"))
    return any(
        os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        for folder in (*filter(None, named), *_FOLDERS)
    )
