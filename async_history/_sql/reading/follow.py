"""Following: reading the records committed after a position. Numbers are in commit order."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.reading.cursors import CursorCodec
from async_history._core.reading.follow_reads import FollowRead
from async_history._sql.connecting.connections import Connections
from async_history._sql.names import key_of
from async_history._sql.reading.read import require_position
from async_history._sql.rows import columns_read, record_from_row
from async_history._sql.tables import Tables

_CURSORS: Final = CursorCodec("sql", "follow on a history in a SQL database")


class FollowPosition(NamedTuple):
    """The position after the record `id`, whose number is `position`."""

    position: int
    id: str

    def __str__(self) -> str:
        return _CURSORS.text(*self)


class SqlFollowReader:
    """A reader of the records after a position."""

    def __init__(self, connections: Connections, tables: Tables) -> None:
        self._connections = connections
        self._tables = tables

    def position(self, cursor: str | None) -> FollowPosition | None:
        """Return the position of a cursor; None for the beginning."""

        def read(parts: Sequence[str | int | None]) -> FollowPosition | None:
            match parts:
                case [int(position), str(record_id)]:
                    return FollowPosition(position, record_id)
            return None

        return None if cursor is None else _CURSORS.parse(cursor, read)

    async def page(
        self, after: FollowPosition | None, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        """Return up to `limit` records after a position."""

        async def read(connection: AsyncConnection) -> tuple[FollowPosition | None, Sequence[Any]]:
            history = self._tables.history
            if after is not None:
                await require_position(connection, self._tables, *after)
            end = after
            if memory_id is not None:
                # The end is read first: records committed in between are read again, not skipped.
                end = await self._newest(connection) or after
            found = select(*columns_read(self._tables)).order_by(history.c.seq).limit(limit)
            if after is not None:
                found = found.where(history.c.seq > after.position)
            if memory_id is not None:
                found = found.where(history.c.memory_id == key_of(memory_id))
                found = found.where(history.c.seq <= (0 if end is None else end.position))
            return end, (await connection.execute(found)).all()

        end, rows = await self._connections.read(read)
        records = list(map(record_from_row, rows))
        positions = [
            FollowPosition(row[0], record.id) for row, record in zip(rows, records, strict=True)
        ]
        is_last = len(rows) < limit
        if positions and (memory_id is None or not is_last):
            end = positions[-1]
        return FollowRead(records, positions.__getitem__, end, is_last)

    async def _newest(self, connection: AsyncConnection) -> FollowPosition | None:
        history = self._tables.history
        row = (
            await connection.execute(
                select(*columns_read(self._tables)).order_by(history.c.seq.desc()).limit(1)
            )
        ).first()
        return None if row is None else FollowPosition(row[0], record_from_row(row).id)

    async def end(self) -> FollowPosition | None:
        """Return the position after all committed records."""
        return await self._connections.read(self._newest)

    async def mark(self) -> object:
        """Return a value that changes when a record is committed."""

        async def read(connection: AsyncConnection) -> object:
            state = self._tables.state
            row = (await connection.execute(select(state.c.last, state.c.version))).first()
            return None if row is None else tuple(row)

        return await self._connections.read(read)
