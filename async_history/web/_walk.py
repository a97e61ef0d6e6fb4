"""Memories page by page, found by a backward scan of the records in force."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from async_history._core.manager import HistoryManager
from async_history._core.reading.filters import check_cause_filter, has_owner_and_cause
from async_history._core.reading.query import Page
from async_history._core.records.records import HistoryRecord, is_alive
from async_history.web._parts import parts, text_chars
from async_history.web._reach import ViewLimits

_NEXT_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A backward scan for the memories of an owner, at an instant.

    The record in force of a memory is the last one that occurred by the instant. In a scan from the
    newest record, it is the first record of its memory. A scan that continues after a cursor has to
    query for it, because it may be on an earlier page.

    Attributes:
        history: an open manager.
        scopes: the owner's scopes; empty: all owners.
        when: the instant; None: now.
        cause: keys that the cause of a state must have, with their texts.
    """

    history: HistoryManager
    scopes: Mapping[str, Any]
    when: datetime | None = None
    cause: Mapping[str, str] | None = None

    async def page(self, after: str | None, page_size: int, limits: ViewLimits) -> Page:
        """Return up to about `page_size` memories; fewer if the limit of read records is reached.

        On the last page the cursor is None.
        """
        at_once = replace(limits, part=min(limits.part, page_size))
        asked_for = {"order": "newest", **self.scopes, **self._until()}
        met: set[str] = set()
        found: list[HistoryRecord] = []
        walked = asked = chars = 0
        async for page in parts(
            self.history, at_once, after=after, most=limits.walked, **asked_for
        ):
            first: dict[str, HistoryRecord] = {}
            for record in page.records:
                if record.memory_id not in met:
                    first.setdefault(record.memory_id, record)
            met |= first.keys()
            states = [record for record in first.values() if self._is_wanted(record)]
            walked += len(page.records)
            asked += 1
            if after is not None:
                asked += len(states)
                states = await self._in_force(states)
            found += states
            chars += sum(map(text_chars, states))
            is_full = len(found) >= page_size or chars >= limits.page_chars
            if is_full or walked >= limits.walked or asked >= limits.asked:
                return Page(records=found, cursor=page.cursor)
        return Page(records=found, cursor=None, is_last=True)

    def _until(self) -> Mapping[str, datetime]:
        try:
            return {} if self.when is None else {"until": self.when + _NEXT_INSTANT}
        except OverflowError:
            return {}  # nothing comes after the last instant

    def _is_wanted(self, state: HistoryRecord) -> bool:
        return is_alive(state) and has_owner_and_cause(state, (), check_cause_filter(self.cause))

    async def _in_force(self, met: Iterable[HistoryRecord]) -> list[HistoryRecord]:
        """Return the records in force. The memories of the others were on an earlier page."""

        async def is_in_force(record: HistoryRecord) -> bool:
            state = await last_record(self.history, record.memory_id, **self._until())
            return state is not None and state.id == record.id

        states = list(met)
        known = await asyncio.gather(*map(is_in_force, states))
        return [record for record, is_known in zip(states, known, strict=True) if is_known]


async def last_record(
    history: HistoryManager, memory_id: str, **wanted: Any
) -> HistoryRecord | None:
    """Return the last record of a memory that matches; None if none does.

    Args:
        history: an open manager.
        memory_id: the memory.
        wanted: other arguments of `query_history`.
    """
    query = history.query_history(
        memory_id=memory_id, order="newest", limit=1, page_size=1, **wanted
    )
    async for record in query:
        return record
    return None
