"""Dating of copied records without a time.

Some databases store an instant in addition to a record's own times. A record without a time has the
instant of its memory's previous record, as in every store.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from async_history._core.records.records import Event, HistoryRecord
from async_history._core.records.values import parse_time
from async_history._core.writing.submissions import CopyRecords, Submission


def has_undated(batch: Sequence[Submission]) -> bool:
    """Return whether a batch copies records without a time."""
    return any(isinstance(one, CopyRecords) and one.has_undated for one in batch)


async def dated(
    records: Sequence[HistoryRecord],
    latest: Callable[[Sequence[str]], Awaitable[Sequence[HistoryRecord]]],
) -> Sequence[HistoryRecord]:
    """Return records to store, each without a time dated by the previous one.

    Args:
        latest: returns the latest stored record of each of some memories.
    """
    undated = {record.memory_id for record in records if _is_undated(record)}
    if not undated:
        return records
    before = {record.memory_id: record.occurred_at for record in await latest(sorted(undated))}
    found: list[HistoryRecord] = []
    for record in records:
        if record.memory_id in undated:
            if _is_undated(record):
                record = replace(record, time_before=before.get(record.memory_id))
            before[record.memory_id] = None if _is_no_day(record) else record.occurred_at
        found.append(record)
    return found


def _is_undated(record: HistoryRecord) -> bool:
    """Return whether a record has no time."""
    return record.occurred_at is None and not _is_no_day(record)


def _is_no_day(record: HistoryRecord) -> bool:
    return is_no_day(record.created_at if record.event == Event.ADD else record.updated_at)


def is_no_day(text: str | None) -> bool:
    """Return whether a stored time has this library's form, but is not a valid day or second.

    Every store treats such a text as a time, and does not use an earlier record's time.
    """
    return text is not None and _OUR_FORM.fullmatch(text) is not None and parse_time(text) is None


_OUR_FORM: Final = re.compile(r".{4}-..-..T..:..:..\.......\+00:00", re.DOTALL)
"""The same form as in PostgreSQL's statements."""
