"""Makes the tables, or checks those that are there, a program's own migrations included."""

from sqlalchemy import insert, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._sql.dialects import set_up_alone
from async_history._sql.tables import LAYOUT, Tables
from async_history.errors import MigrationError, StorageMissing

_FIRST_STATE = {
    "id": 1,
    "layout": LAYOUT,
    "last": 0,
    "last_message": 0,
    "version": 0,
    "last_version": 0,
    "erased_at": None,
}


async def require_current(connection: AsyncConnection, tables: Tables, where: str) -> None:
    """Check that the tables are there, and of this version.

    Raises:
        StorageMissing: they are not there.
        MigrationError: they are of a newer version.
    """
    if not await _is_current(connection, tables, where):
        raise StorageMissing(
            f"{where} has no history: open it with create=True and migrate=True, or run "
            "`async-history migrate`"
        )


async def migrate(connection: AsyncConnection, tables: Tables, where: str) -> None:
    """Make the tables where they are missing; one process at a time.

    Raises:
        MigrationError: the tables are of a newer version.
    """
    if await _is_current(connection, tables, where):
        return
    await connection.rollback()
    async with set_up_alone(connection, tables.metadata.schema):
        if await _is_current(connection, tables, where):
            await connection.commit()
            return
        schema = tables.metadata.schema
        if schema is not None and connection.dialect.name == "postgresql":
            quoted = connection.dialect.identifier_preparer.quote_schema(schema)
            await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
        await connection.run_sync(tables.metadata.create_all)
        try:
            async with connection.begin_nested():
                await connection.execute(insert(tables.state), _FIRST_STATE)
        except IntegrityError:  # another process was faster: some databases have no lock for this
            pass
        await connection.commit()


async def _is_current(connection: AsyncConnection, tables: Tables, where: str) -> bool:
    """Return whether the tables are there.

    Raises:
        MigrationError: they are of another version.
    """
    state = tables.state
    schema = tables.metadata.schema
    if not await connection.run_sync(lambda one: inspect(one).has_table(state.name, schema=schema)):
        return False
    layout = (await connection.execute(select(state.c.layout))).scalar()
    if layout is not None and layout > LAYOUT:
        raise MigrationError(
            f"{where} has tables of version {layout}, and this library knows {LAYOUT}: "
            "upgrade async-history"
        )
    return layout is not None
