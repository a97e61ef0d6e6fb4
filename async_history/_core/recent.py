"""What a manager has just committed, kept for a moment for its own followers.

To read a record back takes half as long as to write it took, and takes it from those who write:
rows come one by one, with the GIL handed over for each. So what is new is kept as it was written,
as long as anybody follows, and a follower that stands in front of it takes it from here.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from async_history._core.follow import CommitSignal
from async_history._core.records import HistoryRecord
from async_history._core.submissions import AddRecords, CopyRecords

_KEPT_S: Final = 1.0
"""How long; and how much longer than the file a follower may have what another process erases."""
_MOST_RECORDS: Final = 4_096
_MOST_BYTES: Final = 16 * 1024 * 1024


class RecentCommits:
    """The batches of the last second that were written as a whole, each behind the one before.

    Args:
        bell: of the manager. Where nobody hears it nothing is kept.
    """

    def __init__(self, signal: CommitSignal) -> None:
        self._commit_signal = signal
        self._batches: dict[str, tuple[Sequence[HistoryRecord], int]] = {}
        self._records = 0
        self._bytes = 0

    def keep(self, additions: Sequence[AddRecords], records: Sequence[HistoryRecord]) -> None:
        """Keep a batch's records, by the id of the last; let go of what is too much.

        Not copied ones: they may have times that the file keeps in another spelling.
        """
        if not self._commit_signal.has_subscribers or any(
            isinstance(one, CopyRecords) for one in additions
        ):
            return
        last = records[-1].id
        size_bytes = sum([submission.size_bytes for submission in additions])
        self._batches[last] = (records, size_bytes)
        self._records += len(records)
        self._bytes += size_bytes
        while self._records > _MOST_RECORDS or self._bytes > _MOST_BYTES:
            self._let_go(next(iter(self._batches)))
        asyncio.get_running_loop().call_later(_KEPT_S, self._let_go, last)

    def behind(self, record_id: str) -> list[HistoryRecord]:
        """Return what is kept behind the batch that a record ended; nothing if that is unknown."""
        found: list[HistoryRecord] = []
        if record_id in self._batches:
            for last in reversed(self._batches):
                if last == record_id:
                    break
                found[:0] = self._batches[last][0]
        return found

    def forget(self) -> None:
        """Let go of everything."""
        for last in list(self._batches):
            self._let_go(last)

    def _let_go(self, last: str) -> None:
        if last in self._batches:
            records, size_bytes = self._batches.pop(last)
            self._records -= len(records)
            self._bytes -= size_bytes
