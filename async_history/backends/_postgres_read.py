"""What is asked of PostgreSQL, and what the answers mean. Knows no connection.

Lives here: the SELECTs, and records, pages and messages made of their rows. Not here: which
connection runs them, and what happens when one fails.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from async_history.backends._postgres_rows import RECORD_COLUMNS, record_from_row
from async_history.errors import CursorGone
from async_history.migrations.postgres import in_schema
from async_history.queries import Cursor, Filter, PageRead
from async_history.records import HistoryRecord, Message, message_from_row
from async_history.submissions import MESSAGES_KEPT

Fetch = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""Run one SELECT with its arguments."""

_HISTORY: Final = (
    f"SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE memory_id = $1 ORDER BY seq"  # noqa: S608 - constants
)
_LAST_MESSAGES: Final = """
SELECT id, role, content, name, created_at FROM (
    SELECT * FROM {schema}.messages WHERE session_scope = $1 ORDER BY seq DESC LIMIT $2
) AS last ORDER BY seq
"""
_SIZE: Final = """
SELECT sum(pg_total_relation_size(relation::regclass))::bigint,
       current_setting('synchronous_commit')
FROM unnest($1::text[]) AS relation
"""
_PLACE: Final = f"""
(SELECT seq, {RECORD_COLUMNS} FROM {{schema}}.history WHERE id = $1 AND seq = $2) UNION ALL
"""  # noqa: S608 - constants
"""The record a cursor stands behind, in front of those that follow it: one round trip for both."""


class HistoryReader:
    """Answers the contract's questions through a function that runs one SELECT.

    Args:
        schema: the quoted schema.
    """

    def __init__(self, fetch: Fetch, schema: str) -> None:
        self._fetch = fetch
        self._schema = schema

    def _sql(self, statement: str) -> str:
        return in_schema(statement, self._schema)

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first."""
        return [record_from_row(row) for row in await self._fetch(self._sql(_HISTORY), memory_id)]

    async def page(self, wanted: Filter, after: Cursor | None, limit: int) -> PageRead:
        """Return up to `limit` records that match, and the place of the last."""
        sql, arguments = _page_sql(wanted, after, limit)
        rows = list(await self._fetch(self._sql(sql), *arguments))
        if after is not None:
            if not rows or (rows[0][0], rows[0][1]) != (after.position, after.id):
                raise CursorGone(
                    f"the record {after.id} this query stood behind is gone (a reset, a removal); "
                    "start again without the cursor"
                )
            del rows[0]
        records = [record_from_row(row[1:]) for row in rows]
        place = Cursor(rows[-1][0], records[-1].id) if rows else after
        return PageRead(records, place, is_last=len(rows) < limit)

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, in the order they were saved."""
        kept = min(limit, MESSAGES_KEPT)
        rows = await self._fetch(self._sql(_LAST_MESSAGES), session_scope, kept)
        return [message_from_row(row) for row in rows]

    async def size(self) -> tuple[int, str]:
        """Return the bytes of the tables and their indexes, and `synchronous_commit`."""
        ((size, durability),) = await self._fetch(
            _SIZE, [f"{self._schema}.history", f"{self._schema}.messages"]
        )
        return size, durability


def _page_sql(wanted: Filter, after: Cursor | None, limit: int) -> tuple[str, list[Any]]:
    arguments: list[Any] = []

    def placeholder(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    beyond, direction = (">", "ASC") if wanted.order == "oldest" else ("<", "DESC")
    conditions: list[str] = []
    if after is not None:
        arguments += [after.id, after.position]
        conditions.append(f"seq {beyond} $2")
    for name in ("memory_id", "actor_id", "role", "event"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = {placeholder(str(value))}")
    for comparison, moment in ((">=", wanted.since), ("<", wanted.until)):
        if moment is not None:
            # As text: see `joined_columns`.
            instant = f"{placeholder(moment.isoformat())}::text::timestamptz"
            conditions.append(f"occurred_at {comparison} {instant}")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    page = (
        f"(SELECT seq, {RECORD_COLUMNS} FROM {{schema}}.history {where}"  # noqa: S608 - constants
        f" ORDER BY seq {direction} LIMIT {placeholder(limit)})"
    )
    return (_PLACE if after is not None else "") + page, arguments
