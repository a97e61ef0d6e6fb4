"""What is asked of PostgreSQL, and what the answers mean. Knows no connection.

Lives here: the SELECTs, and records, pages and messages made of their rows. Not here: which
connection runs them, and what happens when one fails.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, Final

from async_history.backends._postgres_rows import COLUMN_LIST, RECORD_COLUMNS, record_from_row
from async_history.errors import CursorGone
from async_history.migrations.postgres import in_schema
from async_history.queries import Cursor, Filter, PageRead, RowsRead, cut
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
_SCOPES: Final = """
SELECT DISTINCT session_scope FROM {schema}.messages WHERE session_scope > $1
ORDER BY session_scope LIMIT $2
"""
_FIRST_ROWS: Final = f"SELECT seq, {COLUMN_LIST} FROM {{schema}}.history ORDER BY seq LIMIT $1"  # noqa: S608 - constants
_NEXT_ROWS: Final = f"""
(SELECT seq, {COLUMN_LIST} FROM {{schema}}.history WHERE id = $1 AND seq = $2) UNION ALL
(SELECT seq, {COLUMN_LIST} FROM {{schema}}.history WHERE seq > $2 ORDER BY seq LIMIT $3)
"""  # noqa: S608 - constants
_INSTANTS: Final = """
SELECT id, occurred_at FROM {schema}.history
WHERE id = ANY($1::pg_catalog.text[]) AND occurred_at IS NOT NULL
"""
_SIZE: Final = """
SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(relation::pg_catalog.regclass))::bigint
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS relation
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

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return up to `limit` records that match, of `ahead` that are read."""
        sql, arguments = _page_sql(wanted, after, ahead)
        rows = list(await self._fetch(self._sql(sql), *arguments))
        if after is not None:
            _require_place(after, rows)
            del rows[0]
        return cut(rows, limit, _record_behind, itemgetter(0), is_last=len(rows) < ahead)

    async def count(self, wanted: Filter) -> int:
        """Return how many records match."""
        arguments = _Arguments()
        conditions = _matching(wanted, arguments)
        sql = f"SELECT pg_catalog.count(*) FROM {{schema}}.history{_where(conditions)}"  # noqa: S608 - constants
        ((count,),) = await self._fetch(self._sql(sql), *arguments)
        return int(count)

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return what follows a place in the order of recording."""
        if after is None:
            found = list(await self._fetch(self._sql(_FIRST_ROWS), limit))
        else:
            found = list(await self._fetch(self._sql(_NEXT_ROWS), after.id, after.position, limit))
            _require_place(after, found)
            del found[0]
        rows = [tuple(row[1:]) for row in found]
        place = Cursor(found[-1][0], rows[-1][0]) if rows else after
        return RowsRead(rows, place, is_last=len(rows) < limit)

    async def times_before(self, ids: Sequence[str]) -> Mapping[str, datetime]:
        """Return the instants of records that are known, by id."""
        return dict(map(tuple, await self._fetch(self._sql(_INSTANTS), list(ids))))

    async def newest(self) -> int | None:
        """Return the position of the newest record."""
        rows = await self._fetch(self._sql("SELECT pg_catalog.max(seq) FROM {schema}.history"))
        newest: int | None = rows[0][0]
        return newest

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, in the order they were saved."""
        kept = min(limit, MESSAGES_KEPT)
        rows = await self._fetch(self._sql(_LAST_MESSAGES), session_scope, kept)
        return [message_from_row(row) for row in rows]

    async def scopes(self, after: str, limit: int) -> list[str]:
        """Return the first session scopes behind `after`."""
        return [row[0] for row in await self._fetch(self._sql(_SCOPES), after, limit)]

    async def size(self) -> int:
        """Return the bytes of the tables and their indexes."""
        ((size,),) = await self._fetch(
            _SIZE, [f"{self._schema}.history", f"{self._schema}.messages"]
        )
        return int(size)


def _record_behind(row: Sequence[Any]) -> HistoryRecord:
    """Return the record of a row that begins with its place."""
    return record_from_row(row[1:])


def _require_place(place: Cursor, rows: Sequence[Sequence[Any]]) -> None:
    """Check that the first row is the one of this place."""
    if not rows or (rows[0][0], rows[0][1]) != (place.position, place.id):
        raise CursorGone(
            f"the record {place.id} this query stood behind is gone (a reset, a removal); "
            "start again without the cursor"
        )


class _Arguments(list[Any]):
    """What a statement takes, numbered as it is put into it."""

    def placeholder(self, value: object) -> str:
        """Take a value and return what stands for it."""
        self.append(value)
        return f"${len(self)}"


def _matching(wanted: Filter, arguments: _Arguments) -> list[str]:
    """Return the conditions that a filter means."""
    take = arguments.placeholder
    conditions: list[str] = []
    if wanted.memory_ids is not None:
        conditions.append(
            f"memory_id = {take(wanted.memory_ids[0])}"
            if len(wanted.memory_ids) == 1
            else f"memory_id = ANY({take(list(wanted.memory_ids))}::pg_catalog.text[])"
        )
    for name in ("actor_id", "role", "event"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = {take(str(value))}")
    if wanted.text is not None:
        text = take(wanted.text)
        found = [f"pg_catalog.strpos({name}, {text}) > 0" for name in ("old_memory", "new_memory")]
        conditions.append(f"({' OR '.join(found)})")
    for comparison, moment in ((">=", wanted.since), ("<", wanted.until)):
        if moment is not None:
            # As text: see `joined_columns`.
            instant = f"{take(moment.isoformat())}::pg_catalog.text::pg_catalog.timestamptz"
            conditions.append(f"occurred_at {comparison} {instant}")
    return conditions


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _page_sql(wanted: Filter, after: Cursor | None, limit: int) -> tuple[str, Sequence[Any]]:
    beyond, direction = (">", "ASC") if wanted.order == "oldest" else ("<", "DESC")
    arguments = _Arguments()
    conditions: list[str] = []
    if after is not None:
        arguments += [after.id, after.position]
        conditions.append(f"seq {beyond} $2")
    conditions += _matching(wanted, arguments)
    page = (
        f"(SELECT seq, {RECORD_COLUMNS} FROM {{schema}}.history{_where(conditions)}"  # noqa: S608 - constants
        f" ORDER BY seq {direction} LIMIT {arguments.placeholder(limit)})"
    )
    return (_PLACE if after is not None else "") + page, arguments
