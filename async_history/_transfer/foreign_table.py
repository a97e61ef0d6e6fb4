"""Histories of other libraries in a table of PostgreSQL, as the source of a copy.

mem0-ts on Supabase: `memory_history`, with previous_value, new_value, action and two timestamptz
(mem0's repository, mem0-ts/src/oss/src/storage/SupabaseHistoryManager.ts). mem0-history-db-patch
1.0: `history` with mem0's ten columns, its times without a zone. Neither stores the order of
recording.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from async_history._core.records.records import COLUMNS, HistoryRecord
from async_history._core.records.rows import Row
from async_history._core.records.values import parse_time
from async_history._postgres.connecting.connect import connected
from async_history._postgres.connecting.url import server_url
from async_history._postgres.schema import quoted
from async_history._transfer.sources import PAGE_RECORDS, RecordSource
from async_history.errors import MigrationError, StorageMissing

_OTHER_NAMES: Final = {
    "old_memory": "previous_value",
    "new_memory": "new_value",
    "event": "action",
}
_TYPES: Final = dict.fromkeys(
    ("id", "memory_id", "old_memory", "new_memory", "event", "actor_id", "role"),
    "::pg_catalog.text",
)
_NEEDED: Final = ("id", "memory_id", "event")
_COLUMNS_THERE: Final = """
SELECT attname::pg_catalog.text FROM pg_catalog.pg_attribute
WHERE attrelid = pg_catalog.to_regclass($1)::pg_catalog.oid AND attnum > 0 AND NOT attisdropped
"""


class ForeignTable(RecordSource):
    """The records of a table that mem0-ts or mem0-history-db-patch keeps in PostgreSQL.

    They are ordered by time (the later of `created_at` and `updated_at`); at the same instant ADD
    comes first and DELETE last. Times become ISO 8601 text, with an offset only if they had one.
    The table is read in one read-only transaction, from one snapshot.

    Args:
        url: the database, as `open_history` takes it.
        table: the name of the table.
        schema: its schema; default: the one in the URL, or `public`.
    """

    def __init__(
        self, url: str, *, table: str = "memory_history", schema: str | None = None
    ) -> None:
        self._server = server_url(url)
        if schema is None:
            schema = self._server.options.get("schema", "public")
        self._name = f"{quoted(schema)}.{quoted(table, 'table')}"

    def __repr__(self) -> str:
        return f"<ForeignTable {self._name} in {self._server.where!r}>"

    async def pages(self, records: int = PAGE_RECORDS) -> AsyncIterator[Sequence[Row]]:
        """Yield the table's records.

        Raises:
            StorageMissing: the table does not exist.
            MigrationError: the table does not have the columns of a history.
            StorageError: the server cannot be reached, or refuses access.
        """
        async with (
            connected(self._server) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            cursor = await connection.cursor(await self._select(connection))
            while found := await cursor.fetch(records):
                yield [_row(one) for one in found]

    async def records(self, rows: Sequence[Row]) -> list[HistoryRecord]:
        """Return the records of rows. mem0-ts keeps the time of a DELETE in `created_at`."""
        records = await super().records(rows)
        for index, record in enumerate(records):
            if record.occurred_at is None:
                time = parse_time(record.updated_at or record.created_at or "")
                records[index] = replace(record, time_before=time)
        return records

    async def _select(self, connection: Any) -> str:
        there = {name for (name,) in await connection.fetch(_COLUMNS_THERE, self._name)}
        if not there:
            raise StorageMissing(f"{self._server.where} has no table {self._name}")
        columns = {}
        for column in COLUMNS:
            names = [name for name in (column, _OTHER_NAMES.get(column)) if name in there]
            columns[column] = names[0] if names else "NULL"
        missing = [column for column in _NEEDED if columns[column] == "NULL"]
        if missing:
            raise MigrationError(
                f"the table {self._name} is not a history of mem0: it has no {', '.join(missing)}"
            )
        return f"""
            SELECT {", ".join(f"{columns[one]}{_TYPES.get(one, '')}" for one in COLUMNS)}
            FROM {self._name}
            ORDER BY greatest({columns["created_at"]}, {columns["updated_at"]}) NULLS FIRST,
                CASE {columns["event"]}::pg_catalog.text
                    WHEN 'ADD' THEN 0 WHEN 'DELETE' THEN 2 ELSE 1
                END,
                id::pg_catalog.text COLLATE pg_catalog."C"
        """  # noqa: S608 - names of ours, and one that is quoted


def _row(found: Sequence[Any]) -> Row:
    *texts, created_at, updated_at, is_deleted, actor_id, role = found
    known = (*texts, _text(created_at), _text(updated_at), bool(is_deleted), actor_id, role)
    return *known, None, None, None


def _text(time: Any) -> str | None:
    return time.isoformat() if isinstance(time, datetime) else time
