"""The check of a history in any SQL database: its numbers, owners, indexes, marks and spans."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from sqlalchemy import Column, Connection, Table, func, inspect, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex

from async_history._core.records.owners import SCOPES
from async_history._core.wording import counted
from async_history._sql.check_lists import faults_of_lists
from async_history._sql.check_values import is_whole
from async_history._sql.dialects import begin_snapshot
from async_history._sql.tables import Tables
from async_history._sql.transaction import version_step

_STATE: Final = ("last", "last_message", "version", "last_version", "erased_at")
_MOST: Final = (1 << 63) - 1
"""The greatest number. SQLite, which stores texts in any column, sorts them after it."""
_MEND_TIMES: Final = (
    "UPDATE {erased} SET at = (SELECT coalesce(erased_at, strftime('%s', 'now') * 1000000) "
    "FROM {state}) WHERE typeof(at) <> 'integer', and check again"
)


async def faults_of(connection: AsyncConnection, tables: Tables, *, has_ledger: bool) -> list[str]:
    """Check the numbers, the owners and the indexes; return a sentence for each fault."""
    history, owners = tables.history, tables.owners
    await begin_snapshot(connection)
    found = await _faults_of_state(connection, tables)
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
    """Return the faults of the values of `state`, and of those that it is compared with."""
    state = tables.state
    columns = [state.c[name] for name in _STATE]
    row = (await connection.execute(select(*columns))).first()
    if row is None:
        return [f"The table {state.name} has lost its row: restore it from a backup."]
    last, last_message, version, last_version, _ = row
    return [
        *await _faults_of_number(connection, tables.history, "record", state.c.last, last),
        *await _faults_of_number(
            connection, tables.messages, "message", state.c.last_message, last_message
        ),
        *await _faults_of_version(connection, tables, version, last_version),
        *await _faults_of_erasures(connection, tables, row.erased_at),
    ]


async def _faults_of_number(
    connection: AsyncConnection, table: Table, kind: str, column: Column[Any], last: Any
) -> list[str]:
    """Return the fault of the number of the newest record or message."""
    newest = int((await connection.execute(select(func.max(table.c.seq)))).scalar() or 0)
    if not is_whole(last):
        return [f"{column} is not a number: set {column} to {newest}."]
    if newest <= last:
        return []
    return [
        f"The newest {kind} has the number {newest:,}, and the next one would get {last + 1:,}: "
        f"set {column} to {newest}."
    ]


async def _faults_of_version(
    connection: AsyncConnection, tables: Tables, version: Any, last_version: Any
) -> list[str]:
    """Return the fault of the versions, which say whether writers know the owners."""
    state, owners = tables.state, tables.owners
    if not (is_whole(version) and is_whole(last_version)):
        known = [abs(one) for one in (version, last_version) if is_whole(one)]
        right = max(known, default=version_step()) + 1
        return [
            f"{state.name}.version or last_version is not a number, so writers do not know whether "
            f"owners have changed: set both to {right}."
        ]
    query = select(owners.c.memory_id).limit(1)
    if version > 0 or (await connection.execute(query)).first() is None:
        return []
    return [
        f"{state.name} says that no memory has an owner, so new records get none: set "
        f"{state.name}.version to {state.name}.last_version + 1, and that too."
    ]


async def _faults_of_erasures(
    connection: AsyncConnection, tables: Tables, erased_at: Any
) -> list[str]:
    """Return the faults of the times of erasures, by which late calls are refused."""
    state, erased = tables.state, tables.erased
    times = select(func.max(erased.c.at), func.count()).where(erased.c.at <= _MOST)
    latest, numbers = (await connection.execute(times)).one()
    everything = (await connection.execute(select(func.count()).select_from(erased))).scalar_one()
    found: list[str] = []
    is_damaged = erased_at is not None and not is_whole(erased_at)
    if is_damaged and latest is None:
        found.append(f"{state.c.erased_at} is not a number: set {state.c.erased_at} to NULL.")
    elif latest is not None and (is_damaged or erased_at is None or erased_at < latest):
        found.append(
            f"{state.name} does not know the last erasure, so late calls may record erased names "
            f"again: set {state.name}.erased_at to {latest}."
        )
    if others := everything - numbers:
        rows = counted(others, "row")
        mend = _MEND_TIMES.format(erased=erased.name, state=state.name)
        found.append(f"{erased.name} has {rows} whose time is not a number: {mend}.")
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
