"""A model of pruning: memory by memory, with all records in a list."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from async_history import HistoryRecord


def pruned(
    records: Iterable[HistoryRecord], before: datetime, keep_last: int
) -> list[HistoryRecord]:
    """Return the records that pruning keeps."""
    of_memory: dict[str, list[HistoryRecord]] = defaultdict(list)
    records = list(records)
    for record in records:
        of_memory[record.memory_id].append(record)

    def is_old(record: HistoryRecord) -> bool:
        return record.occurred_at is not None and record.occurred_at < before

    gone: set[str] = set()
    for history in of_memory.values():
        if all(map(is_old, history)) and (keep_last == 0 or history[-1].event == "DELETE"):
            gone |= {record.id for record in history}
        else:
            gone |= {record.id for record in history[: -max(keep_last, 1)] if is_old(record)}
    return [record for record in records if record.id not in gone]
