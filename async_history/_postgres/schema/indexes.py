# mypy: disable-error-code=import-untyped
"""Making an index of PostgreSQL while everybody reads and writes.

A script says `CREATE INDEX name_next4 ON …` on one line of its own, and gives the index its name in
a later statement. The number is the script's, so that no other script means the same index.

CREATE INDEX CONCURRENTLY can't be in a transaction, and it waits for each that has begun before it:
whoever waited for a lock meanwhile would be waited for in turn. So there is no lock for who makes
an index. What several processes do at the same time is seen in the catalog, and done again.
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
"""Of other roles' work only the database is shown."""
_TWICE: Final = """
SELECT id FROM {schema}.history GROUP BY id HAVING pg_catalog.count(*) > 1 ORDER BY id LIMIT 3
"""
_CONCURRENTLY: Final = "tuple concurrently "
"""What the server says, in no other language, of a catalog that two change at once."""
_ASK_AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Index:
    """An index that a script makes. `kind` is INDEX or UNIQUE INDEX, `how` its columns."""

    kind: str
    name: str
    table: str
    how: str


def indexes_in(script: str) -> list[Index]:
    """Return the indexes that a script makes and gives a name later."""
    return [Index(**found.groupdict()) for found in _CREATE.finditer(script)]


def without_indexes(script: str) -> str:
    """Return the rest of the script."""
    return _CREATE.sub("", script)


async def make(connection: Any, schema: str, index: Index) -> None:
    """Make an index, outside of a transaction, unless it is there and valid.

    Args:
        schema: the quoted schema.

    Raises:
        MigrationError: an id is there twice. Nothing is left behind.
    """
    table = f"{schema}.{index.table}"
    while True:
        if await connection.fetchval(_IS_BEING_MADE, table):
            await asyncio.sleep(_ASK_AGAIN_S)
            continue
        is_valid = await connection.fetchval(_IS_VALID, f"{schema}.{index.name}")
        if is_valid:
            return
        if is_valid is not None:  # it died in the middle
            await drop(connection, schema, index)
        try:
            await _alone(
                connection, f"CREATE {index.kind} CONCURRENTLY {index.name} ON {table} {index.how}"
            )
        except asyncpg.DuplicateTableError:
            await asyncio.sleep(_ASK_AGAIN_S)  # somebody began just before
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
    """Drop an index, outside of a transaction, if it is there."""
    while await connection.fetchval(_IS_VALID, f"{schema}.{index.name}") is not None:
        await _alone(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{index.name}")


async def _alone(connection: Any, statement: str) -> None:
    """Run a statement, unless others who run the same come between."""
    try:
        await connection.execute(statement)
    except (asyncpg.DeadlockDetectedError, asyncpg.InternalServerError) as error:
        is_deadlock = isinstance(error, asyncpg.DeadlockDetectedError)
        if not is_deadlock and _CONCURRENTLY not in str(error):
            raise
        await asyncio.sleep(uniform(0, _ASK_AGAIN_S))  # noqa: S311 - lest they meet again
