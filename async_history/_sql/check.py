"""The check of a history in any SQL database: its numbers and its owners."""

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.owners import SCOPES
from async_history._core.wording import counted
from async_history._sql.tables import Tables


async def faults_of(connection: AsyncConnection, tables: Tables) -> list[str]:
    """Check the numbers and the owners; return a sentence for each fault."""
    history, owners, state = tables.history, tables.owners, tables.state
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
    differ = or_(*(history.c[name].is_distinct_from(owners.c[name]) for name in SCOPES))
    joined = history.outerjoin(owners, owners.c.memory_id == history.c.memory_id)
    others = (
        await connection.execute(select(func.count()).select_from(joined).where(differ))
    ).scalar_one()
    if others:
        records = counted(others, "record does", "records do")
        found.append(f"{records} not have their memory's owner.")
    return found
