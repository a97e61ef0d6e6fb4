"""Reads of the stored data."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from async_history import backend as api
from async_history.backend import HistoryRecord, Message
from dict_backend.data import Kept


def matches(wanted: api.Filter, record: HistoryRecord) -> bool:
    when = record.occurred_at
    return (
        (wanted.memory_ids is None or record.memory_id in wanted.memory_ids)
        and wanted.actor_id in (None, record.actor_id)
        and wanted.role in (None, record.role)
        and wanted.event in (None, record.event)
        and (
            wanted.text is None
            or wanted.text in (record.old_memory or "")
            or wanted.text in (record.new_memory or "")
        )
        and api.has_owner_and_cause(record, wanted.owner, wanted.cause)
        and (wanted.since is None or (when is not None and when >= wanted.since))
        and (wanted.until is None or (when is not None and when < wanted.until))
    )


class DictReader:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        return [record for _, record in self._kept.of_memory(memory_id)]

    async def last_change(self, memory_id: str, when: api.Moment) -> HistoryRecord | None:
        return api.last_change_at(await self.history(memory_id), when)

    async def page(
        self, wanted: api.Filter, after: api.Cursor | None, limit: int, ahead: int
    ) -> api.PageRead:
        found = self._kept.after(after)
        if wanted.order == "newest":
            found = list(reversed(self._kept.records.items()))
            found = [one for one in found if after is None or one[0] < after.position]
        if (end := wanted.through) is not None:
            is_within = end.__le__ if wanted.order == "newest" else end.__ge__
            found = [one for one in found if is_within(one[0])]
        found = [item for item in found if matches(wanted, item[1])]
        records = [record for _, record in found[:limit]]
        cursor = api.Cursor(found[len(records) - 1][0], records[-1].id) if records else None
        return api.PageRead(records, cursor, is_last=len(found) <= limit)

    async def next_cursor(self, position: int, order: api.Order) -> api.Cursor | None:
        some = self._kept.records
        if order == "oldest":
            found = min((one for one in some if one >= position), default=None)
        else:
            found = max((one for one in some if one <= position), default=None)
        return None if found is None else api.Cursor(found, some[found].id)

    async def count(self, wanted: api.Filter) -> int:
        return sum(matches(wanted, record) for record in self._kept.records.values())

    async def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        memories: dict[str, list[HistoryRecord]] = defaultdict(list)
        for record in self._kept.records.values():
            memories[record.memory_id].append(record)
        states = [api.state_at(memory_id, some, when) for memory_id, some in memories.items()]
        yield [state for state in states if state is not None]

    async def rows(self, after: api.Cursor | None, limit: int) -> api.RowsRead:
        found = self._kept.after(after)
        part = found[:limit]
        cursor = api.Cursor(part[-1][0], part[-1][1].id) if part else after
        return api.RowsRead([api.row_of(one) for _, one in part], cursor, len(found) <= limit)

    async def times_before(self, ids: Sequence[str]) -> dict[str, datetime]:
        records = [one for one in self._kept.records.values() if one.id in ids]
        return {one.id: one.time_before for one in records if one.time_before is not None}

    async def newest(self) -> int | None:
        return max(self._kept.records, default=None)

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        saved = self._kept.messages.get(session_scope, [])
        return [one.message for one in saved[max(0, len(saved) - limit) :]]

    async def scopes(self, after: str, limit: int) -> list[str]:
        # The order of characters is that of their UTF-8 bytes.
        return sorted(
            name for name, saved in self._kept.messages.items() if saved and name > after
        )[:limit]
