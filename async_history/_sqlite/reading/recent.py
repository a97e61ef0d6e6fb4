"""The commits of the last second, kept for the followers of the same manager.

Reading a record back takes half as long as writing it, and slows the writers: rows come one by one,
and each needs the GIL. So written records are kept while a follower asks for them. A follower that
has read everything before takes them from here. Followers that pause, like the viewers of a page,
soon fall too far behind, and nothing is kept for them. Fields are kept instead of records, because
more objects would make the garbage collector slow down all writers.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from async_history._core.records.records import COLUMNS, Fields, HistoryRecord, made_record
from async_history._core.writing.additions import fields_of
from async_history._core.writing.submissions import AddRecords, CopyRecords

_ID: Final = COLUMNS.index("id")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentLimits:
    """Limits of the kept batches.

    Attributes:
        seconds: how long a batch is kept, and so how long a follower may see a text that another
            process has erased.
        records: most records of all batches together, and since a follower last asked.
        size_bytes: most bytes of all batches together.
    """

    seconds: float = 1.0
    records: int = 4_096
    size_bytes: int = 16 * 1024 * 1024


class RecentCommits:
    """The completely written batches of the last second, in order."""

    def __init__(self, limits: RecentLimits = RecentLimits()) -> None:
        self._limits = limits
        self._unasked = limits.records
        self._batches: dict[str, tuple[Sequence[Fields], int]] = {}
        self._records = 0
        self._bytes = 0

    def keep(self, additions: Sequence[AddRecords]) -> None:
        """Keep a batch's records, by the last one's id; drop the oldest beyond the limits.

        Nothing is kept if as many records as the limit have come since a follower last asked.
        Copied records are not kept, because the file may store their times in another form.
        """
        limits = self._limits
        if self._unasked >= limits.records or any(
            isinstance(one, CopyRecords) for one in additions
        ):
            return
        records = list(fields_of(additions))
        last = records[-1][_ID]
        size_bytes = sum([submission.size_bytes for submission in additions])
        self._batches[last] = (records, size_bytes)
        self._records += len(records)
        self._unasked += len(records)
        self._bytes += size_bytes
        while self._records > limits.records or self._bytes > limits.size_bytes:
            self._drop(next(iter(self._batches)))
        asyncio.get_running_loop().call_later(limits.seconds, self._drop, last)

    def records_after(self, record_id: str) -> list[HistoryRecord]:
        """Return records kept after the batch that ends with this id; nothing if none does."""
        self._unasked = 0
        found: list[Fields] = []
        if record_id in self._batches:
            for last in reversed(self._batches):
                if last == record_id:
                    break
                found[:0] = self._batches[last][0]
        return [made_record(*fields) for fields in found]

    def forget(self) -> None:
        """Drop everything."""
        for last in list(self._batches):
            self._drop(last)

    def _drop(self, last: str) -> None:
        if last in self._batches:
            records, size_bytes = self._batches.pop(last)
            self._records -= len(records)
            self._bytes -= size_bytes
