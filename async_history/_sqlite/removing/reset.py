"""Resetting a file: all tables are dropped and created in one transaction."""

import sqlite3
from collections.abc import Iterator
from functools import partial

from async_history._core.ledger import changes
from async_history._core.operations.operations import StoreOperation, at_its_end
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.index import INDEX_NO_ROWS
from async_history._sqlite.keys import FileKeys
from async_history._sqlite.ledger import attest, place_next, write_program
from async_history._sqlite.operations import enter, row_count
from async_history._sqlite.schema.versions import install_statements, statements_in


async def reset(operation: StoreOperation, keys: FileKeys, connection: ThreadConnection) -> None:
    """Remove all records, messages and owners; enter the operation in the log."""
    while await connection.run(place_next):
        pass
    await connection.run(partial(_reset, operation, keys))


def _reset(operation: StoreOperation, keys: FileKeys, connection: sqlite3.Connection) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        there = [row_count(connection, table) for table in ("history", "messages")]
        attest(connection, changes.reset)
        for statement in _statements(connection):
            connection.execute(statement)
        keys.created(connection)
        enter(connection, at_its_end(operation, *there))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _statements(connection: sqlite3.Connection) -> Iterator[str]:
    for table in ("history", "messages", "async_history_owners", "async_history_details"):
        yield f"DROP TABLE IF EXISTS {table}"
    yield from install_statements()
    yield INDEX_NO_ROWS
    yield from statements_in(write_program(connection))
