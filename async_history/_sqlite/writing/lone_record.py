"""A single record with mem0's columns, added by the cheapest statement: a plain INSERT.

The statement for several records uses a view, and looks in the schema for triggers of the file's
owner. For one record that takes longer than the INSERT. This statement was compiled while the
schema was checked. SQLite would recompile it for a changed schema, but while it runs, its
connection refuses to compile.
"""

import contextlib
import sqlite3
from typing import Any, Final

from async_history._core.records.records import COLUMN_LIST, COLUMNS, Fields
from async_history._sqlite.connecting.connection import fetch_rows, transaction
from async_history._sqlite.index import (
    HAS_OWNERS,
    HAS_ROOM_IN_TAIL,
    INDEX_IS_OURS_ALONE,
    NONE_ERASED_SINCE,
)
from async_history._sqlite.key_statements import checking_keys, key_parameters
from async_history._sqlite.keys import SealedBatch
from async_history._sqlite.rows import parameters
from async_history._sqlite.writing.add import Noted

_IS_USUAL: Final = f"SELECT {INDEX_IS_OURS_ALONE}"
_ADD: Final = f"""
INSERT OR ABORT INTO main.history ({COLUMN_LIST}) SELECT {", ".join("?" * len(COLUMNS))}
WHERE {HAS_ROOM_IN_TAIL} AND NOT {HAS_OWNERS} AND {NONE_ERASED_SINCE}
"""


class LoneRecords:
    """Single records, added through one connection. To be used within `run`."""

    def __init__(self) -> None:
        self._is_usual = True
        self._is_compiled = False
        self._is_running = False

    def add(
        self,
        connection: sqlite3.Connection,
        record: Fields,
        noted: Noted,
        sealed: SealedBatch,
    ) -> bool:
        """Add a record, to be indexed later; return whether it was added.

        If not, nothing was written, because earlier records must be indexed first, memories have
        owners, the schema has changed, the file's owner has triggers (checked once), or the file
        lacks a key of the sealed record.

        Raises:
            sqlite3.IntegrityError: its id exists, or a constraint of the file's owner refuses it.
        """
        texts = None if sealed.values is None else next(sealed.values)
        sql, values = _ADD, (*parameters(record, texts), *noted)
        if sealed.keys:
            sql, values = checking_keys(sql), (*values, *key_parameters(sealed.keys))
        if self._is_compiled:
            return self._run(connection, sql, values)
        if self._is_usual:
            connection.set_authorizer(self._may_compile)
            is_within = connection.in_transaction
            with contextlib.nullcontext() if is_within else transaction(connection):
                ((self._is_usual,),) = fetch_rows(connection, _IS_USUAL)
                if self._is_usual:
                    self._is_compiled = True
                    return _execute(connection, sql, values)
        return False

    def _run(self, connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> bool:
        self._is_running = True
        try:
            return _execute(connection, sql, values)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_AUTH:
                raise
            self._is_compiled = False
            return False
        finally:
            self._is_running = False

    def _may_compile(self, *_: object) -> int:
        return sqlite3.SQLITE_DENY if self._is_running else sqlite3.SQLITE_OK


def _execute(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> bool:
    before = connection.total_changes
    connection.executemany(sql, (values,))
    return connection.total_changes > before
