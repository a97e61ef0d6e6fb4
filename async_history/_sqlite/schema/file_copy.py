"""The copy of a file that is made before its records are rewritten, and the room for it."""

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from async_history._core.progress import StepProgress
from async_history._sqlite.errors import connect
from async_history._sqlite.files import remove, sync_folder
from async_history._sqlite.schema.layouts import refusal
from async_history.errors import MigrationError

_COPY = ".before-adoption"
"""What a copy's name has behind the file's."""
_SIDE_TABLES_BYTES = 1 << 20
"""More than what the tables of our own take in a small file."""
_COPIED_PAGES = 2_000
"""Pages between two reports of a backup's progress: 8 MB."""


def check_room(connection: sqlite3.Connection, path: Path, *, backup: bool) -> None:
    """Refuse to start what the disk has no room for.

    Measured at 300,000 records, in sizes of the old file: the log grows to 2.1 (where SQLite is
    built to overwrite what it frees, as Debian's is), the file by 1.1, and the copy takes 1.
    """
    (size,) = connection.execute(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    ).fetchone()
    needed = size * (9 if backup else 7) // 2 + _SIDE_TABLES_BYTES
    free = shutil.disk_usage(path.resolve().parent).free
    if free < needed:
        raise refusal(
            connection,
            f"rewriting its records needs {needed:,} bytes of room beside it, {free:,} are free",
            "free some" + (", or do without the copy of the file (backup=False)" if backup else ""),
        )


def back_up(path: Path, on_progress: StepProgress | None) -> Path:
    """Copy the file beside itself and return where. The caller holds its write lock.

    The lock also says whose an unfinished copy is: nobody's any more.
    """
    file = path.resolve()
    copy = file.with_name(f"{file.name}{_COPY}.unfinished")
    finished = file.with_name(f"{file.name}{_COPY}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.bak")
    try:
        remove(copy)
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(connect(file, "ro")) as source, closing(connect(copy, "rw")) as target:
            source.backup(
                target,
                pages=_COPIED_PAGES,
                progress=lambda _, left, pages: tell(on_progress, "backup", pages - left, pages),
            )
            target.execute("PRAGMA journal_mode = DELETE")  # one file, readable anywhere
        copy.replace(finished)
        sync_folder(file.parent)
    except BaseException as error:
        remove(copy)
        remove(finished)
        if not isinstance(error, OSError | sqlite3.Error):
            raise
        raise MigrationError(
            f"{path}: no copy of it could be made ({error}); see to that, or do without the copy "
            "(backup=False). Nothing was changed."
        ) from error
    return finished


def copies_of(path: Path) -> tuple[str, ...]:
    """Return the copies of a file that were made before its records were rewritten."""
    file = path.resolve()
    beside = sorted(str(each) for each in file.parent.iterdir())
    return tuple(each for each in beside if each.startswith(f"{file}{_COPY}"))


def tell(on_progress: StepProgress | None, step: str, done: int, total: int) -> None:
    """Report progress to whoever asked for it."""
    if on_progress:
        on_progress(step, done, total)
