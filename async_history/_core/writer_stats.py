"""What a writer has done, for operators."""

from dataclasses import dataclass


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
