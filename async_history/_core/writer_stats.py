"""What a writer has done, for operators."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.latency import Latencies
from async_history._core.queue import PendingCall

_MEASURED_OF_BATCH: Final = 8
"""Calls of a batch whose wait is measured, each for its neighbours too: the callers pay for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStats:
    """A manager's queue and writer: counters since it was opened, and the queue as it is now."""

    queued_records: int
    """Records that wait in the queue for their batch."""
    queued_bytes: int
    """About how many bytes of memory these take."""
    waiting_callers: int
    """Callers that wait for room, because the queue is full."""
    oldest_wait_s: float
    """Seconds that the oldest call which is not answered yet has waited; 0 where there is none."""
    batches: int
    """Batches that were committed, each in one transaction."""
    batch_records_mean: float
    """Records of a batch, on average."""
    batch_records_max: int
    """Records of the largest batch."""
    acked_submissions: int
    """Calls that were acknowledged."""
    acked_records: int
    """Records of these calls."""
    refused_submissions: int
    """Calls that were refused in their batch, such as by `IdConflict`; the others were written."""
    overloaded_submissions: int
    """Calls that raised `Overloaded`: the queue had no room within `queue_timeout_s`."""
    failed_batches: int
    """Batches of which nothing was written, or of which it is not known."""
    ack_p50_s: float | None
    """Seconds from call to answer, the median of the last minute's calls; None without any.

    A call's wait for room in the queue and its batch's commit are in it. An eighth of a batch
    counts with the longest wait among its calls.
    """
    ack_p99_s: float | None
    """Seconds within which 99 of 100 calls were answered in that minute; None without any."""
    commit_p50_s: float | None
    """Seconds that a batch's commit took, the median of the last minute; None without any.

    Waiting for a lock and trying again are in it.
    """
    commit_p99_s: float | None
    """Seconds within which 99 of 100 batches were committed in that minute; None without any."""


class WriterCounters:
    """Counts what a writer does, for its statistics. `now` is `time.monotonic`."""

    def __init__(self) -> None:
        self.failed_batches = 0
        self._batches = 0
        self._batch_records_max = 0
        self._acked_submissions = 0
        self._acked_records = 0
        self._refused_submissions = 0
        self.acks = Latencies()
        self.commits = Latencies()

    def count_batch(self, batch: Sequence[PendingCall[Any]], begun: float, now: float) -> None:
        """Count a batch that was committed."""
        self.commits.add(now, now - begun)
        records = sum([call.count for call in batch])
        self._batches += 1
        self._batch_records_max = max(self._batch_records_max, records)
        self._acked_records += records

    def count_settled(
        self, batch: Sequence[PendingCall[Any]], refused: Collection[int], now: float
    ) -> Sequence[float]:
        """Count the calls of a committed batch, of which some were refused, by their index.

        Returns the seconds that the calls took which were measured.
        """
        if refused:
            self._acked_records -= sum([batch[index].count for index in refused])
            self._refused_submissions += len(refused)
        self._acked_submissions += len(batch) - len(refused)
        # In order of their calls, the first of a group has waited longest.
        group = -(-len(batch) // _MEASURED_OF_BATCH)
        waits = [now - batch[index].since for index in range(0, len(batch), group)]
        for number, waited in enumerate(waits):
            self.acks.add(now, waited, min(group, len(batch) - number * group))
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
        """Return the counters, with the queue as it is now."""
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
            ack_p50_s=acks.p50_s,
            ack_p99_s=acks.p99_s,
            commit_p50_s=commits.p50_s,
            commit_p99_s=commits.p99_s,
        )
