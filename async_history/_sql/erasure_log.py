"""The log of erasures."""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.erased_names import from_microseconds, microseconds
from async_history._core.erasure_log import Erasure
from async_history._sql.tables import Tables


class SqlErasureLog:
    """The log of erasures.

    Args:
        run: does work on a connection: in a transaction of its own, or inside one.
    """

    def __init__(
        self, tables: Tables, run: Callable[[Callable[[AsyncConnection], Awaitable[Any]]], Any]
    ) -> None:
        self._table = tables.erasures
        self._run = run

    async def begin(self, erasure: Erasure) -> None:
        """Enter an erasure that is not in the log."""
        table = self._table

        async def begin(connection: AsyncConnection) -> None:
            there = await connection.execute(select(table.c.id).where(table.c.id == erasure.id))
            if there.first() is None:
                await connection.execute(
                    insert(table).values(
                        id=erasure.id,
                        begun_at=microseconds(erasure.begun_at),
                        reason=erasure.reason,
                        memory_ids=json.dumps(erasure.memory_ids, ensure_ascii=False),
                        actor_sha256=erasure.actor_sha256,
                        records=0,
                        messages=0,
                    )
                )

        await self._run(begin)

    async def add(self, erasure_id: str, records: int, messages: int) -> None:
        """Add to an erasure's counts."""
        table = self._table

        async def add(connection: AsyncConnection) -> None:
            await connection.execute(
                update(table)
                .where(table.c.id == erasure_id)
                .values(records=table.c.records + records, messages=table.c.messages + messages)
            )

        await self._run(add)

    async def finish(self, erasure_id: str, finished_at: datetime) -> tuple[int, int] | None:
        """Note when an erasure was done; return its records and messages."""
        table = self._table

        async def finish(connection: AsyncConnection) -> Any:
            await connection.execute(
                update(table)
                .where(table.c.id == erasure_id)
                .values(finished_at=microseconds(finished_at))
            )
            return (
                await connection.execute(
                    select(table.c.records, table.c.messages).where(table.c.id == erasure_id)
                )
            ).first()

        row = await self._run(finish)
        return None if row is None else (int(row[0]), int(row[1]))


async def read_erasures(connection: AsyncConnection, tables: Tables) -> list[Erasure]:
    """Return the logged erasures, oldest first."""
    table = tables.erasures
    rows = await connection.execute(select(table).order_by(table.c.begun_at, table.c.id))
    return [
        Erasure(
            id=row.id,
            begun_at=from_microseconds(row.begun_at),
            finished_at=None if row.finished_at is None else from_microseconds(row.finished_at),
            reason=row.reason,
            memory_ids=tuple(json.loads(row.memory_ids)),
            actor_sha256=row.actor_sha256,
            records=row.records,
            messages=row.messages,
        )
        for row in rows
    ]
