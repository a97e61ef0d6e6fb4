"""Memories page by page: each is found at its latest record, on the way back through all."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from async_history._core.manager import HistoryManager
from async_history._core.query import Page
from async_history._core.records import HistoryRecord, is_alive
from async_history.web._reach import ViewLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Which memories are asked for, and as of when.

    Attributes:
        history: an open manager.
        scopes: the owner whose memories they are; empty: everyone's.
        when: the instant whose states are asked for; None: now.
        cause: keys that the cause of a state must have, with their texts.
    """

    history: HistoryManager
    scopes: Mapping[str, Any]
    when: datetime | None = None
    cause: Mapping[str, str] | None = None

    async def page(self, after: str | None, page_size: int, limits: ViewLimits) -> Page:
        """Return memories until there are `page_size`, or enough records were looked through.

        The end is where the cursor is None.
        """
        query = self.history.query_history(
            order="newest", after=after, page_size=page_size, **self.scopes
        )
        met: set[str] = set()
        found: list[HistoryRecord] = []
        cursor = None
        walked = chars = 0
        async for page in query.pages():
            first: dict[str, HistoryRecord] = {}
            for record in page.records:
                if record.memory_id not in met:
                    first.setdefault(record.memory_id, record)
            met |= first.keys()
            states = [one for one in await self._states(first) if one is not None]
            found += states
            walked += len(page.records)
            chars += sum(map(text_chars, states))
            cursor = page.cursor if len(page.records) == page_size else None
            is_full = len(found) >= page_size or chars >= limits.page_chars
            if is_full or walked >= limits.walked:
                break
        return Page(records=found, cursor=cursor)

    async def _states(self, first: Mapping[str, HistoryRecord]) -> list[HistoryRecord | None]:
        return await asyncio.gather(*map(self._state, first.values()))

    async def _state(self, met: HistoryRecord) -> HistoryRecord | None:
        """Return a memory's state, if the record that was met is its latest.

        Else the memory was on an earlier page.
        """
        latest = await last_record(self.history, met.memory_id)
        if latest is None or latest.id != met.id:
            return None
        state: HistoryRecord | None = latest
        if self.when is not None:
            state = await self.history.memory_at(met.memory_id, self.when)
        if state is None or not is_alive(state):
            return None
        has_cause = all(
            (state.cause or {}).get(key) == text for key, text in (self.cause or {}).items()
        )
        return state if has_cause else None


async def last_record(
    history: HistoryManager, memory_id: str, **scopes: Any
) -> HistoryRecord | None:
    """Return a memory's last record; None where the memory is not there, or not of this owner."""
    query = history.query_history(
        memory_id=memory_id, order="newest", limit=1, page_size=1, **scopes
    )
    async for record in query:
        return record
    return None


def text_chars(record: HistoryRecord) -> int:
    """Return how many characters a record's texts have."""
    return len(record.old_memory or "") + len(record.new_memory or "")
