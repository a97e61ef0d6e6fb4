"""Creation of the tables, and checks of existing ones, also of those that a program has created."""

import json
from typing import Any, Final

from sqlalchemy import MetaData, Table, insert, inspect, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.operations.operations import StoreOperation, at_its_end, new_operation
from async_history._core.writing.erased_names import from_microseconds
from async_history._sql.dialects import set_up_alone
from async_history._sql.operations import log_within
from async_history._sql.tables import LAYOUT, PREFIX, Tables
from async_history._sql.transaction import version_step
from async_history.errors import MigrationError, StorageMissing

_ERASURES: Final = f"{PREFIX}erasures"
"""The log of erasures in version 1."""


async def require_current(connection: AsyncConnection, tables: Tables, where: str) -> None:
    """Check that the tables exist and have this version.

    Raises:
        StorageMissing: the tables do not exist.
        MigrationError: they have another version, or some of them, or the row of `state`, are lost.
    """
    layout = await _layout(connection, tables, where)
    way_out = "open it with create=True and migrate=True, or run `async-history migrate`"
    if layout is None:
        raise StorageMissing(f"{where} has no history: {way_out}")
    if layout < LAYOUT:
        raise MigrationError(
            f"{where} has tables of version {layout} and {LAYOUT} is needed: {way_out}"
        )


async def migrate(connection: AsyncConnection, tables: Tables, where: str) -> None:
    """Create missing tables, and upgrade older ones; one process at a time.

    Each step can be repeated, because some databases commit each CREATE TABLE.

    Raises:
        MigrationError: the tables have a newer version, or some of them, or the row of `state`, are
            lost.
    """
    if await _layout(connection, tables, where) == LAYOUT:
        return
    await connection.rollback()
    async with set_up_alone(connection, tables.metadata.schema):
        layout = await _layout(connection, tables, where)
        if layout == LAYOUT:
            await connection.commit()
            return
        schema = tables.metadata.schema
        if schema is not None and connection.dialect.name == "postgresql":
            quoted = connection.dialect.identifier_preparer.quote_schema(schema)
            await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
        await connection.run_sync(tables.metadata.create_all)
        if layout is not None:
            await _upgrade(connection, tables, layout)
            return
        try:
            async with connection.begin_nested():
                await connection.execute(insert(tables.state), _first_state())
        except IntegrityError:  # another process was faster; some databases have no lock for this
            pass
        await connection.commit()


def _first_state() -> dict[str, int | None]:
    """Return the row of `state` of new tables."""
    return {
        "id": 1,
        "layout": LAYOUT,
        "last": 0,
        "last_message": 0,
        "version": -version_step(),
        "last_version": 0,
        "erased_at": None,
    }


async def _upgrade(connection: AsyncConnection, tables: Tables, layout: int) -> None:
    """Move the log of erasures of version 1 into the log of operations."""
    schema = tables.metadata.schema
    log = log_within(connection, tables, None)  # a history of version 1 has no ledger
    if await connection.run_sync(lambda one: inspect(one).has_table(_ERASURES, schema=schema)):
        old = await connection.run_sync(
            lambda one: Table(_ERASURES, MetaData(schema=schema), autoload_with=one)
        )
        for row in (await connection.execute(select(old))).all():
            await log.begin(_erasure(row))
        await connection.commit()
        await connection.run_sync(old.drop)
    operation = new_operation("migrate", {"from_version": layout, "to_version": LAYOUT})
    await log.begin(at_its_end(operation, 0, 0))
    await connection.execute(update(tables.state).values(layout=LAYOUT))
    await connection.commit()


def _erasure(row: Any) -> StoreOperation:
    """Return an erasure of version 1 as an operation."""
    actor = {} if row.actor_sha256 is None else {"actor_id_sha256": row.actor_sha256}
    arguments = {"reason": row.reason, "memory_ids": json.loads(row.memory_ids), **actor}
    return StoreOperation(
        id=row.id,
        kind="erase",
        begun_at=from_microseconds(row.begun_at),
        ended_at=None if row.finished_at is None else from_microseconds(row.finished_at),
        arguments=arguments,
        records=row.records,
        messages=row.messages,
    )


async def has_ledger(connection: AsyncConnection, tables: Tables) -> bool:
    """Return whether the history has the tables of a ledger."""
    name, schema = tables.ledger.name, tables.metadata.schema
    return await connection.run_sync(lambda one: inspect(one).has_table(name, schema=schema))


async def make_ledger(connection: AsyncConnection, tables: Tables) -> None:
    """Create the tables of a ledger; one process at a time."""
    await connection.rollback()
    async with set_up_alone(connection, tables.metadata.schema):
        # `has_ledger` looks for the last one: some databases commit each CREATE TABLE.
        for table in (tables.ledger_names, tables.ledger_tiles, tables.ledger):
            await connection.run_sync(table.create, checkfirst=True)
        await connection.commit()


async def _layout(connection: AsyncConnection, tables: Tables, where: str) -> int | None:
    """Return the version of the tables; None where they are missing.

    Raises:
        MigrationError: the tables are newer than this library, or some of them, or the row of
            `state`, are lost.
    """
    state = tables.state
    layout = await _noted_layout(connection, tables)
    if layout is None:
        if not await _has_rows(connection, tables):
            return None
        layout = await _noted_layout(connection, tables)  # another process has just begun
    if layout is None:
        raise MigrationError(
            f"{where} has lost the row of {state.name}, without which the next record's number "
            "and the erased names are not known: restore it from a backup"
        )
    if layout > LAYOUT:
        raise MigrationError(
            f"{where} has tables of version {layout}, and this library knows {LAYOUT}: "
            "upgrade async-history"
        )
    there = {table.name for table in await _tables_there(connection, tables)}
    lost = sorted({table.name for table in tables.metadata.tables.values()} - there)
    if layout == LAYOUT and lost:
        raise MigrationError(
            f"{where} has lost {', '.join(lost)}: restore it from a backup; or, to begin an empty "
            f"history, drop {state.name} and the history's other tables, and open it again"
        )
    return layout


async def _noted_layout(connection: AsyncConnection, tables: Tables) -> int | None:
    if tables.state not in await _tables_there(connection, tables):
        return None
    layout: int | None = (await connection.execute(select(tables.state.c.layout))).scalar()
    return layout


async def _has_rows(connection: AsyncConnection, tables: Tables) -> bool:
    for table in await _tables_there(connection, tables):
        if (await connection.execute(select(literal(1)).select_from(table).limit(1))).first():
            return True
    return False


async def _tables_there(connection: AsyncConnection, tables: Tables) -> list[Table]:
    schema = tables.metadata.schema
    names = await connection.run_sync(lambda one: inspect(one).get_table_names(schema=schema))
    there = set(names)
    return [table for table in tables.metadata.tables.values() if table.name in there]
