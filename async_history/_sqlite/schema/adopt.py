"""Adoption: bringing any SQLite file of mem0 to the current layout, in one transaction.

Records that must be rewritten are compared row by row before the old tables are dropped.
"""

import contextlib
import logging
import os
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from async_history._core.operations.operations import at_its_end, new_operation
from async_history._core.operations.progress import StepProgress
from async_history._core.options import JOURNALS, Journal
from async_history._core.validation import (
    check_choice,
    check_flag,
    check_function,
    check_seconds,
    file_path,
)
from async_history._core.wording import counted
from async_history._sqlite import index
from async_history._sqlite.connecting.errors import (
    absolute,
    connect,
    file_size,
    read_snapshot,
    typed_errors,
    wait_for_lock,
)
from async_history._sqlite.connecting.files import remove
from async_history._sqlite.connecting.fork import using_sqlite
from async_history._sqlite.connecting.journal import location_of, use_journal
from async_history._sqlite.connecting.readonly import (
    ReadOnlyFile,
    read_with_retry,
    require_writable,
)
from async_history._sqlite.operations import enter, move_erasures
from async_history._sqlite.schema import layouts, lone_rows
from async_history._sqlite.schema.file_copy import back_up, check_free_space
from async_history._sqlite.schema.layouts import HistoryTables
from async_history._sqlite.schema.rewrite import COPIED_ROWS, rewrite
from async_history._sqlite.schema.versions import VERSION, create_statements

_logger = logging.getLogger("async_history")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionReport:
    """The report of an adoption, or of a dry run."""

    path: str | None
    """The file; None for a database in memory."""
    done: bool
    """False for a dry run: nothing was changed."""
    sources: tuple[str, ...] = ()
    """The tables that the records came from and their layouts, like `history (mem0 0.0.2)`."""
    records: int = 0
    """Records in the file; 0 if it was ready already."""
    rewritten: bool = False
    """Whether the records were rewritten to the current layout."""
    backup: str | None = None
    """The path of the copy made before; None if nothing was rewritten or no copy was wanted."""
    left_out_columns: tuple[str, ...] = ()
    """Columns that the current layout does not have, as `table.column`. The backup has them."""
    left_out_objects: tuple[str, ...] = ()
    """Indexes and triggers of other programs on a replaced table. The backup has them."""

    def outcome(self) -> str:
        """Return the outcome as one paragraph of text."""
        where = self.path or "the database in memory"
        if not self.rewritten:
            verb = "is" if self.done else "can be"
            return f"{where} {verb} used as it is: no record has to be rewritten."
        verb = ("was" if self.records == 1 else "were") if self.done else "would be"
        text = (
            f"{where}: {counted(self.records, 'record')} of {', '.join(self.sources)} {verb} "
            "rewritten to mem0's ten columns."
        )
        if left_out := self.left_out_columns + self.left_out_objects:
            text += f" Not kept, because that layout has no place for them: {', '.join(left_out)}."
        if self.backup:
            text += f" A copy of the old file: {self.backup}."
        return text


def prepare(
    connection: sqlite3.Connection,
    path: Path | None,
    *,
    backup: bool = True,
    lock_timeout_s: float = 30.0,
    on_progress: StepProgress | None = None,
    copied_rows: int = COPIED_ROWS,
) -> AdoptionReport:
    """Bring a file to the current layout and index it, in one transaction, or leave it unchanged.

    The connection must be in autocommit mode; `path` is its file, None for a database in memory.
    Records are rewritten only if their layout requires it, `copied_rows` per statement, after a
    copy of the file was made next to it (`<name>.before-adoption-<UTC>.bak`, mode 0600).

    Raises:
        MigrationError: the layout is unknown or newer, two tables disagree about a record, or the
            disk has too little free space.
        sqlite3.Error: the driver failed, or the lock was not free within `lock_timeout_s`.
    """
    name = str(path) if path else None
    if wait_for_lock(lambda: is_prepared(connection), lock_timeout_s):
        return AdoptionReport(path=name, done=True)
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), lock_timeout_s)
    copy = None
    report = AdoptionReport(path=name, done=True)
    try:
        if is_prepared(connection):  # by another process, while we waited
            connection.execute("ROLLBACK")
            return report
        if _is_current(connection):  # only records were added or removed
            index.build(connection)
        else:
            found, report = _plan(connection, path, backup=backup)
            if report.records and report.rewritten and backup and path:
                copy = back_up(path, on_progress)
            _change(connection, found, report, on_progress, copied_rows)
    except BaseException:
        _roll_back(connection)
        if copy:
            remove(copy)
        raise
    _commit(connection, lock_timeout_s)
    report = replace(report, done=True, backup=str(copy) if copy else None)
    if report.rewritten:
        left_out = report.left_out_columns + report.left_out_objects
        _logger.log(logging.WARNING if left_out else logging.INFO, report.outcome())
    return report


def rebuild(connection: sqlite3.Connection, lock_timeout_s: float) -> None:
    """Rebuild the index of a file of the current layout, in its own transaction."""
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), lock_timeout_s)
    try:
        check_version(connection)
        _migrate(connection)
    except BaseException:
        _roll_back(connection)
        raise
    _commit(connection, lock_timeout_s)


def is_prepared(connection: sqlite3.Connection) -> bool:
    """Return, without a lock, whether the file has our version and can be written as it is."""
    return index.is_ready(connection, VERSION) and layouts.keeps_values(connection)


def _is_current(connection: sqlite3.Connection) -> bool:
    return index.is_current(connection, VERSION) and layouts.keeps_values(connection)


def check_version(connection: sqlite3.Connection) -> None:
    """Check that no newer version of this library has written the file.

    Raises:
        MigrationError: this library's tables in it have a later version than `VERSION`.
    """
    version = index.index_version(connection)
    if version is not None and version > VERSION:
        raise layouts.migration_error(
            connection,
            f"its side tables have version {version}, this async_history knows {VERSION}",
            "upgrade async_history",
        )


def compatibility_view(connection: sqlite3.Connection) -> str | None:
    """Return a SELECT that reads an old layout as the current one; None if `history` is current.

    It returns `rowid` and the current ten columns, for a temporary view `history`.

    Raises:
        MigrationError: as for `prepare`.
    """
    with read_snapshot(connection):
        check_version(connection)
        found = layouts.find(connection)
        if found.sources and not found.needs_rewriting:
            return None
        _check_agreement(connection, found)
        return found.select


def adopt(
    path: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    backup: bool = True,
    on_progress: StepProgress | None = None,
    lock_timeout_s: float = 30.0,
    journal: Journal = "wal",
) -> AdoptionReport:
    """Adopt a file now: bring its tables up to date and index its records; return a report.

    A refused file is not changed at all. An adopted one also gets its journal.

    Args:
        path: the file.
        dry_run: only report what would be done, and change nothing.
        backup: copy the file first if its records must be rewritten.
        on_progress: called with the name of a step, the amount done and the total.
        lock_timeout_s: seconds to wait for the locks of others.
        journal: the journal of an adopted file from then on: "wal" or "delete".

    Raises:
        MigrationError: as for `prepare`.
        InvalidInput: an argument is not valid; the message names it.
        StorageError: the file does not exist, is not a database, is locked, …
    """

    def plan(open_read_only: ReadOnlyFile) -> AdoptionReport:
        open_read_only.connection.execute("BEGIN")
        if is_prepared(open_read_only.connection):
            return AdoptionReport(path=str(file), done=True)
        return _plan(open_read_only.connection, file, backup=backup)[1]

    file = absolute(file_path("path", path))
    check_flag("dry_run", dry_run)
    check_flag("backup", backup)
    check_function("on_progress", on_progress)
    check_seconds("lock_timeout_s", lock_timeout_s)
    check_choice("journal", journal, JOURNALS)
    with typed_errors(str(file), written=file), using_sqlite():
        file_size(file)
        location = location_of(file, journal)
        report = read_with_retry(lambda: ReadOnlyFile(location.file), plan, lock_timeout_s)
        if dry_run or report.done:
            return report
        require_writable(location.file, location.journal)
        with contextlib.closing(connect(location.file, "rw")) as connection:
            use_journal(connection, location.file, location.journal, lock_timeout_s)
            return prepare(
                connection,
                file,
                backup=backup,
                lock_timeout_s=lock_timeout_s,
                on_progress=on_progress,
            )


def _plan(
    connection: sqlite3.Connection, path: Path | None, *, backup: bool
) -> tuple[HistoryTables, AdoptionReport]:
    check_version(connection)
    found = layouts.find(connection)
    report = AdoptionReport(
        path=str(path) if path else None,
        done=False,
        sources=tuple(source.label for source in found.sources),
        rewritten=found.needs_rewriting,
    )
    if not found.sources:
        return found, report
    (records,) = connection.execute(f"SELECT count(*) FROM ({found.select})").fetchone()
    report = replace(report, records=records)
    if not found.needs_rewriting:
        return found, report
    _check_agreement(connection, found)
    if path and records:
        check_free_space(connection, path, backup=backup)
    return found, replace(
        report,
        left_out_columns=found.left_out_columns(connection),
        left_out_objects=found.left_out_objects(connection),
    )


def _change(
    connection: sqlite3.Connection,
    found: HistoryTables,
    report: AdoptionReport,
    on_progress: StepProgress | None,
    copied_rows: int,
) -> None:
    if report.rewritten:
        rewrite(connection, found, report.records, on_progress, copied_rows)
    for source in found.empty:
        connection.execute(f"DROP TABLE main.{source.table}")
    is_first = index.index_version(connection) is None
    _migrate(connection)
    if report.records and (is_first or report.rewritten):
        tables = {"tables": report.sources, "rewritten": report.rewritten}
        enter(connection, at_its_end(new_operation("adopt", tables), report.records, 0))


def _commit(connection: sqlite3.Connection, lock_timeout_s: float) -> None:
    try:
        wait_for_lock(lambda: connection.execute("COMMIT"), lock_timeout_s)
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    """Roll back, and leave no rollback journal: a file that is moved without it would be damaged.

    SQLite ends a transaction by itself when the disk is full. What it had written to the file by
    then it removes when the file is read next.
    """
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA schema_version").fetchone()


def _check_agreement(connection: sqlite3.Connection, found: HistoryTables) -> None:
    record_id = found.conflict(connection)
    if record_id is not None:
        tables = ", ".join(source.table for source in found.sources)
        raise layouts.migration_error(
            connection,
            f"the record {record_id} is there more than once, with different values ({tables})",
            "delete the wrong one",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Create the current tables and index all rows; log the migration of an older version."""
    version = index.index_version(connection)
    is_same_history = index.is_same_history(connection)
    index.remove_obstacles(connection)
    lone_rows.renumber_rows(connection)
    for statement in create_statements():
        connection.execute(statement)
    move_erasures(connection)
    for statement in index.begin_statements(VERSION):
        connection.execute(statement)
    index.remove_orphans(connection, is_same_history=is_same_history)
    index.build(connection)
    if version is not None and version < VERSION:
        migration = new_operation("migrate", {"from_version": version, "to_version": VERSION})
        enter(connection, at_its_end(migration, 0, 0))
