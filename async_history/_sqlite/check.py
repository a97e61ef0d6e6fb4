"""The check of a SQLite file: its pages, its records, and each index entry."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from async_history._core.wording import counted
from async_history._sqlite.connecting.errors import connect, typed_errors, wait_for_lock
from async_history._sqlite.connecting.journal import location_of
from async_history._sqlite.connecting.readonly import (
    ReadOnlyFile,
    read_with_retry,
    require_writable,
)
from async_history._sqlite.index import (
    SCHEMA_UNCHANGED,
    IndexOutdated,
    has_index,
    index_version,
    is_current,
    unreadable_objects,
    wrong_entries,
)
from async_history._sqlite.opening import is_there, open_read_only
from async_history._sqlite.schema.adopt import compatibility_view, rebuild
from async_history._sqlite.schema.versions import VERSION

_MOST_FAULTS: Final = 10
"""Most lines of SQLite's own check that are reported."""

_IDS: Final = "SELECT count(*), count(id) FROM history"


def repair_file(path: Path, lock_timeout_s: float) -> None:
    """Rebuild the index of a file, if it has this library's layout.

    Raises:
        StorageReadOnly: this user may not write it. Nothing was left next to it.
    """
    is_there(path, create=False)
    file = location_of(path, "wal").file
    require_writable(file, None)
    with typed_errors(str(path), written=file), closing(connect(file, "rw")) as connection:
        if wait_for_lock(lambda: compatibility_view(connection), lock_timeout_s) is None:
            rebuild(connection, lock_timeout_s)


def faults_of_file(
    path: Path, lock_timeout_s: float, check: Callable[[sqlite3.Connection], list[str]]
) -> list[str]:
    """Return the faults that a check finds in a file; others may use the file."""

    def read(looking: ReadOnlyFile) -> list[str]:
        connection = looking.connection
        connection.execute("BEGIN")
        return check(connection)

    with typed_errors(str(path)):
        return read_with_retry(lambda: open_read_only(path), read, lock_timeout_s)


def faults_of(connection: sqlite3.Connection) -> list[str]:
    """Return the faults of a connection's database, one sentence each."""
    return list(_problems(connection))


def faults_of_indexed(connection: sqlite3.Connection) -> list[str]:
    """Return the same as `faults_of`, for a database whose index is not outdated.

    Raises:
        IndexOutdated: the index must be rebuilt first. Nothing was checked.
    """
    if not is_current(connection, VERSION):
        raise IndexOutdated
    return faults_of(connection)


def _problems(connection: sqlite3.Connection) -> Iterator[str]:
    faults = [
        fault
        for (fault,) in connection.execute(f"PRAGMA integrity_check({_MOST_FAULTS})")
        if fault != "ok"
    ]
    if faults:
        yield (
            f"The file is damaged: {'; '.join(faults)}. Recover it with the sqlite3 shell's "
            ".recover, or restore a backup."
        )
    records, named = connection.execute(_IDS).fetchone()
    if named < records:
        yield f"{counted(records - named, 'record has', 'records have')} no id: set one."
    yield from _problems_of_index(connection)


def _problems_of_index(connection: sqlite3.Connection) -> Iterator[str]:
    advice = "open it for writing, or check it with --repair: both rebuild the index."
    if not has_index(connection):
        return  # a file of mem0 that was not opened for writing yet
    version = index_version(connection)
    if version is not None and version != VERSION:
        return  # the next opening rebuilds it
    try:
        (is_untouched,) = connection.execute(f"SELECT {SCHEMA_UNCHANGED}").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        yield f"A table of the index is missing ({error}): {advice}"
        return
    yield from unreadable_objects(connection)
    if not is_untouched:
        yield (
            "The index does not belong to the file as it is now (it was restored, rebuilt or "
            f"vacuumed, or tables were changed): {advice}"
        )
        return
    for what, count, example in wrong_entries(connection):
        records = f"{counted(count, 'record')} can't be found by {what}, such as {example}"
        yield f"{records}: check the file with --repair."
