"""Creating the index of a SQLite file, filling it, and checking its version and state."""

import secrets
import sqlite3
from collections.abc import Iterator
from typing import Final

from async_history._sqlite import times
from async_history._sqlite.index.block_notes import note_blocks
from async_history._sqlite.index.levels import NEARLY_COMPLETE, add_functions
from async_history._sqlite.index.unindexed_tail import index_foreign_rows
from async_history._sqlite.index.validity import (
    CHUNKS_STAMP,
    HISTORY_TRIGGERS,
    INDEX_TABLES,
    LOWEST_ROWID,
    SCHEMA_UNCHANGED,
    SPANS_STAMP,
    STAMP,
    STAMP_KEY,
    UNDATED_STAMP,
)

_HAS_STATE: Final = "SELECT count(*) FROM main.sqlite_master WHERE name = 'async_history_state'"
_VERSION: Final = "SELECT max(version) FROM main.async_history_state"
_CONFLICTING_OBJECTS: Final = f"""
SELECT type, name FROM main.sqlite_master
WHERE type = 'trigger' AND name GLOB 'async_history_*'
    OR type = 'view' AND name IN ({", ".join("?" * len(INDEX_TABLES))})
"""
"""Triggers of any version of this library, on any table, and views with our tables' names."""


def has_index(connection: sqlite3.Connection) -> bool:
    """Return whether a file has an index of any version, even a damaged one."""
    (count,) = connection.execute(_HAS_STATE).fetchone()
    return bool(count)


def index_version(connection: sqlite3.Connection) -> int | None:
    """Return the version of a file's index; None if there is no index or it has no version."""
    if not has_index(connection):
        return None
    version: int | None
    (version,) = connection.execute(_VERSION).fetchone()
    return version


def is_current(connection: sqlite3.Connection, version: int) -> bool:
    """Return whether the index has this version and was built with this file and these tables."""
    return _holds(connection, SCHEMA_UNCHANGED, version)


def is_ready(connection: sqlite3.Connection, version: int) -> bool:
    """Return whether the index is current and complete enough to add records."""
    return _holds(connection, f"{SCHEMA_UNCHANGED} AND {NEARLY_COMPLETE}", version)


def _holds(connection: sqlite3.Connection, condition: str, version: int) -> bool:
    try:
        (holds,) = connection.execute(
            f"SELECT {condition} AND ({_VERSION}) = ?", (version,)
        ).fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table
            return False
        raise
    return bool(holds)


def remove_obstacles(connection: sqlite3.Connection) -> None:
    """Drop triggers and views whose names the current tables and triggers need."""
    for kind, name in connection.execute(_CONFLICTING_OBJECTS, INDEX_TABLES).fetchall():
        connection.execute(f'DROP {kind} main."{name}"')


def build(connection: sqlite3.Connection) -> None:
    """Index all unindexed rows, inside the caller's write transaction."""
    add_functions(connection)
    times.add_time_function(connection)
    index_foreign_rows(connection)
    note_blocks(connection)


def drop_statements() -> Iterator[str]:
    """Yield the statements that drop the index."""
    yield from (f"DROP TRIGGER IF EXISTS main.{trigger}" for trigger in HISTORY_TRIGGERS)
    yield from (f"DROP TABLE IF EXISTS main.{table}" for table in INDEX_TABLES)


def begin_statements(version: int) -> Iterator[str]:
    """Yield the statements that mark an empty index as belonging to this file's `history`."""
    schema_version = _new_schema_version()
    yield f"""
        INSERT INTO main.async_history_state
        SELECT 1, {version}, {schema_version}, master.rowid, rootpage, {LOWEST_ROWID}, NULL, 0,
            random() & {STAMP}, random() & {STAMP}, random() & {STAMP}, random() & {STAMP}
        FROM main.sqlite_master AS master WHERE type = 'table' AND lower(name) = 'history'
    """
    for level, stamp in (("recent", "recent"), ("middle", "lower"), ("settled", "lower")):
        yield f"""
            INSERT INTO main.async_history_{level} (memory, position)
            SELECT {STAMP_KEY}, {stamp}_stamp FROM main.async_history_state
        """
    for blocks, block in (("spans", SPANS_STAMP), ("chunks", CHUNKS_STAMP)):
        yield f"""
            INSERT INTO main.async_history_{blocks} (block, earliest, latest)
            SELECT {block}, '~' || block_stamp, '' FROM main.async_history_state
        """
    yield f"""
        INSERT INTO main.async_history_actors (block, actor_id, position)
        SELECT {CHUNKS_STAMP}, '', block_stamp FROM main.async_history_state
    """
    yield f"""
        INSERT INTO main.async_history_undated (position, dated_by)
        SELECT {UNDATED_STAMP}, block_stamp FROM main.async_history_state
    """
    yield f"PRAGMA main.schema_version = {schema_version}"


def mark_copied(connection: sqlite3.Connection, schema_version: int) -> None:
    """Mark the index in a copy of a whole file as valid there.

    SQLite gives a copy another `schema_version`; the argument is that of the original.
    """
    if not has_index(connection):
        return
    own = _new_schema_version()
    noted = connection.execute(
        "UPDATE async_history_state SET schema_version = ? WHERE schema_version = ?",
        (own, schema_version),
    )
    if noted.rowcount:
        connection.execute(f"PRAGMA schema_version = {own}")


def _new_schema_version() -> int:
    return (1 << 30) + secrets.randbelow(1 << 30)
