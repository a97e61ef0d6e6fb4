"""What is asked of a SQLite file, and what the answers mean. Knows no connection.

Lives here: the SELECTs, and records, pages and messages made of their rows. Not here: which
connection runs them, and what happens when one fails.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any, Final

from async_history.backends._sqlite_rows import COLUMN_LIST, history_from_rows, record_from_row
from async_history.errors import CursorGone
from async_history.memory_index import POSITIONS, memory_key
from async_history.queries import Cursor, Filter, PageRead
from async_history.records import HistoryRecord, Message, message_from_row

Fetch = Callable[[str, Mapping[str, Any]], Awaitable[Sequence[Sequence[Any]]]]

BY_MEMORY: Final = f"memory_id = :memory_id AND rowid IN ({POSITIONS})"
"""SQL condition of one memory's records, through the memory index."""
BY_MEMORY_WITHOUT_INDEX: Final = "memory_id = :memory_id"

_MAX_ROWID: Final = (1 << 63) - 1
_OWN_TIME: Final = "CASE event WHEN 'ADD' THEN created_at ELSE updated_at END"
_SLACK: Final = timedelta(seconds=1)
"""SQLite's julianday cuts to milliseconds: it narrows the rows down, Python decides."""

_LAST_MESSAGES: Final = """
SELECT id, role, content, name, created_at FROM (
    SELECT rowid AS position, id, role, content, name, created_at FROM messages
    WHERE session_scope = :session_scope ORDER BY rowid DESC LIMIT :limit
) ORDER BY position
"""


class HistoryReader:
    """Answers the contract's questions through a function that runs one SELECT."""

    def __init__(self, fetch: Fetch, by_memory: str) -> None:
        self._fetch = fetch
        self._by_memory = by_memory

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first."""
        return await self._history_before(memory_id, _MAX_ROWID)

    async def _history_before(self, memory_id: str, position: int) -> list[HistoryRecord]:
        rows = await self._fetch(
            f"SELECT {COLUMN_LIST} FROM history WHERE {self._by_memory} AND rowid <= :position"  # noqa: S608 - constants
            " ORDER BY rowid",
            {"memory_id": memory_id, "memory": memory_key(memory_id), "position": position},
        )
        return history_from_rows(rows)

    async def page(self, wanted: Filter, after: Cursor | None, limit: int) -> PageRead:
        """Return up to `limit` records that match, and the last place looked at."""
        sql, parameters = self._page_sql(wanted)
        beginning = -_MAX_ROWID - 1 if wanted.order == "oldest" else _MAX_ROWID
        records: list[HistoryRecord] = []
        place = after
        while True:
            position = place.position if place is not None else beginning
            rows = await self._fetch(sql, {**parameters, "after": position, "limit": limit})
            if not rows and place is not None:
                await self._require_place(place)
            for position, *row in rows:
                record = record_from_row(row)
                if record.occurred_at is None:
                    record = (await self._history_before(record.memory_id, position))[-1]
                place = Cursor(position, record.id)
                if wanted.admits_time(record.occurred_at):
                    records.append(record)
                    if len(records) == limit:
                        return PageRead(records, place, is_last=False)
            if len(rows) < limit:
                return PageRead(records, place, is_last=True)

    def _page_sql(self, wanted: Filter) -> tuple[str, dict[str, Any]]:
        conditions: list[str] = []
        parameters: dict[str, Any] = {}
        if wanted.memory_id is not None:
            conditions.append(self._by_memory)
            parameters |= {"memory_id": wanted.memory_id, "memory": memory_key(wanted.memory_id)}
        for name in ("actor_id", "role", "event"):
            value = getattr(wanted, name)
            if value is not None:
                conditions.append(f"{name} = :{name}")
                parameters[name] = str(value)
        for name, comparison, moment, slack in (
            ("since", ">=", wanted.since, -_SLACK),
            ("until", "<=", wanted.until, _SLACK),
        ):
            if moment is not None:
                # What SQLite cannot read as a time, Python may, or the record before it knows.
                conditions.append(
                    f"coalesce(julianday({_OWN_TIME}) {comparison} julianday(:{name}), 1)"
                )
                parameters[name] = (moment.astimezone(UTC) + slack).isoformat()
        beyond, direction = (">", "ASC") if wanted.order == "oldest" else ("<", "DESC")
        sql = (
            f"SELECT rowid, {COLUMN_LIST} FROM history WHERE rowid {beyond} :after"  # noqa: S608 - constants
            f"{''.join(f' AND {condition}' for condition in conditions)}"
            f" ORDER BY rowid {direction} LIMIT :limit"
        )
        return sql, parameters

    async def _require_place(self, place: Cursor) -> None:
        """Nothing follows: tell the end of the history from a place that is gone."""
        rows = await self._fetch(
            "SELECT id FROM history WHERE rowid = :position", {"position": place.position}
        )
        if not rows or rows[0][0] != place.id:
            raise CursorGone(
                f"the record {place.id} this query stood behind is gone or has moved (a reset, a "
                "removal, a rebuilt file); start again without the cursor"
            )

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, in the order they were saved."""
        rows = await self._fetch(_LAST_MESSAGES, {"session_scope": session_scope, "limit": limit})
        return [message_from_row(row) for row in rows]
