"""The differences between databases, in one place."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from sqlalchemy import ColumnElement, Select, and_, func, literal_column, select, text, update
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._sql.tables import Tables
from async_history.errors import InvalidInput, StorageError, StorageLocked

MYSQL: Final = ("mysql", "mariadb")
_SETUP_WAIT_S: Final = 60
"""Seconds that opening waits while another process creates the tables."""
_LEAST_PACKET: Final = 1 << 20
"""Drivers join rows into statements of up to 1,024,000 bytes."""
_NO_LIMIT: Final = (1 << 64) - 1
"""The default of `sql_select_limit`."""
_EMPTY_IS_NULL: Final = "EMPTY_STRING_IS_NULL"
"""A mode of MariaDB in which an empty text is stored as NULL."""
_PACKET_PART: Final = 0.9
"""The share of `max_allowed_packet` for texts; the rest of the statement needs space too."""
_AT_ONCE: Final = 500
"""Most values of one IN (...): Oracle allows 1,000, SQL Server 2,100 parameters in all."""

T = TypeVar("T")


def is_mysql(dialect: Dialect) -> bool:
    """Return whether the database is MySQL or MariaDB."""
    return dialect.name in MYSQL


def is_sqlite(dialect: Dialect) -> bool:
    """Return whether the database is SQLite."""
    return dialect.name == "sqlite"


def in_parts(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield values in lists that fit one statement."""
    given = list(values)
    for start in range(0, len(given), _AT_ONCE):
        yield given[start : start + _AT_ONCE]


def position(dialect: Dialect, column: Any, wanted: str) -> ColumnElement[int]:
    """Return the position of a text in a column, case-sensitive: 1 is the beginning, 0 nowhere."""
    if dialect.name == "postgresql":
        return func.strpos(column, wanted)
    if dialect.name == "mssql":
        return func.charindex(wanted, column.collate("Latin1_General_BIN2"))
    return func.instr(column, wanted)


def contains(dialect: Dialect, column: Any, wanted: str) -> ColumnElement[bool]:
    """Return the condition that a column contains a text, case-sensitive."""
    return position(dialect, column, wanted) > 0


def has_name(dialect: Dialect, column: Any, name: str) -> ColumnElement[bool]:
    """Return the condition that the first column of an index equals a name.

    On MySQL and MariaDB it is a range. Where a column equals a name, MariaDB sorts all rows that
    have it, or reads them from the last one. In a range, it starts where the next column's
    condition begins, and reads in the order of the index.
    """
    if is_mysql(dialect):
        return and_(column >= name, column <= name)
    return cast(ColumnElement[bool], column == name)


def part_of(dialect: Dialect, column: Any, begin: Any, length: int) -> ColumnElement[str]:
    """Return `length` characters of a column, from the position `begin`."""
    if dialect.name == "oracle":  # SUBSTR of a CLOB is one, which can't be compared
        return func.dbms_lob.substr(column, length, begin)
    take = func.substring if dialect.name == "mssql" else func.substr
    return take(column, begin, length)


def latest_committed(dialect: Dialect, statement: Select[Any]) -> Select[Any]:
    """Return a SELECT that sees the latest committed rows, at any isolation level.

    A transaction of MySQL may read from a snapshot older than its lock on `state`. A locking read
    does not.
    """
    return statement.with_for_update(read=True) if is_mysql(dialect) else statement


_LOCKING: Final = "BEGIN IMMEDIATE"
_SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
_SNAPSHOTS: Final = {
    "postgresql": f"{_SNAPSHOT}, READ ONLY",
    **dict.fromkeys(MYSQL, _SNAPSHOT),
}
_NO_IDLE_LIMIT: Final = "SET LOCAL idle_in_transaction_session_timeout TO 0"
"""Python hashes and compares what it has read in a snapshot, within a time limit of our own."""


async def begin_snapshot(connection: AsyncConnection) -> None:
    """Begin a transaction whose statements see one snapshot, if the database supports that."""
    begin = _SNAPSHOTS.get(connection.dialect.name)
    if is_sqlite(connection.dialect):
        await _begin_sqlite(connection, "BEGIN")
    elif begin is not None:
        await connection.exec_driver_sql(begin)
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(_NO_IDLE_LIMIT)


async def begin_write(connection: AsyncConnection) -> None:
    """Begin a transaction of our own that writes, where the driver would begin it too late."""
    if is_sqlite(connection.dialect):
        await _begin_sqlite(connection, _LOCKING)


async def _begin_sqlite(connection: AsyncConnection, begin: str) -> None:
    """Begin a transaction of our own, whatever the program's engine has begun instead.

    Python's driver begins one before INSERT, UPDATE and DELETE, or never. An engine may have an
    event that begins one, or connections that are always in one (`autocommit=False`).
    """
    if not connection.in_transaction():
        await connection.begin()  # so that the engine's event comes first
    if (await _driver_of(connection)).in_transaction:
        await connection.exec_driver_sql("ROLLBACK")
    await connection.exec_driver_sql(begin)


async def _driver_of(connection: AsyncConnection) -> Any:
    return (await connection.get_raw_connection()).driver_connection


async def claim(
    connection: AsyncConnection, tables: Tables, count: int, version: int, least: int
) -> int | None:
    """Lock `state` and reserve `count` numbers; return the last number before them.

    None if the version has changed, or the last number is below `least`. Then nothing was reserved.
    """
    state = tables.state
    dialect = connection.dialect
    claimed = (
        update(state)
        .where(state.c.id == 1, state.c.version == version, state.c.last >= least)
        .values(last=state.c.last + count)
    )
    if is_mysql(dialect):  # the result contains the new number, so no SELECT is needed
        claimed = claimed.values(last=func.last_insert_id(state.c.last + count))
        done = await connection.execute(claimed)
        return done.lastrowid - count if done.rowcount else None
    if dialect.update_returning:
        last = (await connection.execute(claimed.returning(state.c.last))).scalar()
        return None if last is None else int(last) - count
    if not (await connection.execute(claimed)).rowcount:
        return None
    return int((await connection.execute(select(state.c.last))).scalar_one()) - count


IN_AUTOCOMMIT: Final = (
    "the connection commits each statement by itself (isolation level AUTOCOMMIT); give one that "
    "has transactions"
)


async def require_transaction(connection: AsyncConnection) -> None:
    """Check that a program's connection does not commit each statement.

    On SQLite, also begin its transaction if the driver has not: otherwise the first savepoint would
    commit when it is released. PostgreSQL and others refuse savepoints outside a transaction: see
    `is_outside_transaction`.

    Raises:
        InvalidInput: the connection is in autocommit.
    """
    commits_each = False
    if is_mysql(connection.dialect):
        commits_each = bool((await connection.execute(text("SELECT @@autocommit"))).scalar())
    elif is_sqlite(connection.dialect):
        if not connection.in_transaction():
            await connection.begin()
        driver = await _driver_of(connection)
        if not driver.in_transaction:
            commits_each = driver.isolation_level is None
            if not commits_each:
                await connection.exec_driver_sql(_LOCKING)
    if commits_each:
        raise InvalidInput(IN_AUTOCOMMIT)


@asynccontextmanager
async def set_up_alone(connection: AsyncConnection, schema: str | None) -> AsyncIterator[None]:
    """Lock out others who set up the same tables, if the database has a lock for it."""
    dialect = connection.dialect
    if is_mysql(dialect):
        database = schema or (await connection.execute(text("SELECT DATABASE()"))).scalar() or ""
        digest = hashlib.blake2b(str(database).encode(), digest_size=16).hexdigest()
        name = {"name": f"async_history {digest}", "wait": _SETUP_WAIT_S}
        got = (await connection.execute(text("SELECT GET_LOCK(:name, :wait)"), name)).scalar()
        if got != 1:
            raise StorageLocked("another process has been creating the tables for a minute")
        try:
            yield
        finally:
            await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name["name"]})
        return
    if dialect.name == "postgresql":
        key = hashlib.blake2b(f"async_history {schema}".encode(), digest_size=8).digest()
        number = int.from_bytes(key, signed=True)
        await connection.execute(
            text("SELECT pg_catalog.pg_advisory_xact_lock(:key)"), {"key": number}
        )
    await begin_write(connection)
    yield


async def check_settings(connection: AsyncConnection, where: str) -> int | None:
    """Check the connection's settings; return the most bytes of a statement, None if unlimited.

    Raises:
        StorageError: with these settings, texts would be altered, results cut, or changes refused.
        InvalidInput: with these settings, nothing would be committed.
    """
    if is_sqlite(connection.dialect):
        await _require_commits(connection)
    if not is_mysql(connection.dialect):
        return None
    row = (
        await connection.execute(
            text(
                "SELECT @@character_set_client, @@character_set_connection, @@max_allowed_packet,"
                " @@sql_select_limit, @@sql_safe_updates, @@completion_type, @@sql_mode,"
                " coalesce(@@character_set_results, 'utf8mb4')"
            )
        )
    ).one()
    if {row[0], row[1], row[7]} != {"utf8mb4"}:
        raise StorageError(
            f"{where}: the connection's character set is not utf8mb4, and can't hold all texts; "
            "add charset=utf8mb4 to the URL"
        )
    if row[2] < _LEAST_PACKET:
        raise StorageError(
            f"{where}: max_allowed_packet is {row[2]:,} bytes; set it to {_LEAST_PACKET:,} or more"
        )
    for is_wrong, what, right in (
        (row[3] < _NO_LIMIT, "results would be cut without an error", "sql_select_limit = DEFAULT"),
        (row[4], "rows could not be changed without naming them", "sql_safe_updates = 0"),
        (row[5] != "NO_CHAIN", "a commit would begin or end something else", "completion_type = 0"),
        (
            _EMPTY_IS_NULL in row[6],
            "empty texts would be lost",
            f"sql_mode without {_EMPTY_IS_NULL}",
        ),
    ):
        if is_wrong:
            raise StorageError(
                f"{where}: with the settings of this connection {what}; set {right} for the role, "
                "the server or the engine"
            )
    return int(row[2] * _PACKET_PART)


async def _require_commits(connection: AsyncConnection) -> None:
    """Check that a commit ends SQLite's transaction, as it does not with `autocommit=True`."""
    driver = await _driver_of(connection)
    is_always_in_one = driver.in_transaction
    await _begin_sqlite(connection, "BEGIN")
    await connection.commit()
    if driver.in_transaction and not is_always_in_one:
        raise InvalidInput(
            "the engine's connections have autocommit=True, with which Python's driver never "
            "commits: leave it out, or use autocommit=False"
        )


def size_query(dialect: Dialect, tables: Tables, *, has_ledger: bool) -> Any:
    """Return the SELECT of the size of all tables in bytes; None if there is none."""
    all_tables = tables.metadata.sorted_tables
    if has_ledger:
        all_tables = [*all_tables, *tables.ledger_metadata.sorted_tables]
    names = [table.name for table in all_tables]
    schema = tables.metadata.schema
    if is_mysql(dialect):
        return (
            select(func.sum(literal_column("data_length + index_length")))
            .select_from(text("information_schema.tables"))
            .where(
                literal_column("table_name").in_(names),
                literal_column("table_schema")
                == (func.database() if schema is None else func.concat(schema)),
            )
        )
    if dialect.name == "postgresql":
        preparer = dialect.identifier_preparer
        quoted = [preparer.format_table(table) for table in all_tables]
        sizes = [func.pg_total_relation_size(name) for name in quoted]
        total: Any = sizes[0]
        for size in sizes[1:]:
            total = total + size
        return select(total)
    if dialect.name == "sqlite":
        return text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    return None
