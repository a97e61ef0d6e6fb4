"""Copying a file before its records are rewritten, and checking the free disk space for that."""

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from async_history._core.operations.progress import StepProgress
from async_history._sqlite.connecting.errors import connect, storage_error
from async_history._sqlite.connecting.files import remove, sync_folder
from async_history._sqlite.schema.layouts import migration_error
from async_history.errors import MigrationError

_COPY = ".before-adoption"
"""The suffix of the file's name in a copy's name."""
_SIDE_TABLES_BYTES = 1 << 20
"""An upper bound of the side tables' bytes in a small file."""
_COPIED_PAGES = 2_000
"""Pages between two reports of a backup's progress: 8 MB."""


def check_free_space(connection: sqlite3.Connection, path: Path, *, backup: bool) -> None:
    """Check that the disk has enough free space for rewriting the records.

    Measured at 300,000 records, in sizes of the old file: the log grows to 2.1 (if SQLite is built
    to overwrite freed pages, as Debian's is), the file by 1.1, and the copy takes 1.

    Raises:
        MigrationError: the space is not sufficient.
    """
    (size,) = connection.execute(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    ).fetchone()
    needed = size * (9 if backup else 7) // 2 + _SIDE_TABLES_BYTES
    free = shutil.disk_usage(path.resolve().parent).free
    if free < needed:
        raise migration_error(
            connection,
            f"rewriting its records needs {needed:,} bytes of disk space, {free:,} are free",
            "free some" + (", or do without the copy of the file (backup=False)" if backup else ""),
        )


def back_up(path: Path, on_progress: StepProgress | None) -> Path:
    """Copy the file into its folder and return the copy's path. The caller holds its write lock.

    Because of that lock, an existing unfinished copy is not in use and can be removed.
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
                progress=lambda _, left, pages: report_progress(
                    on_progress, "backup", pages - left, pages
                ),
            )
            target.execute("PRAGMA journal_mode = DELETE")  # one file, readable anywhere
        copy.replace(finished)
        sync_folder(file.parent)
    except BaseException as error:
        remove(copy)
        remove(finished)
        if not isinstance(error, OSError | sqlite3.Error):
            raise
        reason = storage_error(error, str(copy)) if isinstance(error, sqlite3.Error) else error
        raise MigrationError(
            f"{path}: it could not be copied first ({reason}); fix that, or do without the copy "
            "(backup=False). Nothing was changed."
        ) from error
    return finished


def adoption_copies(path: Path) -> tuple[str, ...]:
    """Return the copies of a file that were made before its records were rewritten."""
    file = path.resolve()
    side_file = sorted(str(each) for each in file.parent.iterdir())
    return tuple(each for each in side_file if each.startswith(f"{file}{_COPY}"))


def report_progress(on_progress: StepProgress | None, step: str, done: int, total: int) -> None:
    """Report progress, if the caller wants it."""
    if on_progress:
        on_progress(step, done, total)
