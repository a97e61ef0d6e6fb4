"""The bounds of a writer: of its queue and of one batch."""

from dataclasses import dataclass

from async_history._core.queue import QUEUE_BYTES, QUEUE_RECORDS

BATCH_RECORDS = 512
"""Most records of a batch. With 1,000 tasks half commit while the other half is woken; with
1,000 in a batch both waited for each other, at two thirds of the speed."""
BATCH_BYTES = 16 * 1024 * 1024
"""Most bytes of a batch. A larger submission is a batch of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """The bounds of a writer.

    `queue_records` and `queue_bytes` bound the queue (a batch being committed is beyond them),
    `batch_records` and `batch_bytes` one batch. `queue_timeout_s` is how long a caller may wait
    for room; None waits without bound.
    """

    queue_records: int = QUEUE_RECORDS
    queue_bytes: int = QUEUE_BYTES
    queue_timeout_s: float | None = None
    batch_records: int = BATCH_RECORDS
    batch_bytes: int = BATCH_BYTES


DEFAULT_OPTIONS = WriterOptions()
