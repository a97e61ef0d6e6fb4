"""Make any SQLite file of mem0's ours: one transaction, checked row by row before anything goes."""

import logging
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from async_history._core.options import JOURNALS, Journal
from async_history._core.progress import StepProgress
from async_history._core.validation import (
    check_choice,
    check_flag,
    check_function,
    check_seconds,
    file_path,
)
from async_history._sqlite import index
from async_history._sqlite.errors import (
    absolute,
    as_of_one_moment,
    connect,
    file_size,
    typed_errors,
    wait_for_lock,
)
from async_history._sqlite.files import remove
from async_history._sqlite.fork import using_sqlite
from async_history._sqlite.journal import place_of, use_journal
from async_history._sqlite.readonly import Look, looked, require_writable
from async_history._sqlite.schema import layouts, lone_rows
from async_history._sqlite.schema.file_copy import back_up, check_room
from async_history._sqlite.schema.layouts import Found
from async_history._sqlite.schema.rewrite import COPIED_ROWS, rewrite
from async_history._sqlite.schema.versions import VERSION, install_statements

_logger = logging.getLogger("async_history")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionReport:
    """What an adoption did, or in a dry run would do."""

    path: str | None
    """The file; None of a database in memory."""
    done: bool
    """False of a dry run: nothing was changed."""
    sources: tuple[str, ...] = ()
    """The tables that the records came from and their layouts, like `history (mem0 0.0.2)`."""
    records: int = 0
    """Records of the file; 0 where it was ready already."""
    rewritten: bool = False
    """Whether the records were rewritten to today's layout."""
    backup: str | None = None
    """The path of the file as it was before; None where it was not rewritten, or by choice."""
    left_out_columns: tuple[str, ...] = ()
    """Columns that have no place in today's layout, as `table.column`. The backup has them."""
    left_out_objects: tuple[str, ...] = ()
    """Indexes and triggers of others on a replaced table. The backup has them."""

    def outcome(self) -> str:
        """Return the outcome as one paragraph for people."""
        where = self.path or "the database in memory"
        if not self.rewritten:
            verb = "is" if self.done else "can be"
            return f"{where} {verb} used as it is: no record has to be rewritten."
        one = self.records == 1
        verb = ("was" if one else "were") if self.done else "would be"
        text = (
            f"{where}: {self.records:,} record{'' if one else 's'} of "
            f"{', '.join(self.sources)} {verb} rewritten "
            "to mem0's ten columns."
        )
        if left_out := self.left_out_columns + self.left_out_objects:
            text += f" Without a place there: {', '.join(left_out)}."
        if self.backup:
            text += f" The file as it was: {self.backup}."
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
    """Bring a file to today's layout and index it, in one transaction, or leave it untouched.

    The connection is in autocommit mode; `path` names its file, None a database in memory.
    Records are rewritten only where their layout asks for it, after a copy of the file was made
    beside it (`<name>.before-adoption-<UTC>.bak`, mode 0600), `copied_rows` a statement.

    Raises:
        MigrationError: the layout is not known, or newer; two tables disagree about a record; or
            there is no room.
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
        if index.is_current(connection, VERSION):  # others only added or removed records
            index.build(connection)
        else:
            found, report = _plan(connection, path, backup=backup)
            if report.records and report.rewritten and backup and path:
                copy = back_up(path, on_progress)
            _change(connection, found, report, on_progress, copied_rows)
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself when the disk is full
            connection.execute("ROLLBACK")
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
    """Build the index of a file of today's layout anew, in a transaction of its own."""
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), lock_timeout_s)
    try:
        check_version(connection)
        _migrate(connection)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    _commit(connection, lock_timeout_s)


def is_prepared(connection: sqlite3.Connection) -> bool:
    """Tell, without a lock, whether the file is of our version and can be written as it is."""
    return index.is_ready(connection, VERSION)


def check_version(connection: sqlite3.Connection) -> None:
    """Refuse a file that a newer version of this library has written.

    Raises:
        MigrationError: our tables in it have a later version than `VERSION`.
    """
    version = index.index_version(connection)
    if version is not None and version > VERSION:
        raise layouts.refusal(
            connection,
            f"its side tables have version {version}, this async_history knows {VERSION}",
            "upgrade async_history",
        )


def as_is_view(connection: sqlite3.Connection) -> str | None:
    """Return how to read the file without changing it, None where `history` is as it should be.

    The SELECT gives `rowid` and today's ten columns; make a temporary view `history` of it.

    Raises:
        MigrationError: as for `prepare`.
    """
    with as_of_one_moment(connection):
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
    """Adopt a file now, or with `dry_run=True` report what that would do and change nothing.

    A file that is refused is not changed at all; one that is adopted is given its journal.

    Raises:
        MigrationError: as for `prepare`.
        InvalidInput: naming the argument that can't be used.
        StorageError: there is no such file, it is no database, it is locked, …
    """

    def plan(look: Look) -> AdoptionReport:
        look.connection.execute("BEGIN")
        if is_prepared(look.connection):
            return AdoptionReport(path=str(file), done=True)
        return _plan(look.connection, file, backup=backup)[1]

    file = absolute(file_path("path", path))
    check_flag("dry_run", dry_run)
    check_flag("backup", backup)
    check_function("on_progress", on_progress)
    check_seconds("lock_timeout_s", lock_timeout_s)
    check_choice("journal", journal, JOURNALS)
    with typed_errors(str(file)), using_sqlite():
        file_size(file)
        place = place_of(file, journal)
        report = looked(lambda: Look(place.file), plan, lock_timeout_s)
        if dry_run or report.done:
            return report
        require_writable(place.file, place.journal)
        with closing(connect(place.file, "rw")) as connection:
            use_journal(connection, place.file, place.journal, lock_timeout_s)
            return prepare(
                connection,
                file,
                backup=backup,
                lock_timeout_s=lock_timeout_s,
                on_progress=on_progress,
            )


def _plan(
    connection: sqlite3.Connection, path: Path | None, *, backup: bool
) -> tuple[Found, AdoptionReport]:
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
        check_room(connection, path, backup=backup)
    return found, replace(
        report,
        left_out_columns=found.left_out_columns(connection),
        left_out_objects=found.left_out_objects(connection),
    )


def _change(
    connection: sqlite3.Connection,
    found: Found,
    report: AdoptionReport,
    on_progress: StepProgress | None,
    copied_rows: int,
) -> None:
    if report.rewritten:
        rewrite(connection, found, report.records, on_progress, copied_rows)
    for source in found.empty:
        connection.execute(f"DROP TABLE main.{source.table}")
    _migrate(connection)


def _commit(connection: sqlite3.Connection, lock_timeout_s: float) -> None:
    try:
        wait_for_lock(lambda: connection.execute("COMMIT"), lock_timeout_s)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_agreement(connection: sqlite3.Connection, found: Found) -> None:
    record_id = found.conflict(connection)
    if record_id is not None:
        tables = ", ".join(source.table for source in found.sources)
        raise layouts.refusal(
            connection,
            f"the record {record_id} is there more than once, with different values ({tables})",
            "delete the wrong one of them",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Make today's tables, and index all rows anew."""
    index.remove_obstacles(connection)
    lone_rows.restore_memory(connection)
    for statement in install_statements():
        connection.execute(statement)
    index.build(connection)
