"""Dates copied records that do not say when they happened.

`history` stores an instant beside a record's own times. A record without a time has the instant of
its memory's record before it, as in every store.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from async_history._core.records import HistoryRecord
from async_history._core.submissions import CopyRecords, Submission


def has_undated(batch: Sequence[Submission]) -> bool:
    """Return whether a batch copies records without a time."""
    return any(isinstance(one, CopyRecords) and one.has_undated for one in batch)


async def dated(
    records: Sequence[HistoryRecord],
    latest: Callable[[Sequence[str]], Awaitable[Sequence[HistoryRecord]]],
) -> Sequence[HistoryRecord]:
    """Return records that are to be stored, each with the time of the one before it if it has none.

    Args:
        latest: returns the latest stored record of each of some memories.
    """
    undated = {record.memory_id for record in records if record.occurred_at is None}
    if not undated:
        return records
    before = {record.memory_id: record.occurred_at for record in await latest(sorted(undated))}
    found: list[HistoryRecord] = []
    for record in records:
        if record.memory_id in undated:
            if record.occurred_at is None:
                record = replace(record, time_before=before.get(record.memory_id))
            before[record.memory_id] = record.occurred_at
        found.append(record)
    return found
