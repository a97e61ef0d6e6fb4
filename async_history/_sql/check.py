"""The check of a history in any SQL database: its numbers, owners, indexes, marks and spans."""

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, Table, func, inspect, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex

from async_history._core.records.owners import SCOPES
from async_history._core.wording import counted
from async_history._sql.check_lists import faults_of_lists
from async_history._sql.dialects import begin_snapshot
from async_history._sql.tables import Tables


async def faults_of(connection: AsyncConnection, tables: Tables, *, has_ledger: bool) -> list[str]:
    """Check the numbers, the owners and the indexes; return a sentence for each fault."""
    history, owners, state = tables.history, tables.owners, tables.state
    await begin_snapshot(connection)
    found: list[str] = []
    newest = (await connection.execute(select(func.max(history.c.seq)))).scalar()
    last = (await connection.execute(select(state.c.last))).scalar()
    if last is None:
        found.append(f"The table {state.name} has lost its row: restore it from a backup.")
    elif newest is not None and newest > last:
        found.append(
            f"The newest record has the number {newest:,}, and the next one would get "
            f"{last + 1:,}: set {state.name}.last to {newest}."
        )
    found += await _faults_of_state(connection, tables)
    differ = or_(*(history.c[name].is_distinct_from(owners.c[name]) for name in SCOPES))
    joined = history.outerjoin(owners, owners.c.memory_id == history.c.memory_id)
    others = (
        await connection.execute(select(func.count()).select_from(joined).where(differ))
    ).scalar_one()
    if others:
        records = counted(others, "record does", "records do")
        found.append(f"{records} not have their memory's owner.")
    checked = [*tables.metadata.sorted_tables]
    if has_ledger:
        checked += tables.ledger_metadata.sorted_tables
    found += await faults_of_lists(connection, tables)
    found += await connection.run_sync(lambda sync: list(_missing_indexes(sync, checked)))
    return found


async def _faults_of_state(connection: AsyncConnection, tables: Tables) -> list[str]:
    """Return the faults of the values of `state` but the number of the newest record."""
    state, owners, erased, messages = tables.state, tables.owners, tables.erased, tables.messages
    rows = (
        await connection.execute(select(state.c.last_message, state.c.version, state.c.erased_at))
    ).all()
    if not rows:
        return []
    ((last_message, version, erased_at),) = rows
    found: list[str] = []
    newest = (await connection.execute(select(func.max(messages.c.seq)))).scalar()
    if newest is not None and newest > last_message:
        found.append(
            f"The newest message has the number {newest:,}, and the next one would get "
            f"{last_message + 1:,}: set {state.name}.last_message to {newest}."
        )
    if version <= 0 and (await connection.execute(select(owners.c.memory_id).limit(1))).first():
        found.append(
            f"{state.name} says that no memory has an owner, so new records get none: set "
            f"{state.name}.version to {state.name}.last_version + 1, and that too."
        )
    latest = (await connection.execute(select(func.max(erased.c.at)))).scalar()
    if latest is not None and (erased_at is None or erased_at < latest):
        found.append(
            f"{state.name} does not know the last erasure, so late calls may record erased names "
            f"again: set {state.name}.erased_at to {latest}."
        )
    return found


def _missing_indexes(connection: Connection, tables: Iterable[Table]) -> Iterator[str]:
    """Yield a sentence for each index and primary key that a table lacks.

    An index with another name on the same columns, in the same order, counts too.
    """
    inspector = inspect(connection)
    for table in tables:
        key = inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
        wanted = [column.name for column in table.primary_key.columns]
        if key != wanted:
            yield f"{table.name} lacks its primary key ({', '.join(wanted)}): add it."
        there = [
            (index["column_names"], bool(index["unique"]))
            for index in inspector.get_indexes(table.name, schema=table.schema)
        ]
        for index in sorted(table.indexes, key=lambda one: str(one.name)):
            names = [column.name for column in index.columns]
            if (names, True) in there or (not index.unique and (names, False) in there):
                continue
            create = CreateIndex(index).compile(dialect=connection.dialect)
            yield f"The index {index.name} is missing: {create}."
