# mypy: disable-error-code=import-untyped
"""Creation of a migration's indexes in PostgreSQL while others read and write.

A script has `CREATE INDEX name_next4 ON …` on a separate line, and renames the index in a later
statement. The number is that of the script, so that the indexes of scripts have different names.

CREATE INDEX CONCURRENTLY can't run in a transaction, and it waits for each transaction that began
before it. A process that waited for a lock in a transaction would block it. So no lock protects the
creation: processes that create the same index find it in the catalog, and retry.
"""

import asyncio
import re
from dataclasses import dataclass
from random import uniform
from typing import Any, Final

import asyncpg

from async_history.errors import MigrationError

_CREATE: Final = re.compile(
    r"^CREATE (?P<kind>(?:UNIQUE )?INDEX) (?P<name>\w+_next\d+) ON (?P<table>\w+) (?P<how>.+);$",
    re.MULTILINE,
)
_IS_VALID: Final = """
SELECT indisvalid FROM pg_catalog.pg_index
WHERE indexrelid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
"""
_IS_BEING_MADE: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_stat_progress_create_index AS made
    WHERE made.datname = pg_catalog.current_database() AND (
        made.relid IS NULL
        OR made.relid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
    )
)
"""
"""For other roles' processes the view shows only the database."""
_TWICE: Final = """
SELECT id FROM {schema}.history GROUP BY id HAVING pg_catalog.count(*) > 1 ORDER BY id LIMIT 3
"""
_CONCURRENTLY: Final = "tuple concurrently "
"""The server's message if two sessions change a catalog row at once. It is never translated."""
ASK_AGAIN_S: Final = 0.2
"""Pause in seconds before a migration tries again what waits for others."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index that a script creates. `kind` is INDEX or UNIQUE INDEX; `how` is its columns."""

    kind: str
    name: str
    table: str
    how: str


def indexes_in(script: str) -> list[Index]:
    """Return the indexes that a script creates and renames later."""
    return [Index(**found.groupdict()) for found in _CREATE.finditer(script)]


def without_indexes(script: str) -> str:
    """Return a script without the statements that create these indexes."""
    return _CREATE.sub("", script)


async def make(connection: Any, schema: str, index: Index) -> None:
    """Create an index, outside of a transaction, unless it exists and is valid.

    Args:
        schema: the quoted schema.

    Raises:
        MigrationError: several records have the same id. The index was dropped.
    """
    table = f"{schema}.{index.table}"
    while True:
        if await connection.fetchval(_IS_BEING_MADE, table):
            await asyncio.sleep(ASK_AGAIN_S)
            continue
        is_valid = await connection.fetchval(_IS_VALID, f"{schema}.{index.name}")
        if is_valid:
            return
        if is_valid is not None:  # its creation was interrupted
            await drop(connection, schema, index)
        try:
            await _alone(
                connection, f"CREATE {index.kind} CONCURRENTLY {index.name} ON {table} {index.how}"
            )
        except asyncpg.DuplicateTableError:
            await asyncio.sleep(ASK_AGAIN_S)  # another process has just begun
        except asyncpg.UniqueViolationError as error:
            await drop(connection, schema, index)
            rows = await connection.fetch(_TWICE.format(schema=schema))
            twice = [record_id for (record_id,) in rows]
            raise MigrationError(
                f"{table} has records of several memories under one id, such as "
                f"{', '.join(twice)} (an older version let them in by `add_in_transaction`); give "
                "all but one of each another id, with UPDATE, and open it again"
            ) from error


async def drop(connection: Any, schema: str, index: Index) -> None:
    """Drop an index, outside of a transaction, if it exists."""
    while await connection.fetchval(_IS_VALID, f"{schema}.{index.name}") is not None:
        await _alone(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{index.name}")


async def _alone(connection: Any, statement: str) -> None:
    """Run a statement; ignore conflicts with sessions that run the same one."""
    try:
        await connection.execute(statement)
    except (asyncpg.DeadlockDetectedError, asyncpg.InternalServerError) as error:
        is_deadlock = isinstance(error, asyncpg.DeadlockDetectedError)
        if not is_deadlock and _CONCURRENTLY not in str(error):
            raise
        await asyncio.sleep(uniform(0, ASK_AGAIN_S))  # noqa: S311 - not at the same time again
