"""Statistics of a writer, for operators."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.writing.latency import Latencies
from async_history._core.writing.pending_calls import PendingCall

_MEASURED_OF_BATCH: Final = 4
"""Number of calls of a batch whose wait is measured, each also for its neighbours, to save the
callers' time.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStats:
    """A manager's queue and writer: counters since it was opened, and the queue as it is now."""

    queued_records: int
    """Number of records that wait in the queue for their batch."""
    queued_bytes: int
    """Approximate memory of these records, in bytes."""
    waiting_callers: int
    """Number of callers that wait for space because the queue is full."""
    oldest_wait_s: float
    """Seconds for which the oldest unacknowledged call has waited; 0 if there is none."""
    batches: int
    """Number of committed batches, each in one transaction."""
    batch_records_mean: float
    """Average number of records of a batch."""
    batch_records_max: int
    """Number of records of the largest batch."""
    acked_submissions: int
    """Number of acknowledged calls."""
    acked_records: int
    """Number of records of these calls."""
    refused_submissions: int
    """Number of calls refused in their batch, for example with `IdConflict`; the others were
    written.
    """
    overloaded_submissions: int
    """Number of calls that raised `Overloaded`: the queue had no space within `queue_timeout_s`."""
    failed_batches: int
    """Number of batches of which nothing was written, or whose outcome is unknown."""
    lock_wait_s: float
    """Seconds that commits waited for locks that others hold, as far as that can be seen.

    On SQLite with a write-ahead log: from finding the file locked until the batch was written. On
    PostgreSQL: for a memory's lock, which a change takes that depends on the latest record. Through
    SQLAlchemy: for the row that all writers lock. On servers it includes the round trip.
    """
    ack_p50_s: float | None
    """Median seconds from call to acknowledgement in the last minute; None if there were no calls.

    It includes the wait for space in the queue and the batch's commit. Each quarter of a batch
    counts with the longest wait among its calls.
    """
    ack_p99_s: float | None
    """Seconds within which 99 of 100 calls were acknowledged in that minute; None if there were
    none.
    """
    commit_p50_s: float | None
    """Median seconds of a batch's commit in the last minute; None if there were none.

    It includes waits for locks and retries.
    """
    commit_p99_s: float | None
    """Seconds within which 99 of 100 batches were committed in that minute; None if there were
    none.
    """


class WriterCounters:
    """Counters for a writer's statistics. `now` is `time.monotonic`."""

    def __init__(self) -> None:
        self.failed_batches = 0
        self.lock_wait_s = 0.0
        self._batches = 0
        self._batch_records_max = 0
        self._acked_submissions = 0
        self._acked_records = 0
        self._refused_submissions = 0
        self.acks = Latencies()
        self.commits = Latencies()

    def count_batch(
        self,
        batch: Sequence[PendingCall[Any]],
        refused: Collection[int],
        begun: float,
        now: float,
    ) -> None:
        """Count a committed batch, and its records without those of refused calls, by index."""
        self.commits.add(now, now - begun)
        records = 0
        for call in batch:
            records += call.count
        self._batches += 1
        if records > self._batch_records_max:
            self._batch_records_max = records
        self._acked_records += records
        if refused:
            self._acked_records -= sum([batch[index].count for index in refused])

    def count_settled(
        self, batch: Sequence[PendingCall[Any]], refused: Collection[int], now: float
    ) -> Sequence[float]:
        """Count the calls of a committed batch, with refused ones by index.

        Returns the seconds of the measured calls.
        """
        self._refused_submissions += len(refused)
        left = len(batch)
        self._acked_submissions += left - len(refused)
        # In call order, the first of a group has waited longest.
        group = -(-left // _MEASURED_OF_BATCH)
        waits: list[float] = []
        for call in batch[::group]:
            waits.append(now - call.since)
            self.acks.add(now, waits[-1], group if group < left else left)
            left -= group
        return waits

    def stats(
        self,
        now: float,
        *,
        queued_records: int,
        queued_bytes: int,
        waiting_callers: int,
        oldest_wait_s: float,
        overloaded_submissions: int,
    ) -> WriterStats:
        """Return the counters, with the current queue."""
        acks, commits = self.acks.quantiles(now), self.commits.quantiles(now)
        return WriterStats(
            queued_records=queued_records,
            queued_bytes=queued_bytes,
            waiting_callers=waiting_callers,
            oldest_wait_s=oldest_wait_s,
            batches=self._batches,
            batch_records_mean=self._acked_records / self._batches if self._batches else 0.0,
            batch_records_max=self._batch_records_max,
            acked_submissions=self._acked_submissions,
            acked_records=self._acked_records,
            refused_submissions=self._refused_submissions,
            overloaded_submissions=overloaded_submissions,
            failed_batches=self.failed_batches,
            lock_wait_s=self.lock_wait_s,
            ack_p50_s=acks.p50_s,
            ack_p99_s=acks.p99_s,
            commit_p50_s=commits.p50_s,
            commit_p99_s=commits.p99_s,
        )
