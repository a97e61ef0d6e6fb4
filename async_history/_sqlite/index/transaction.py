"""A write transaction in which every record of a SQLite file is indexed."""

import contextlib
import sqlite3
from collections.abc import Iterator

from async_history._sqlite.connecting.connection import fetch_rows, transaction
from async_history._sqlite.index.levels import COMPLETE
from async_history._sqlite.index.unindexed_tail import index_foreign_rows


class IndexOutdated(Exception):
    """Another process replaced tables. Nothing was written; the file must be prepared again."""


@contextlib.contextmanager
def indexed_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Begin a write transaction and index all rows; commit after the body.

    Raises:
        IndexOutdated: another process replaced tables. Nothing was written.
    """
    with transaction(connection):
        if not _is_complete(connection):
            index_foreign_rows(connection)
            if not _is_complete(connection):
                raise IndexOutdated
        yield


def _is_complete(connection: sqlite3.Connection) -> bool:
    ((is_complete,),) = fetch_rows(connection, f"SELECT {COMPLETE}")
    return bool(is_complete)
