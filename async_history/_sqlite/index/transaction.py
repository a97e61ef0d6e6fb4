"""A transaction in which every record of a SQLite file can be found through the index."""

import contextlib
import sqlite3
from collections.abc import Iterator

from async_history._sqlite.commit import IndexBehind, fetched, take_in_rows
from async_history._sqlite.connection import transaction
from async_history._sqlite.index.levels import COMPLETE


@contextlib.contextmanager
def indexed_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction in which every record is indexed.

    Raises:
        IndexBehind: others replaced tables. Nothing was written.
    """
    with transaction(connection):
        if not _is_complete(connection):
            take_in_rows(connection)
            if not _is_complete(connection):
                raise IndexBehind
        yield


def _is_complete(connection: sqlite3.Connection) -> bool:
    ((is_complete,),) = fetched(connection, f"SELECT {COMPLETE}")
    return bool(is_complete)
