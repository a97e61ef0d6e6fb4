"""The copy of old tables' records into a new `history`, inside the caller's transaction.

The old tables are dropped only after each row of the new one was compared with them.
"""

import sqlite3
from collections.abc import Iterator

from async_history._core.operations.progress import StepProgress
from async_history._core.records.records import COLUMNS
from async_history._sqlite.schema.file_copy import report_progress
from async_history._sqlite.schema.layouts import HistoryTables, Source, migration_error

COPIED_ROWS = 10_000
"""Rows per statement. One takes some tens of milliseconds, so that progress is reported and an
interrupt takes effect."""

_LOWEST_ROWID = -(1 << 63)

_CREATE_NEW_TABLE = """
CREATE TABLE main.async_history_adopting (
    id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,
    created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT
)
"""


def rewrite(
    connection: sqlite3.Connection,
    found: HistoryTables,
    records: int,
    on_progress: StepProgress | None,
    copied_rows: int = COPIED_ROWS,
) -> None:
    """Replace the old tables by one `history` of the current layout, copying `copied_rows` at a
    time.

    Raises:
        MigrationError: a copied record differs from the original.
    """
    connection.execute(_CREATE_NEW_TABLE)
    _copy(connection, found, records, on_progress, copied_rows)
    report_progress(on_progress, "verify", 0, records)
    _verify(connection, found, records)
    report_progress(on_progress, "verify", records, records)
    for source in found.sources:
        connection.execute(f"DROP TABLE main.{source.table}")
    # Other programs' views name `history`: they must neither be rewritten nor block the rename.
    (legacy,) = connection.execute("PRAGMA legacy_alter_table").fetchone()
    connection.execute("PRAGMA legacy_alter_table = ON")
    try:
        connection.execute("ALTER TABLE main.async_history_adopting RENAME TO history")
    finally:
        connection.execute(f"PRAGMA legacy_alter_table = {legacy}")


def _copy(
    connection: sqlite3.Connection,
    found: HistoryTables,
    records: int,
    on_progress: StepProgress | None,
    copied_rows: int,
) -> None:
    rowid = "place" if found.is_plain else "NULL"
    columns = ", ".join(COLUMNS)
    merged = ", ".join(f"{column} = coalesce({column}, excluded.{column})" for column in COLUMNS)
    done = 0
    for source in found.sources:
        for after, last in _rowid_ranges(connection, source, copied_rows):
            done += connection.execute(
                f"""
                INSERT INTO main.async_history_adopting (rowid, {columns})
                SELECT {rowid}, {columns} FROM ({source.select})
                WHERE place > ? AND place <= ? ORDER BY place
                ON CONFLICT (id) DO UPDATE SET {merged}
                """,
                (after, last),
            ).rowcount
            report_progress(on_progress, "copy", min(done, records), records)


def _rowid_ranges(
    connection: sqlite3.Connection, source: Source, rows: int
) -> Iterator[tuple[int, int]]:
    """Yield, for each `rows` rows of a table, the rowid before the first and that of the last."""
    after = _LOWEST_ROWID
    while True:
        (last,) = connection.execute(
            f"""
            SELECT max(place) FROM (
                SELECT {source.rowid} AS place FROM main.{source.table}
                WHERE {source.rowid} > ? ORDER BY {source.rowid} LIMIT {rows}
            )
            """,
            (after,),
        ).fetchone()
        if last is None:
            return
        yield after, last
        after = last


def _verify(connection: sqlite3.Connection, found: HistoryTables, records: int) -> None:
    """Check that each new row is exactly equal to the old record, and in the same order."""
    same = " AND ".join(
        f"CAST(new.{column} AS TEXT) IS CAST(found.{column} AS TEXT)" for column in COLUMNS
    )
    there, wanted, right, wrong = connection.execute(
        f"""
        SELECT
            (SELECT count(*) FROM main.async_history_adopting),
            count(*),
            count(new.rowid),
            min(CASE WHEN new.rowid IS NULL THEN found.id END)
        FROM ({found.select}) AS found
        LEFT JOIN main.async_history_adopting AS new ON new.rowid = found.rowid AND {same}
        """
    ).fetchone()
    if not there == wanted == right == records:
        raise migration_error(
            connection,
            f"of {records:,} records, {right:,} were copied exactly"
            + (f", and {wrong} was not" if wrong is not None else ""),
            "report this to async_history's maintainers, with that record",
        )
