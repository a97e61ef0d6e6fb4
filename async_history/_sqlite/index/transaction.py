"""A transaction in which every record of a SQLite file can be found through the index."""

import contextlib
import sqlite3
from collections.abc import Iterator

from async_history._sqlite.connection import fetched, transaction
from async_history._sqlite.index.levels import COMPLETE, index_foreign_rows


class IndexBehind(Exception):
    """Others replaced tables: nothing was written, the file must be prepared again first."""


@contextlib.contextmanager
def indexed_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction in which every record is indexed.

    Raises:
        IndexBehind: others replaced tables. Nothing was written.
    """
    with transaction(connection):
        if not _is_complete(connection):
            index_foreign_rows(connection)
            if not _is_complete(connection):
                raise IndexBehind
        yield


def _is_complete(connection: sqlite3.Connection) -> bool:
    ((is_complete,),) = fetched(connection, f"SELECT {COMPLETE}")
    return bool(is_complete)
