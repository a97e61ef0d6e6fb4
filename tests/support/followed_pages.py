"""A follower's records by pages that are smaller than what it missed."""

from async_history import HistoryRecord
from async_history._postgres.reading.cursors import FollowPosition, position_from_cursor
from async_history.postgres import PostgresHistoryManager


async def records_by_pages(
    history: PostgresHistoryManager, cursor: str | None, limit: int, memory_id: str | None = None
) -> list[HistoryRecord]:
    """Return all records after a cursor, which is kept as text between pages."""
    position: FollowPosition | None = None if cursor is None else position_from_cursor(cursor)
    found: list[HistoryRecord] = []
    while True:
        read = await history.store.follower.page(position, memory_id, limit)
        found += read.records
        position = None if read.end is None else position_from_cursor(str(read.end))
        if read.is_last:
            return found


async def texts_by_pages(
    history: PostgresHistoryManager, cursor: str | None, limit: int, memory_id: str | None = None
) -> list[str | None]:
    """Return the texts of `records_by_pages`."""
    records = await records_by_pages(history, cursor, limit, memory_id)
    return [record.new_memory for record in records]
