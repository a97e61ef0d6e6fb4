"""The look-ups and writes inside the transaction of a batch."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import datetime

from async_history import backend as api
from async_history.backend import HistoryRecord
from dict_backend.data import Kept, Saved


class DictBatch:
    """A `BatchTransaction`. It never suspends, so nothing runs in between, and it never fails."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def existing(self, submissions: Sequence[api.AddRecords]) -> list[HistoryRecord]:
        ids = api.ids_to_find(submissions, is_repeated=True)
        positions = [self._kept.positions[name] for name in ids if name in self._kept.positions]
        return [self._kept.records[position] for position in positions]

    async def latest(self, memory_ids: Sequence[str]) -> list[HistoryRecord]:
        latest = {record.memory_id: record for record in self._kept.records.values()}
        return [latest[memory_id] for memory_id in memory_ids if memory_id in latest]

    async def find_texts(
        self, restored: Sequence[api.RestoreMemory]
    ) -> Mapping[str, api.MemoryState]:
        for one in restored:
            records = [record for _, record in self._kept.of_memory(one.decided_by)]
            one.find_in(api.last_change_at(records, one.to))
        return {}  # `latest` is asked for them

    async def owners(self, records: Sequence[HistoryRecord]) -> dict[str, api.Owner]:
        names = {record.memory_id for record in records} & self._kept.owners.keys()
        return {name: self._kept.owners[name] for name in names}

    async def erased(self, batch: Sequence[api.Submission]) -> dict[api.Name, datetime]:
        found = {name: self._kept.erased.get(api.name_digest(name)) for name in api.names_in(batch)}
        return {name: at for name, at in found.items() if at is not None}

    async def buffers(self, submissions: Sequence[api.SaveMessages]) -> dict[str, api.Buffer]:
        found: dict[str, api.Buffer] = {}
        for scope in {submission.session_scope for submission in submissions}:
            if saved := self._kept.messages[scope]:
                ids = frozenset(one.id for one in saved)
                found[scope] = api.Buffer(len(saved), saved[0].position, saved[-1].position, ids)
        return found

    def undone_if_refused(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()  # dicts refuse nothing

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[api.SaveMessages],
        owners: Mapping[str, api.Owner],
    ) -> None:
        kept = self._kept
        kept.owners |= owners
        for name, owner in owners.items():
            for position, record in kept.of_memory(name):
                kept.records[position] = replace(record, owner=owner)
        for record in records:
            if record.occurred_at is None and (earlier := kept.of_memory(record.memory_id)):
                record = replace(record, time_before=earlier[-1][1].occurred_at)
            kept.positions[record.id] = position = next(kept.numbers)
            kept.records[position] = record
        for submission in messages:
            saved = kept.messages[submission.session_scope]
            for message_id, message in zip(submission.ids, submission.messages, strict=True):
                saved.append(Saved(next(kept.numbers), message_id, message))
            del saved[: -api.MESSAGES_KEPT]

    async def enter(self, entries: api.LogEntries) -> None:
        self._kept.operations |= {operation.id: operation for operation in entries.operations()}
