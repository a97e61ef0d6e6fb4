"""The look-ups and removals inside a step of pruning."""

from collections.abc import Collection, Sequence
from datetime import datetime

from async_history import backend as api
from async_history.backend import HistoryRecord
from dict_backend.data import Kept
from dict_backend.operations import DictOperationLog


def own_time(record: HistoryRecord) -> datetime | None:
    return None if record.time_before is not None else record.occurred_at


class DictPruning:
    """A `PruneTransaction`."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.log = DictOperationLog(kept.operations)

    async def ends(self) -> tuple[int, int] | None:
        records = self._kept.records
        return (min(records), max(records)) if records else None

    async def window(
        self, asked: api.PruneRequest, after: int, last: int, limit: int
    ) -> list[api.Candidate]:
        seen = [one for one in self._kept.records.items() if after < one[0] <= last][:limit]
        return [self._candidate(*one, asked.is_old(own_time(one[1]))) for one in seen]

    async def edges(self, memory_ids: Sequence[str], before: int) -> dict[str, api.Edge]:
        edges: dict[str, api.Edge] = {}
        for memory_id in memory_ids:
            found = self._kept.of_memory(memory_id)
            if len(found) > before:
                position, record = found[-1 - before]
                edges[memory_id] = position, record.id
        return edges

    async def still_there(self, refs: Collection[api.RecordRef]) -> set[api.RecordRef]:
        there = self._kept.positions
        return {ref for ref in refs if there.get(ref.id) == ref.position}

    async def next_are_dated(self, records: Sequence[api.Candidate]) -> dict[int, bool]:
        dated: dict[int, bool] = {}
        for one in records:
            later = [r for p, r in self._kept.of_memory(one.memory_id) if p > one.position]
            if later:
                dated[one.position] = own_time(later[0]) is not None
        return dated

    async def whole(
        self, asked: api.PruneRequest, memory_ids: Sequence[str]
    ) -> list[api.Candidate]:
        found: list[api.Candidate] = []
        for memory_id in memory_ids:
            records = self._kept.of_memory(memory_id)
            are_old = [asked.is_old(own_time(record)) for _, record in records]
            for index, (position, record) in enumerate(records):
                is_old = asked.is_old(record.occurred_at)
                alone = api.prunable_alone(asked, are_old, index)
                found.append(self._candidate(position, record, is_old, alone))
        return found

    async def remove(self, records: Sequence[api.Candidate]) -> set[api.RecordRef]:
        there = [one for one in records if self._kept.records.pop(one.position, None)]
        for one in there:
            del self._kept.positions[one.id]
        for memory_id in {one.memory_id for one in there}:
            if not self._kept.of_memory(memory_id):
                self._kept.owners.pop(memory_id, None)
        return {one.ref for one in there}

    @staticmethod
    def _candidate(
        position: int, record: HistoryRecord, is_old: bool | None, alone: bool = False
    ) -> api.Candidate:
        is_delete = record.event == api.Event.DELETE
        return api.Candidate(position, record.id, record.memory_id, is_delete, is_old, alone)
