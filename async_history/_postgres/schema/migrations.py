# mypy: disable-error-code=import-untyped
"""Migrations of PostgreSQL: numbered .sql files, each applied once, in one transaction.

A new schema gets all of them in one transaction. If there are records, the indexes of a script are
created before it, while others read and write (see `indexes`). The rest of the script is quick.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import resources
from time import monotonic
from typing import Any, Final

import asyncpg

from async_history._core.operations.operations import StoreOperation
from async_history._core.records.records import COLUMNS
from async_history._postgres.schema.columns import (
    LEDGER_COLUMNS,
    LEDGER_TABLE,
    OF_VERSION,
    column_faults,
)
from async_history._postgres.schema.indexes import (
    ASK_AGAIN_S,
    drop,
    indexes_in,
    make,
    without_indexes,
)
from async_history._postgres.schema.migration_log import log_migration, migration_from
from async_history._postgres.schema.names import quoted
from async_history._postgres.transaction import transaction
from async_history.errors import MigrationError, StorageLocked, StorageMissing

_log = logging.getLogger("async_history")

OLDEST_SERVER: Final = 13
"""The first version that has xid8 (https://www.postgresql.org/docs/13/release-13.html)."""
_ENCODINGS: Final = ("UTF8", "SQL_ASCII")
"""SQL_ASCII keeps all bytes. In another, one record's id could make a whole batch fail."""

_COLUMNS: Final = """
SELECT attname::pg_catalog.text, pg_catalog.format_type(atttypid, NULL) FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
WHERE nspname = $1 AND relname = $2
"""
"""It does not use to_regclass, which after waiting for the lock still answers from an old cache."""
_NAME_OF_ROLES: Final = "$user"
"""In a search path, even quoted, this means the schema with the role's name."""
TABLES: Final = {
    "history": 1,
    "messages": 1,
    "owners": 7,
    "owners_state": 7,
    "erased": 7,
    "operations": 9,
    "encryption": 10,
    "wrapping_keys": 10,
    "data_keys": 10,
}
"""The tables of a schema, without `migrations` and the ledger, by the version that adds them."""
_RELATIONS: Final = """
SELECT relname::pg_catalog.text FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = $1
"""
_HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)"
_LOCK_SCHEMA: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended('async_history ' || $1::pg_catalog.text, 0)
)
"""
_HAS_CITUS: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')"
_IS_DISTRIBUTED: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_dist_partition
    WHERE logicalrelid::pg_catalog.oid = pg_catalog.to_regclass($1)::pg_catalog.oid
)
"""
_NOT_WHERE_DISTRIBUTED: Final = {4, 11}
"""A unique key must contain the column by which a table is distributed, and such a table must not
have triggers."""
_SHORT_WAIT_MS: Final = 100
"""Short, because a session that waits for a table's lock blocks all later ones."""
_LAST_WAIT_MS: Final = 2_000
"""Longer than `deadlock_timeout`, after which an autovacuum gives way."""
SWITCH_WITHIN_S: Final = 60.0
"""Seconds to try to get a table's lock with short waits, before the last one."""
_NOTED: Final = {"version": "integer", "applied_at": "timestamp with time zone"}
_NOTES: Final = """
CREATE TABLE IF NOT EXISTS migrations (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)
"""


def limit_lock_wait(*, is_last: bool) -> str:
    """Return the statement that limits a transaction's waits for the locks of tables.

    Args:
        is_last: whether the transaction is not tried again.
    """
    return f"SET LOCAL lock_timeout TO {_LAST_WAIT_MS if is_last else _SHORT_WAIT_MS}"


def _scripts() -> dict[int, str]:
    folder = resources.files("async_history._postgres.schema")
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql") and file.name[0] == "0"),
        key=lambda file: file.name,
    )
    return {int(file.name[:4]): file.read_text(encoding="utf-8") for file in files}


SCRIPTS: Final = _scripts()
"""The text of each numbered file, by number. Read at import, so that the loop reads no files."""
LEDGER: Final = (resources.files(__package__) / "ledger.sql").read_text(encoding="utf-8")
"""Creates the tables that only a history with a ledger has."""
VERSION: Final = max(SCRIPTS)
"""The version of our tables."""


async def applied_version(connection: Any, schema: str) -> int:
    """Return the version of a schema's tables; 0 if there are none.

    Raises:
        MigrationError: the tables are newer than this library, the server is too old, the
            database's encoding lacks characters, the schema has another program's table with one of
            our names, or some tables or columns are lost or have other types.
    """
    server = connection.get_server_version()
    if server.major < OLDEST_SERVER:
        raise MigrationError(
            f"the server is PostgreSQL {server.major}; use {OLDEST_SERVER} or later"
        )
    encoding = getattr(connection.get_settings(), "server_encoding", _ENCODINGS[0])
    if encoding not in _ENCODINGS:
        raise MigrationError(
            f"the database's encoding is {encoding}, which lacks characters that texts may have; "
            "use a database in UTF8 (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)"
        )
    noted = dict(await connection.fetch(_COLUMNS, schema, "migrations"))
    if not noted:
        return 0
    if noted != _NOTED:
        raise _taken(schema, "migrations")
    version = await connection.fetchval(
        f"SELECT coalesce(pg_catalog.max(version), 0) FROM {quoted(schema)}.migrations"
    )
    if version > VERSION:
        if not await connection.fetch(_COLUMNS, schema, "history"):
            raise _taken(schema, "migrations")
        raise MigrationError(
            f"schema {schema!r} has version {version}, written by a newer async_history than this "
            f"(which knows {VERSION}): upgrade it here too"
        )
    there = {name for (name,) in await connection.fetch(_RELATIONS, schema)}
    lost = [name for name, since in TABLES.items() if since <= version and name not in there]
    if lost:
        raise MigrationError(
            f"schema {schema!r} has lost {', '.join(lost)}: restore it from a backup; or, to begin "
            "an empty history, drop the table migrations and the history's other tables in this "
            "schema, and open it again"
        )
    if version == OF_VERSION and (faults := await column_faults(connection, schema)):
        raise MigrationError(
            f"schema {schema!r} has changed columns: {'; '.join(faults)}. Change them back, or "
            "restore them from a backup; see the guide on PostgreSQL, Lost rows and columns"
        )
    return int(version)


def _taken(schema: str, table: str) -> MigrationError:
    return MigrationError(
        f"schema {schema!r} has a table {table} that is not async_history's; choose another schema"
    )


async def require_current(connection: Any, schema: str) -> None:
    """Check that nothing has to be migrated.

    Raises:
        StorageMissing: there is no schema.
        MigrationError: the schema has an older or a newer version.
    """
    version = await applied_version(connection, schema)
    way_out = "run `async-history migrate` as a role that may create tables"
    if not version:
        raise StorageMissing(f"there is no history in schema {schema!r}; {way_out}")
    if version < VERSION:
        raise MigrationError(
            f"schema {schema!r} has version {version} and {VERSION} is needed; {way_out}"
        )


async def has_citus(connection: Any) -> bool:
    """Return whether the database has the extension Citus."""
    return bool(await connection.fetchval(_HAS_CITUS))


async def is_distributed(connection: Any, schema: str, table: str = "history") -> bool:
    """Return whether a table is spread over the nodes of a Citus cluster."""
    if not await has_citus(connection):
        return False
    return bool(await connection.fetchval(_IS_DISTRIBUTED, f"{quoted(schema)}.{table}"))


async def migrate(
    connection: Any, schema: str, *, switch_within_s: float = SWITCH_WITHIN_S
) -> list[int]:
    """Migrate a schema, creating it if it is missing; return the versions applied, in order.

    It needs no privileges if nothing is missing. Others can read and write meanwhile, except for
    some milliseconds per version, and on Citus. After an interruption, call it again to continue.

    Args:
        switch_within_s: seconds to try to get the lock that applying a version needs.

    Raises:
        MigrationError: the schema is newer than this library, the role may not create tables, or
            two records have the same id.
        StorageLocked: others keep a table locked.
    """
    version = await applied_version(connection, schema)
    if version == VERSION:
        return []
    try:
        if version and not await is_distributed(connection, schema):
            applied = await _upgrade(connection, schema, version, switch_within_s)
        else:
            async with transaction(connection):
                applied = await _apply(connection, schema, migration_from(version))
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"schema {schema!r} needs its tables and this role may not make them ({error}); run "
            "`async-history migrate` as one that may"
        ) from error
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
        if await _are_ours(connection, schema):
            raise MigrationError(
                f"schema {schema!r} has the tables of a history, but no version in its table "
                "migrations, as after a restore without data: restore the whole backup; or, to "
                "begin an empty history, drop them, and open it again"
            ) from error
        raise MigrationError(
            f"schema {schema!r} has something of another's under a name that async_history's "
            f"tables need ({error}); choose another schema"
        ) from error
    if applied:
        _log.info("schema %r: applied version %s", schema, ", ".join(map(str, applied)))
    return applied


async def _are_ours(connection: Any, schema: str) -> bool:
    """Return whether a table `history` has the columns of the first version."""
    columns = {name for name, _ in await connection.fetch(_COLUMNS, schema, "history")}
    return {"seq", "xact", *COLUMNS} <= columns


async def _upgrade(connection: Any, schema: str, version: int, switch_within_s: float) -> list[int]:
    """Apply missing versions while others read and write."""
    applied: list[int] = []
    operation = migration_from(version)
    for number, script in sorted(SCRIPTS.items()):
        if not version < number <= VERSION:
            continue
        deadline = monotonic() + switch_within_s
        while True:
            began = monotonic()
            for index in indexes_in(script):
                await make(connection, quoted(schema), index)
            deadline += monotonic() - began
            is_last = monotonic() > deadline
            try:
                async with transaction(connection):
                    await connection.execute(limit_lock_wait(is_last=is_last))
                    applied += await _apply(connection, schema, operation, through=number)
                break
            except asyncpg.LockNotAvailableError as error:
                if is_last:
                    raise StorageLocked(
                        f"other transactions keep the tables of schema {schema!r} locked, so that "
                        f"version {number} can't be applied; end them (pg_stat_activity) and open "
                        "it again, what was done so far stays"
                    ) from error
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedObjectError):
                # Another migrating process dropped this index as an unfinished one.
                if is_last:
                    raise
            await asyncio.sleep(ASK_AGAIN_S)
        for index in indexes_in(script):  # created after another process had applied the script
            await drop(connection, quoted(schema), index)
    return applied


async def make_ledger(connection: Any, schema: str) -> None:
    """Create the tables of a ledger in a migrated schema, unless it has them.

    Raises:
        MigrationError: the role may not create tables, or one of their names is taken.
    """
    try:
        async with transaction(connection):
            await connection.execute(_LOCK_SCHEMA, schema)
            if await has_ledger(connection, schema):
                return
            async with _in_search_path(connection, schema) as name:
                await connection.execute(f"SET LOCAL search_path TO {quoted(name)}, pg_temp")
                await connection.execute(LEDGER)
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"schema {schema!r} needs the tables of a ledger and this role may not make them "
            f"({error}); open it with ledger=True once as one that may"
        ) from error
    except asyncpg.DuplicateTableError as error:
        raise MigrationError(
            f"schema {schema!r} has something of another's under a name that the ledger's tables "
            f"need ({error}); choose another schema"
        ) from error


async def has_ledger(connection: Any, schema: str) -> bool:
    """Return whether a schema has the tables of a ledger."""
    columns = await connection.fetch(_COLUMNS, schema, LEDGER_TABLE)
    return {name for name, _ in columns} >= LEDGER_COLUMNS


async def _apply(
    connection: Any, schema: str, operation: StoreOperation, *, through: int | None = None
) -> list[int]:
    """Apply missing versions, in the caller's transaction, and log it.

    Args:
        operation: the migration, for the log.
        through: the last version to apply, whose indexes already exist; None: all.
    """
    await connection.execute(_LOCK_SCHEMA, schema)
    version = await applied_version(connection, schema)
    last = VERSION if through is None else through
    if version >= last:
        return []
    # CREATE SCHEMA IF NOT EXISTS needs the privilege to create it even if it exists.
    if not await connection.fetchval(_HAS_SCHEMA, schema):
        await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
    left_out = _NOT_WHERE_DISTRIBUTED if await is_distributed(connection, schema) else set()
    async with _in_search_path(connection, schema) as name:
        await connection.execute(f"SET LOCAL search_path TO {quoted(name)}, pg_temp")
        await connection.execute(_NOTES)
        applied: list[int] = []
        for number, script in sorted(SCRIPTS.items()):
            if version < number <= last:
                if number not in left_out:
                    await connection.execute(script if through is None else without_indexes(script))
                await connection.execute("INSERT INTO migrations (version) VALUES ($1)", number)
                applied.append(number)
        is_covered = last == VERSION and await has_ledger(connection, name)
        await log_migration(connection, quoted(name), operation, last, is_covered=is_covered)
    return applied


@contextlib.asynccontextmanager
async def _in_search_path(connection: Any, schema: str) -> AsyncIterator[str]:
    """Rename a schema called `$user` during the body, so that a search path can name it."""
    if schema != _NAME_OF_ROLES:
        yield schema
        return
    name = f"async_history {schema}"
    await connection.execute(f"ALTER SCHEMA {quoted(schema)} RENAME TO {quoted(name)}")
    yield name
    await connection.execute(f"ALTER SCHEMA {quoted(name)} RENAME TO {quoted(schema)}")
